"""Adaptive sampling, end to end: the embedded teacher, at an unreliably high temperature, is judged while it samples."""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from chat_server import Handler, Server, reply, serving
from command import Command
from killed_runs import KilledAtAppend, finish

from distill import catalog
from distill.adaptive.rule import Rule
from distill.store import Store, appending
from distill.types import Outcome
from pipeline import config, runner
from pipeline.errors import InputError, PipelineError, Stopped
from pipeline.events import Listener
from pipeline.files import TEMPORARY
from pipeline.manifest import Manifest
from pipeline.plan import StagePlan, plan
from pipeline.workspace import Workspace

YAML = """\
name: adaptive
workspace: runs/a
stages:
  problems: {sources: [{family: calc, train: 12}, {family: logic, train: 6}]}
  generate:
    problems: problems
    teacher: embedded:teacher
    engine: {kind: transformers, workers: 1}
    sampling: {temperature: 1.5, max_tokens: 96}
    until: {accepted: 2, most: 6, hopeless: 0.4}
  verify: {traces: generate}
"""
PROBLEMS = 18
RULE = Rule(accepted=2, most=6, hopeless=0.4, unverifiable=4)
TIME_COLUMNS = {"seconds", "created"}


class RecordingListener(Listener):
    def __init__(self) -> None:
        self.progressed: list[tuple[int, int | None, dict[str, Any]]] = []
        self.notes: list[str] = []
        self.ran: list[str] = []

    def start(self, stage: str, plan: StagePlan) -> None:
        self.ran.append(stage)

    def progress(self, stage: str, done: int, total: int | None, figures: Any) -> None:
        if stage == "generate":
            self.progressed.append((done, total, dict(figures)))

    def note(self, stage: str, text: str) -> None:
        self.notes.append(text)

    @property
    def made(self) -> int:
        return max((figures.get("made", 0) for _, _, figures in self.progressed), default=0)


def load(directory: Path, *overrides: str, text: str = YAML) -> config.PipelineSpec:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "p.yaml").write_text(text.replace("runs/a", str(directory / "runs/a")))
    return config.load(directory / "p.yaml", catalog.stage, overrides=list(overrides))


def run(directory: Path, *overrides: str, text: str = YAML, targets: Sequence[str] = ()) -> RecordingListener:
    spec, listener = load(directory, *overrides, text=text), RecordingListener()
    runner.run(spec, Workspace(spec.workspace), listener, lambda: False, targets)
    return listener


def planned(directory: Path, *overrides: str, text: str = YAML) -> dict[str, StagePlan]:
    spec = load(directory, *overrides, text=text)
    return {item.spec.name: item for item in plan(spec, Workspace(spec.workspace))}


def store(directory: Path) -> Store:
    return Store(directory / "runs/a")


def contents(directory: Path) -> dict[str, Any]:
    """All traces, verdicts and members of stages, without the columns that hold times."""
    found = {}
    for table, key in (("traces", "trace_key"), ("verdicts", "verdict_key"), ("members", "collection, position")):
        rows = store(directory).rows(f"SELECT * FROM {table} ORDER BY {key}")
        found[table] = [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in rows]
    return found


def manifest(directory: Path, *overrides: str, stage: str = "generate", text: str = YAML) -> Manifest:
    found = planned(directory, *overrides, text=text)[stage].manifest
    assert found is not None
    return found


def samples(directory: Path, collection: str) -> dict[str, list[tuple[int, Outcome]]]:
    """(sample index, outcome) of the members of a collection, by problem."""
    rows = store(directory).rows(
        "SELECT label, sample_index, outcome FROM members JOIN traces ON row_key = trace_key "
        "JOIN judgements j ON j.trace_key = row_key AND j.problem_key = label "
        "WHERE collection = ? ORDER BY position",
        [collection],
    )
    found = defaultdict(list)
    for row in rows:
        found[row["label"]].append((row["sample_index"], Outcome(row["outcome"])))
    return dict(found)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "p"
    run(directory)
    return directory


