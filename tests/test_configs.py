"""Every shipped pipeline loads, plans, maps real rows, and says what it does, what it costs and how to launch it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from distill import catalog
from distill.modelspec import EMBEDDED
from distill.store import Store
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.plan import Status, plan
from pipeline.stage import File, marked
from pipeline.workspace import Workspace

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
CONVERSATION = [
    {"role": "user", "content": "What is 6 x 7?"},
    {"role": "assistant", "content": "<think>\nSix sevens.\n</think>\n\n\\boxed{42}"},
]
GSM8K = {"question": "What is 6 x 7?", "answer": "6 x 7 = <<6*7=42>>42\n#### 42"}
CODE = {
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
DATA: dict[str, list[dict[str, Any]]] = {
    "gsm8k_train.jsonl": [GSM8K, {"question": "What is 6 x 8?", "answer": "#### 48"}],
    "gsm8k_test.jsonl": [{"question": "What is 6 x 9?", "answer": "#### 54"}],
    "math500_test.json": [{"problem": "What is $6^2$?", "answer": "36", "level": 1}],
    "code_train.jsonl": [CODE],
    "HumanEval.jsonl.gz": [CODE | {"prompt": 'def double(x):\n    """x + x."""\n'}],
    "openr1_math.parquet": [{"messages": CONVERSATION, "answer": "42"}],
}
"""A few rows of each file that the configs name, in its published form."""


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    lines = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds the user's data files."""
    (tmp_path / "data").mkdir()
    for name, rows in DATA.items():
        write(tmp_path / "data" / name, rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def each_config(test: Any) -> Any:
    return pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)(test)


@each_config
def test_a_config_loads_and_plans(path: Path, data: Path) -> None:
    if "embedded:" in path.read_text() and not (EMBEDDED / "teacher" / "config.json").is_file():
        pytest.skip("the embedded models are not built")
    spec = config.load(path, catalog.stage)
    assert spec.name and spec.workspace == Path("runs") / spec.workspace.name
    plans = plan(spec, Workspace(data / "run"))
    assert [p.spec.name for p in plans] == list(spec.stages)
    assert all(p.status is not Status.CACHED for p in plans)
    forecasts = [p.forecast for p in plans if p.spec.stage.kind in ("problems", "generate", "import", "evaluate")]
    assert all(f is not None and f.total for f in forecasts)


@each_config
def test_a_config_begins_with_what_it_does_costs_and_how_to_launch(path: Path) -> None:
    comment = path.read_text().split("\nname:")[0]
    assert all(line.startswith("#") for line in comment.strip().splitlines())
    for heading in ("What it does:", "What it costs:", "How to launch:", "What to override:"):
        assert f"# {heading}" in comment
    assert "--set" in comment and ("distill run --pipeline configs/" in comment or "make models" in comment)
    assert max(map(len, path.read_text().splitlines())) <= 120


@each_config
def test_the_columns_of_a_config_fit_its_files(path: Path, data: Path) -> None:
    """The stages that read files are really run, on rows in the files' own form."""
    spec = config.load(path, catalog.stage)
    reading = [name for name, stage in spec.stages.items() if any(marked(stage.settings, File))]
    if not reading:
        return
    workspace = Workspace(data / "run")
    runner.run(spec, workspace, Listener(), lambda: False, reading)
    for row in Store(workspace.path).rows("SELECT reference, verifier FROM problems"):
        reference = json.loads(row["reference"]) if row["verifier"] == "code" else row["reference"]
        assert reference in ("42", "48", "54", "36") or set(reference) == {"prompt", "entry_point", "test"}


def test_a_missing_file_is_reported_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = next(path for path in CONFIGS if path.stem == "gsm8k_embedded")
    with pytest.raises(InputError, match=r"gsm8k_embedded\.yaml:\d+: .*data/gsm8k_train\.jsonl: no such file"):
        config.load(path, catalog.stage)


@pytest.mark.slow
def test_a_student_that_does_not_end_its_answers_does_not_stop_the_run(data: Path) -> None:
    """Most of the embedded teacher's answers to such questions are cut off, so the student does not end its own."""
    question = (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. Altogether?"
    )
    write(data / "data/gsm8k_train.jsonl", [{"question": f"{question} {n}", "answer": "#### 72"} for n in range(8)])
    spec = config.load(Path(__file__).parents[1] / "configs/gsm8k_embedded.yaml", catalog.stage)
    runner.run(spec, Workspace(spec.workspace, spec.seed), Listener(), lambda: False, ["sft"])
    assert (spec.workspace / "sft/model/model.safetensors").is_file()


@pytest.mark.parametrize("stage", ["teacher: embedded:teacher", "kind: evaluate, models: {it: embedded:teacher}"])
def test_equal_samples_are_refused_unless_an_endpoint_makes_them(tmp_path: Path, stage: str) -> None:
    """A cold endpoint may well give several answers to one request; our own engines never do."""
    path = tmp_path / "cold.yaml"
    engine = "{kind: openai, base_url: 'http://localhost/v1'}"
    text = "name: cold\nstages:\n  problems: {sources: [{family: calc, train: 1}]}\n"
    text += "  generate: {problems: problems, %s, samples: %d, sampling: {temperature: 0}, engine: %s}\n"
    for samples, kind, why in ((1, "transformers", None), (2, engine, None), (2, "transformers", "set samples: 1")):
        path.write_text(text % (stage, samples, kind))
        if why is None:
            config.load(path, catalog.stage)
        else:
            with pytest.raises(InputError, match=why):
                config.load(path, catalog.stage)
