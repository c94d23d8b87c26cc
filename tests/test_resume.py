"""A run killed anywhere loses nothing: real runs of the embedded models, really killed.

One run is left alone. Another is killed (the whole process group, SIGKILL) in every stage at a random
moment and started again until it ends. The rows of the store must be equal, including texts, and the
weights of both students must be equal to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, Command

from distill.store import Store
from distill.store.schema import KEYS

YAML = """\
name: small
stages:
  problems: {sources: [{family: calc, train: 40, heldout: 8}, {family: code, train: 20, heldout: 8}]}
  generate: {problems: problems, teacher: "embedded:teacher", sampling: {max_tokens: 96}, samples: 2}
  verify: {traces: generate}
  select: {verdicts: verify}
  sft:
    data: select
    student: embedded:student-base
    lora: {rank: 8, alpha: 16}
    learning_rate: 4e-3
    epochs: 3
  grpo:
    student: stage:sft
    problems: problems
    steps: 4
    prompts: 6
    group: 4
    sampling: {max_tokens: 96}
    lora: {rank: 8, alpha: 16}
    learning_rate: 1e-3
  evaluate:
    problems: problems
    models: {base: "embedded:student-base", sft: "stage:sft", grpo: "stage:grpo"}
    sampling: {max_tokens: 96}
    samples: 2
  report: {evaluation: evaluate, selection: select, training: [sft, grpo]}
"""
STAGES = ("problems", "generate", "verify", "select", "sft", "grpo", "evaluate", "report")
TIME_COLUMNS = {"seconds", "created"}


def start(directory: Path, *arguments: str) -> Command:
    return Command(directory, "run", "--pipeline", "p.yaml", "--json", *arguments)


def events(process: Command) -> Iterator[dict[str, Any]]:
    for line in process.stdout:
        yield json.loads(line)


def finish(directory: Path, *arguments: str) -> list[dict[str, Any]]:
    out, _ = start(directory, *arguments).ended()
    return [json.loads(line) for line in out.splitlines()]


def project(directory: Path, text: str = YAML) -> Path:
    directory.mkdir()
    (directory / "p.yaml").write_text(text)
    return directory


def contents(directory: Path) -> dict[str, Any]:
    """Every row of the store without its times, and a hash of every student's weights."""
    store = Store(directory / "runs/small")
    found: dict[str, Any] = {}
    for table, key in KEYS.items():
        rows = store.rows(f"SELECT * FROM {table} ORDER BY {', '.join(key)}")
        found[table] = [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in rows]
    found["metrics"] = [row for row in found["metrics"] if not row["name"].endswith("seconds")]
    for name in ("sft", "grpo"):
        weights = (directory / "runs/small" / name / "model/model.safetensors").read_bytes()
        found[f"{name} weights"] = hashlib.sha256(weights).hexdigest()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = project(tmp_path_factory.mktemp("undisturbed") / "p")
    finish(directory)
    return directory


def kill_in(directory: Path, stage: str, delay: float) -> None:
    """Run until ``stage`` begins, wait ``delay`` seconds, and kill everything."""
    process = start(directory)
    for event in events(process):
        if event["event"] == "start" and event["stage"] == stage:
            time.sleep(delay)
            break
    process.kill()


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_like_an_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    directory = project(tmp_path / "p")
    chance = random.Random(20)
    for stage in STAGES:
        kill_in(directory, stage, chance.uniform(0.0, seconds_of(undisturbed, stage)))
    finish(directory)
    expected, found = contents(undisturbed), contents(directory)
    for part in expected:
        assert found[part] == expected[part], part
    assert made_twice(directory) == []


def seconds_of(directory: Path, stage: str) -> float:
    (record,) = (directory / f"runs/small/manifests/{stage}").glob("*.json")
    return float(json.loads(record.read_text())["seconds"])


def made_twice(directory: Path) -> list[str]:
    """The keys of traces that were sampled more than once. There must be none: a kill leaves no partial trace.

    (A kill may cause a shard to be ingested twice; then both copies have one time of creation.)
    """
    import duckdb

    files = [str(path) for path in (directory / "runs/small").glob("*/traces/*.parquet")]
    query = "SELECT trace_key FROM read_parquet(?) GROUP BY trace_key HAVING count(DISTINCT created) > 1"
    return [row[0] for row in duckdb.execute(query, [files]).fetchall()]


@pytest.mark.slow
def test_a_run_stopped_by_max_time_or_sigterm_resumes(undisturbed: Path, tmp_path: Path) -> None:
    """First by ``--max-time``, at whatever point. Then by SIGTERM while training, sent to the whole process group as
    timeout, Slurm and systemd do, so that the trainer's other processes get it too."""
    directory = project(tmp_path / "p")
    process = start(directory, "sft", "--max-time", "2s")
    _, err = process.ended(75)
    assert "(--max-time)" in err
    process = start(directory, "sft")
    for event in events(process):
        if event["event"] == "progress" and event["stage"] == "sft":
            os.killpg(process.pid, signal.SIGTERM)
            break
    _, err = process.ended(75)
    assert "run again to continue" in err
    reported = finish(directory, "sft")
    assert [event["stage"] for event in reported if event["event"] == "start"] == ["sft"]
    assert contents_of_weights(directory) == contents_of_weights(undisturbed)