def test_each_problem_gets_the_samples_that_its_verdicts_ask_for(undisturbed: Path) -> None:
    made = manifest(undisturbed)
    found = samples(undisturbed, made.digest)
    assert len(found) == PROBLEMS
    for judged in found.values():
        assert [index for index, _ in judged] == list(range(len(judged)))
        end = RULE.ended([outcome for _, outcome in judged])
        assert end is not None and end[0] == len(judged)
    assert len(store(undisturbed).rows("SELECT * FROM traces")) == made.figures["traces"] == made.figures["members"]
    assert len({len(judged) for judged in found.values()}) > 1  # otherwise the temperature was too low to show anything


def test_the_figures_agree_with_the_stored_verdicts(undisturbed: Path) -> None:
    figures = manifest(undisturbed).figures
    found = samples(undisturbed, manifest(undisturbed).digest)
    right = sum(outcome is Outcome.CORRECT for judged in found.values() for _, outcome in judged)
    assert figures["accepted"] == right
    assert figures["tries_per_accepted"] == round(figures["traces"] / right, 3)
    assert figures["tokens_per_accepted"] == round(figures["tokens"] / right, 1)
    ends = [RULE.ended([outcome for _, outcome in judged]) for judged in found.values()]
    for fate in ("satisfied", "short", "hopeless"):
        expected = sum(end is not None and end[1] == fate for end in ends)
        assert figures.get(f"{fate}_problems", 0) == expected
    lengths = store(undisturbed).rows(
        "SELECT count(*) AS n, sum(thinking_tokens + answer_tokens) AS tokens FROM traces GROUP BY prompt_key"
    )
    assert figures["tokens_saved"] == round(sum((6 - row["n"]) * row["tokens"] / row["n"] for row in lengths))


def test_a_later_verify_stage_finds_every_verdict_already_made(undisturbed: Path) -> None:
    verdicts = store(undisturbed).rows("SELECT trace_key FROM verdicts")
    assert len(verdicts) == manifest(undisturbed).figures["traces"]
    again = planned(undisturbed, "verify.verifier=exact")["verify"]
    assert again.forecast and again.forecast.done == 0  # another verifier has judged nothing
    assert all(item.status == "cached" for item in planned(undisturbed).values())
    assert run(undisturbed).ran == []


def test_the_number_of_workers_changes_no_result(undisturbed: Path, tmp_path: Path) -> None:
    others = ("generate.engine={kind: transformers, workers: 3}", "generate.until.workers=1")
    run(tmp_path, *others)
    assert contents(tmp_path) == contents(undisturbed)
    assert manifest(tmp_path).fingerprint == manifest(undisturbed).fingerprint  # the fingerprint ignores them too


def test_raising_the_limits_generates_only_the_missing_samples(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "runs", tmp_path / "runs", symlinks=True)
    more = ("generate.until.accepted=4", "generate.until.most=8")
    before = manifest(undisturbed).figures["traces"]
    forecast = planned(tmp_path, *more)["generate"].forecast
    assert forecast and forecast.total and forecast.done == before
    listener = run(tmp_path, *more)
    made = len(store(tmp_path).rows("SELECT * FROM traces")) - before
    assert forecast.figures["least_calls"] <= made <= forecast.figures["calls"]
    assert forecast.figures["max_tokens"] == forecast.figures["calls"] * 96
    assert made > 0 and listener.made <= made
    fresh = tmp_path / "fresh"
    run(fresh, *more)
    assert manifest(fresh, *more).digest == manifest(tmp_path, *more).digest
    assert manifest(fresh, *more).figures["traces"] == before + made
    assert planned(tmp_path)["generate"].status == "cached"  # returning to the old limits costs nothing


