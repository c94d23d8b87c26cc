"""Stages with extreme amounts of input: nothing at all, and more than is held in memory at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill import catalog, verification
from distill.store import Store
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.workspace import Workspace

ROWS = [{"q": f"How much is {n} and {7 * n}?", "t": f"{n} + {7 * n}", "a": str(8 * n)} for n in range(1, 8)]


def run(where: Path, stages: dict[str, Any]) -> dict[str, Any]:
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (where / "p.yaml").write_text(yaml.safe_dump({"name": "p", "workspace": str(where / "w"), "stages": stages}))
    spec = config.load(where / "p.yaml", catalog.stage)
    return dict(runner.run(spec, Workspace(where / "w"), Listener(), lambda: False)[-1].manifest.figures)


def test_an_empty_split_is_reported_and_does_not_count_as_done(tmp_path: Path) -> None:
    problems = {"sources": [{"file": str(tmp_path / "rows.jsonl"), "prompt": "q", "reference": "a"}]}
    generate = {"problems": "problems", "teacher": "embedded:teacher", "split": "heldout"}
    with pytest.raises(InputError, match="holds no heldout problem to answer"):
        run(tmp_path, {"problems": problems, "generate": generate})


def test_traces_read_in_portions_are_judged_by_their_own_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PORTION", 2)
    traces = {
        "file": str(tmp_path / "rows.jsonl"), "teacher": "t", "prompt": "q", "thinking": "t", "answer": "a",
        "reference": "a",
    }  # fmt: skip
    figures = run(tmp_path, {"import": traces, "verify": {"traces": "import"}})
    assert figures["members"] == figures["correct"] == len(ROWS)
    counted = Store(tmp_path / "w").rows(
        "SELECT count(DISTINCT trace_key) AS n FROM verdicts WHERE outcome = 'correct'"
    )
    assert counted == [{"n": len(ROWS)}]