def contents_of_weights(directory: Path) -> bytes:
    return (directory / "runs/small/sft/model/model.safetensors").read_bytes()


@pytest.mark.slow
def test_more_samples_or_another_rank_redo_only_what_depends_on_them(undisturbed: Path, tmp_path: Path) -> None:
    """More samples generate just the new ones; a changed rank leaves the stages before it cached."""
    directory = shutil.copytree(undisturbed, tmp_path / "p", symlinks=True)
    before = Store(directory / "runs/small").rows("SELECT trace_key FROM traces")
    reported = finish(directory, "select", "--set", "generate.samples=3")
    progress = [e for e in reported if e["event"] == "progress" and e["stage"] == "generate"]
    assert progress[-1]["done"] == progress[-1]["total"] == 180
    after = Store(directory / "runs/small").rows("SELECT trace_key FROM traces")
    assert len(after) - len(before) == 60
    plan = plan_of(directory, "--set", "sft.lora.rank=4")
    assert [plan[s]["status"] for s in STAGES[:4]] == ["cached"] * 4
    assert plan["sft"]["reasons"] == ["lora.rank: 8 -> 4"]
    assert plan["grpo"]["reasons"] == ["waits for sft"]


@pytest.mark.slow
def test_the_views_agree_with_the_manifests(undisturbed: Path) -> None:
    store = Store(undisturbed / "runs/small")
    (record,) = (undisturbed / "runs/small/manifests/select").glob("*.json")
    figures = json.loads(record.read_text())["figures"]
    funnel = store.rows("SELECT outcome, sum(traces)::INTEGER AS n FROM funnel GROUP BY 1 ORDER BY 1")
    assert {row["outcome"]: row["n"] for row in funnel} == {"kept": figures["kept"], **figures["rejected"]}
    lineage = store.rows("SELECT DISTINCT outcome, count(*) OVER () AS n FROM lineage")
    assert lineage == [{"outcome": "correct", "n": figures["kept"]}]
    rates = store.rows("SELECT sum(traces)::INTEGER AS n, max(pass_rate) AS best FROM pass_rates")
    judged = store.rows("SELECT count(*) AS n FROM traces WHERE trace_key NOT IN (SELECT trace_key FROM rollouts)")
    assert rates == [{"n": judged[0]["n"], "best": 1.0}]
    prices = store.rows("SELECT * FROM token_prices WHERE correct > 0")
    assert prices and all(row["tokens_per_correct"] == row["tokens"] / row["correct"] for row in prices)
    shortest = store.rows("SELECT count(*) AS n, count(DISTINCT (problem_id, model)) AS pairs FROM shortest_correct")
    assert shortest[0]["n"] >= shortest[0]["pairs"] > 0


BROUGHT = """\
name: small
stages:
  problems: {sources: [{file: p.jsonl, prompt: q, reference: a, verifier: math}]}
  generate: {problems: problems, teacher: "embedded:teacher", sampling: {max_tokens: 96, temperature: 0}}
  verify: {traces: generate}
"""


@pytest.mark.slow
def test_a_corrected_reference_judges_again_and_generates_nothing(tmp_path: Path) -> None:
    directory = project(tmp_path / "p", BROUGHT)
    problems = [{"q": "Compute left to right: 12 + 7 * 3 - 4", "a": "54"}, {"q": "1 + 1 = ?", "a": "2"}]
    (directory / "p.jsonl").write_text("\n".join(map(json.dumps, problems)))
    finish(directory)
    problems[0]["a"] = "53"
    (directory / "p.jsonl").write_text("\n".join(map(json.dumps, problems)))
    assert plan_of(directory)["problems"]["status"] == "will run"
    finish(directory)
    store = Store(directory / "runs/small")
    assert len(store.rows("SELECT * FROM traces")) == 2
    judged = store.rows(
        "SELECT reference, outcome FROM verdicts JOIN problems USING (problem_key) "
        "WHERE prompt LIKE 'Compute%' ORDER BY reference"
    )
    assert judged == [
        {"reference": "53", "outcome": "correct"},
        {"reference": "54", "outcome": "incorrect"},
    ]


def plan_of(directory: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    out, _ = Command(directory, "plan", "--pipeline", "p.yaml", "--json", *arguments).ended()
    return {row["stage"]: row for row in map(json.loads, out.splitlines())}


CACHED = """
import sys
sys.argv = ["distill", "run", "--pipeline", "p.yaml", "--json"]
from distill.cli.main import main
try:
    main()
finally:
    print([name for name in ("torch", "transformers", "peft", "datasets", "pyarrow") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.slow
def test_an_unchanged_pipeline_does_nothing_and_loads_nothing_heavy(undisturbed: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CACHED], cwd=undisturbed, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    reported = [json.loads(line) for line in result.stdout.splitlines()]
    assert [e["stage"] for e in reported if e["event"] == "cached"] == list(STAGES)
    assert not [e for e in reported if e["event"] == "start"]
    assert result.stderr.strip() == "[]"