def test_the_plan_gives_bounds_before_anything_ran(tmp_path: Path) -> None:
    forecast = planned(tmp_path)["generate"].forecast
    assert forecast and (forecast.total, forecast.done) == (PROBLEMS * 6, 0)
    run(tmp_path, targets=["problems"])
    forecast = planned(tmp_path)["generate"].forecast
    assert forecast and (forecast.total, forecast.done) == (PROBLEMS * 6, 0)
    assert forecast.figures == {"least_calls": PROBLEMS * 2, "calls": PROBLEMS * 6, "max_tokens": PROBLEMS * 6 * 96}


def test_traces_of_a_uniform_stage_are_judged_and_not_generated_again(tmp_path: Path) -> None:
    uniform = YAML.replace("until: {accepted: 2, most: 6, hopeless: 0.4}", "samples: 6")
    run(tmp_path, text=uniform, targets=["generate"])
    traces = len(store(tmp_path).rows("SELECT * FROM traces"))
    forecast = planned(tmp_path)["generate"].forecast
    assert forecast and forecast.total == forecast.done == traces and forecast.figures["least_calls"] == 0
    run(tmp_path)
    assert len(store(tmp_path).rows("SELECT * FROM traces")) == traces
    judged = store(tmp_path).rows("SELECT * FROM verdicts")
    assert len(judged) == manifest(tmp_path).figures["traces"] < traces  # only the wanted ones are judged


QUOTAS = YAML.replace(
    "hopeless: 0.4}", "quotas: [{source: logic, difficulty: 3, accepted: 3}, {source: calc, accepted: 9}]}"
)


def test_quotas_sample_the_first_problems_and_no_more_than_needed(tmp_path: Path) -> None:
    run(tmp_path, text=QUOTAS)
    made = manifest(tmp_path, text=QUOTAS)
    found = samples(tmp_path, made.digest)
    rows = store(tmp_path).rows(
        "SELECT problem_key, source, difficulty FROM problems JOIN members ON row_key = problem_key ORDER BY position"
    )
    for source, difficulty, wanted in (("logic", 3, 3), ("calc", None, 9)):
        covered = [r["problem_key"] for r in rows if r["source"] == source and difficulty in (None, r["difficulty"])]
        asked = [key for key in covered if key in found]
        assert asked == covered[: len(asked)]
        yields = [sum(outcome is Outcome.CORRECT for _, outcome in found[key]) for key in asked]
        figures_of = made.figures["quotas"][f"source {source}" + (f", difficulty {difficulty}" if difficulty else "")]
        assert figures_of == {"accepted": sum(yields), "of": wanted}
        assert sum(yields[:-1]) < wanted
        assert sum(yields) >= wanted or asked == covered
    assert {r["source"] for r in rows if r["problem_key"] in found} == {"calc", "logic"}
    assert made.figures["problems_not_asked"] == PROBLEMS - len(found)


def test_a_quota_without_problems_and_contradictory_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"until\.quotas\.0 \(source lógica\): covers no problem.*calc, logic"):
        run(tmp_path, text=QUOTAS.replace("source: logic, difficulty: 3", "source: lógica"))
    for wrong, message in (
        ("until: {accepted: 4, most: 2}", "4 correct traces cannot come from most: 2"),
        ("until: {accepted: 2, most: 4, trivial: 2}", "trivial: 2 must be less than accepted: 2"),
        ("until: {accepted: 2, most: 4, verifier: maths}", "no verifier is called 'maths'"),
        ("until: {accepted: 2, most: 4}\n    samples: 3", "samples and until exclude each other"),
    ):
        with pytest.raises(InputError, match=rf"p\.yaml:\d+: .*{message}"):
            load(tmp_path, text=YAML.replace("until: {accepted: 2, most: 6, hopeless: 0.4}", wrong))
    with pytest.raises(InputError, match="temperature above 0"):
        load(tmp_path, "generate.sampling.temperature=0")


# -- verifiers that are slow, fail, or have to be opened ----------------------------------------

OWN = """\
import os, signal
from distill.types import Verdict

class Own:
    name = "own"
    version = "1"

    def verify(self, problem, trace):
        if int(trace.answer or 0) % 2 and not os.path.exists("mended"):
            os.kill(os.getpid(), signal.SIGKILL)
        return Verdict.correct("why not")
"""


def test_a_crash_of_the_verifier_is_unverifiable_and_is_retried_in_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    text = YAML.replace("{family: calc, train: 12}, {family: logic, train: 6}", "{family: calc, train: 4}")
    text = text.replace("hopeless: 0.4", "unverifiable: null, verifier: ./own.py:Own")
    run(tmp_path, text=text, targets=["generate"])
    outcomes = {r["outcome"] for r in store(tmp_path).rows("SELECT outcome FROM verdicts")}
    failed = store(tmp_path).rows("SELECT * FROM verdicts WHERE verdict_key LIKE '%-failed'")
    assert "unverifiable" in outcomes and failed
    assert "failed, by a timeout or a crash" in planned(tmp_path, text=text)["generate"].reasons[0]
    (tmp_path / "mended").touch()
    run(tmp_path, text=text, targets=["generate"])
    assert planned(tmp_path, text=text)["generate"].status == "cached"
    found = samples(tmp_path, manifest(tmp_path, text=text).digest)
    assert sum(outcome is Outcome.CORRECT for judged in found.values() for _, outcome in judged) == 8


def test_problems_with_the_same_prompt_share_traces_but_not_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    question = "Compute left to right: 12 + 7 * 3 - 4"
    rows = [{"q": question, "a": "53"}, {"q": question, "a": "54"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = YAML.replace(
        "{family: calc, train: 12}, {family: logic, train: 6}", "{file: q.jsonl, prompt: q, reference: a}"
    )
    text = text.replace("temperature: 1.5", "temperature: 0.5").replace(
        "accepted: 2, most: 6, hopeless: 0.4", "accepted: 1, most: 2"
    )
    run(tmp_path, text=text, targets=["generate"])
    found = samples(tmp_path, manifest(tmp_path, text=text).digest)
    assert [[str(outcome) for _, outcome in judged] for judged in found.values()] == [["correct"], ["incorrect"] * 2]
    assert len(store(tmp_path).rows("SELECT * FROM traces")) == 2


def test_a_verifier_that_fails_on_every_answer_fails_the_stage_until_it_is_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        OWN.replace("            os.kill", "            raise OSError\n            os.kill").replace("% 2", ">= 0")
    )
    text = YAML.replace("{family: calc, train: 12}, {family: logic, train: 6}", "{family: calc, train: 2}")
    text = text.replace("hopeless: 0.4", "verifier: ./own.py:Own")
    for _ in range(2):
        with pytest.raises(PipelineError, match="stage generate: verifier own failed on every answer"):
            run(tmp_path, text=text, targets=["generate"])
    made = len(store(tmp_path).rows("SELECT * FROM traces"))
    (tmp_path / "mended").touch()
    run(tmp_path, text=text, targets=["generate"])
    found = samples(tmp_path, manifest(tmp_path, text=text).digest)
    assert sum(outcome is Outcome.CORRECT for judged in found.values() for _, outcome in judged) >= 4
    assert (
        len(store(tmp_path).rows("SELECT * FROM traces")) == made
    )  # what the verifier failed on is judged, not generated again


NEEDS = """\
from distill.types import Verdict

class Needs:
    name = "needs"
    version = "1"

    def verify(self, problem, trace):
        open("needed").close()
        return Verdict.correct("found")
"""


@pytest.mark.parametrize("stage", ["generate", "verify"])
def test_a_verifier_that_always_fails_fails_the_stage_but_other_verdicts_are_kept(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs.py").write_text(NEEDS)
    (tmp_path / "same.py").write_text(NEEDS.replace('open("needed").close()', "pass"))  # but for the name, another
    rows = [{"q": f"Compute left to right: {n} + 2", "a": str(n + 2)} for n in range(2)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "q.jsonl").write_text(json.dumps({"q": "Compute left to right: 3 + 4", "a": "7"}) + "\n")
    own = "{file: p.jsonl, prompt: q, reference: a, verifier: './needs.py:Needs'}"
    text = YAML.replace(
        "{family: logic, train: 6}", f"{own}, {own.replace('p.jsonl', 'q.jsonl').replace('needs', 'same')}"
    )
    text = text.replace("train: 12", "train: 2").replace("accepted: 2, most: 6, hopeless: 0.4", "accepted: 1, most: 2")
    if stage == "verify":
        text = "".join(line for line in text.splitlines(keepends=True) if "until" not in line)
    with pytest.raises(PipelineError, match=f"stage {stage}: verifier needs failed on every answer .*needed"):
        run(tmp_path, text=text)
    others = "SELECT * FROM verdicts WHERE verifier <> 'needs' ORDER BY verdict_key"
    kept = store(tmp_path).rows(others)
    assert kept and all("failure" not in json.loads(row["evidence"]) for row in kept)
    (tmp_path / "needed").touch()
    run(tmp_path, text=text)
    final = "verifier = 'needs' AND verdict_key NOT LIKE '%-failed'"
    found = store(tmp_path).rows(f"SELECT DISTINCT outcome FROM verdicts WHERE {final}")
    assert found == [{"outcome": "correct"}] and store(tmp_path).rows(others) == kept


def test_what_a_verifier_that_has_judged_before_fails_on_is_unverifiable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs.py").write_text(NEEDS)
    (tmp_path / "needed").touch()
    text = YAML.replace(", {family: logic, train: 6}", "").replace(
        "accepted: 2, most: 6, hopeless: 0.4", "accepted: 1, most: 2, verifier: './needs.py:Needs'"
    )
    for train in (1, 3):
        run(tmp_path, text=text.replace("train: 12", f"train: {train}"), targets=["generate"])
        (tmp_path / "needed").unlink(missing_ok=True)
    found = store(tmp_path).rows("SELECT outcome, count(*) AS n FROM verdicts GROUP BY ALL ORDER BY ALL")
    assert found == [{"outcome": "correct", "n": 1}, {"outcome": "unverifiable", "n": 4}]


@pytest.mark.parametrize("stage", ["generate", "verify"])
def test_a_verifier_that_fails_on_its_only_problem_does_not_stop_others_and_is_asked_twice(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The problem may be broken: its reference is not what this verifier reads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needs.py").write_text(NEEDS)
    (tmp_path / "p.jsonl").write_text(json.dumps({"q": "Compute left to right: 1 + 2", "a": "?"}) + "\n")
    own = "{file: p.jsonl, prompt: q, reference: a, verifier: './needs.py:Needs'}"
    text = YAML.replace("{family: logic, train: 6}", own).replace("train: 12", "train: 2")
    text = text.replace("accepted: 2, most: 6, hopeless: 0.4", "accepted: 1, most: 2")
    if stage == "verify":
        text = "".join(line for line in text.splitlines(keepends=True) if "until" not in line)
    assert stage in run(tmp_path, text=text).ran
    assert stage in run(tmp_path, text=text).ran, "it may have lacked something"
    assert not run(tmp_path, text=text).ran
    rows = store(tmp_path).rows("SELECT * FROM verdicts WHERE verifier = 'needs'")
    assert {row["outcome"] for row in rows} == {"unverifiable"}
    final = [row for row in rows if not row["verdict_key"].endswith("-failed")]
    assert len(rows) == 2 * len(final) > 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", "sk-test-0123456789abcdef")
    with serving() as server:
        yield server


def test_an_api_teacher_is_judged_by_an_api_judge_while_it_samples(server: Server, tmp_path: Path) -> None:
    """The teacher's third answer to each problem is right. The judge, on the same server, recognises it."""

    def act(handler: Handler) -> None:
        prompt = handler.body["messages"][-1]["content"]
        if "VERDICT" in prompt or len(handler.body["messages"]) > 1:
            reply(f"VERDICT: {'correct' if 'the third' in prompt else 'incorrect'}")(handler)
        else:
            with server.lock:
                turn = server.asked[prompt]
            reply("the third" if turn >= 3 else f"number {turn}")(handler)

    server.otherwise = act
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"q": f"{n}?", "a": "x"}) + "\n" for n in range(6)))
    engine = f"{{kind: openai, base_url: '{server.url}', key_from: TEST_KEY, retries: 0, concurrency: 4}}"
    text = f"""\
name: judged
workspace: runs/a
stages:
  problems: {{sources: [{{file: {tmp_path}/p.jsonl, prompt: q, reference: a}}]}}
  generate:
    problems: problems
    teacher: tiny
    engine: {engine}
    until: {{accepted: 1, most: 5, verifier: {{judge: {{model: tiny, engine: {engine}}}}}}}
"""
    run(tmp_path, text=text)
    found = samples(tmp_path, manifest(tmp_path, text=text).digest)
    assert [[outcome for _, outcome in judged] for judged in found.values()] == [
        [Outcome.INCORRECT, Outcome.INCORRECT, Outcome.CORRECT]
    ] * 6
    asked = [count for prompt, count in server.asked.items() if prompt.endswith("?")]
    assert asked == [3] * 6


# -- stopped and killed -------------------------------------------------------------------------


def test_a_run_that_was_asked_to_stop_resumes_where_it_stopped(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appending, "APPEND_SECONDS", 0.0)  # a quick machine would be done before the first append
    spec, asked = load(tmp_path), threading.Event()

    def stopping() -> bool:
        if shards(tmp_path) > 0:
            asked.set()
        return asked.is_set()

    with pytest.raises(Stopped):
        runner.run(spec, Workspace(spec.workspace), RecordingListener(), stopping)
    kept = store(tmp_path).rows("SELECT * FROM traces")
    assert 0 < len(kept) <= manifest(undisturbed).figures["traces"]  # all of them if it is asked late
    forecast = planned(tmp_path)["generate"].forecast
    assert forecast and forecast.done == len(kept)
    run(tmp_path)
    assert contents(tmp_path) == contents(undisturbed)


def durable(directory: Path, table: str) -> set[str]:
    """The trace keys of all rows of ``table`` on the disk, whether ingested into the store or not."""
    found = (directory / "runs/a").glob(f"*/{table}/**/*.parquet")
    return {key for path in found for key in pq.read_table(path, columns=["trace_key"])["trace_key"].to_pylist()}


@pytest.mark.slow
def test_a_run_killed_repeatedly_ends_like_an_undisturbed_one(undisturbed: Path, tmp_path: Path) -> None:
    """Killed while it samples and judges: a trace may be on the disk without its verdict, but never the reverse."""
    load(tmp_path)
    chance = random.Random(0)
    for _ in range(3):
        run = Command(tmp_path, "run", "--pipeline", "p.yaml", "--json", first=KilledAtAppend(chance.randrange(2, 7)))
        output = run.communicate()
        assert run.returncode == -signal.SIGKILL, output
        assert durable(tmp_path, "verdicts") <= durable(tmp_path, "traces")
    finish(tmp_path, "p")
    assert contents(tmp_path) == contents(undisturbed)
    journal = [str(path) for path in (tmp_path / "runs/a/journal/traces").glob("*.parquet")]
    query = "SELECT trace_key FROM read_parquet(?) GROUP BY trace_key HAVING count(DISTINCT created) > 1"
    assert duckdb.execute(query, [journal]).fetchall() == []  # none was generated twice


def shards(directory: Path) -> int:
    found = (directory / "runs/a/shards/traces").glob("*.parquet")
    return sum(not path.name.startswith(TEMPORARY) for path in found)
