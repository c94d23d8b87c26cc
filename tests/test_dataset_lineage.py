"""The lineage that an export and a card show, when stages are run again or change nothing."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from distill.cli.main import main
from distill.store import Store
from distill.store.records import kept
from pipeline.manifest import current

ROWS = [{"q": f"How much is {n} and {7 * n}?", "t": "let me see", "a": str(8 * n)} for n in range(1, 6)]
STAGES: dict[str, Any] = {
    "import": {
        "file": "traces.jsonl", "teacher": "r1", "prompt": "q", "thinking": "t", "answer": "a", "reference": "a",
        "licence": "MIT", "source": "sums",
    },
    "curate-traces": {"traces": "import", "near": None},
    "verify": {"traces": "curate-traces"},
    "select": {"verdicts": "verify"},
    "export": {"traces": "select"},
}  # fmt: skip


def distill(where: Path, *arguments: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(where)
        patch.setattr(sys, "argv", ["distill", *arguments, "--pipeline", "p.yaml"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code, err.getvalue()
    return out.getvalue()


@pytest.fixture
def where(tmp_path: Path) -> Path:
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    text = yaml.safe_dump({"name": "p", "workspace": "w", "stages": STAGES}, sort_keys=False)
    (tmp_path / "p.yaml").write_text(text)
    distill(tmp_path, "run")
    return tmp_path


def test_the_lineage_includes_a_curation_that_removed_nothing(where: Path) -> None:
    shown = json.loads(distill(where, "card", "--selection", "select", "--json"))
    assert [stage["stage"] for stage in shown["stages"]] == ["import", "curate-traces", "verify", "select"]


def test_the_lineage_names_the_current_one_of_equal_curations(where: Path) -> None:
    distill(where, "run", "--set", "curate-traces.seed=1")
    distill(where, "run", "--force", "verify")  # with both in the store
    shown = json.loads(distill(where, "card", "--selection", "select", "--json"))
    assert [(stage["stage"], stage["settings"].get("seed")) for stage in shown["stages"]] == [
        ("import", None), ("curate-traces", 0), ("verify", None), ("select", None),
    ]  # fmt: skip


def test_the_card_counts_the_problems_that_are_held_out_now(where: Path) -> None:
    tests = {"kind": "problems", "sources": [{"family": "calc", "heldout": 4}]}
    text = yaml.safe_dump({"name": "p", "workspace": "w", "stages": {**STAGES, "tests": tests}}, sort_keys=False)
    (where / "p.yaml").write_text(text)
    distill(where, "run", "tests")
    distill(where, "run", "tests", "--set", "tests.seed=1")  # other problems: those of before are held out no more
    shown = json.loads(distill(where, "card", "--selection", "select", "--json"))
    assert shown["heldout"] == {"heldout": 4, "shared": 0}


def test_the_card_of_a_whole_store_lists_stages_in_the_order_they_were_made(where: Path) -> None:
    """Including those made with earlier settings of the pipeline."""
    distill(where, "run", "--set", "select.take=3")
    distill(where, "run")
    shown = json.loads(distill(where, "card", "--json"))
    assert [stage["stage"] for stage in shown["stages"]] == [
        "curate-traces", "verify", "select", "export", "select", "export",
    ]  # fmt: skip


def test_curated_traces_can_be_selected_by_their_stage(where: Path) -> None:
    assert json.loads(distill(where, "traces", "export", "out", "--selection", "curate-traces", "--json")) == {
        "traces": len(ROWS),
        "target": "out",
    }


def test_a_changed_licence_is_exported_though_the_kept_traces_are_the_same(where: Path) -> None:
    card = where / "w" / "export" / "README.md"
    assert "MIT" in card.read_text()
    distill(where, "run", "--set", "import.licence=CC0-1.0")
    text = card.read_text()
    assert "CC0-1.0" in text and "MIT" not in text
    shown = json.loads(distill(where, "card", "--selection", "select", "--json"))
    assert [row["correct"] for row in shown["verifiers"]] == [len(ROWS)]


def test_a_stage_is_selected_as_the_last_run_left_it_even_if_it_was_cached(where: Path) -> None:
    def chosen() -> int:
        return int(json.loads(distill(where, "card", "--selection", "select", "--json"))["totals"]["traces"])

    distill(where, "run", "select", "--set", "select.take=2")
    assert chosen() == 2
    distill(where, "run", "select")
    assert chosen() == len(ROWS)
    (where / "w" / "manifests" / "current.json").write_text("[]")
    assert chosen() == 2  # the newest


def test_a_selection_is_shown_with_the_verdicts_it_was_made_from(where: Path) -> None:
    """Not with a second verifier's verdicts or a record of the problems that came later."""
    pipeline = yaml.safe_load((where / "p.yaml").read_text())
    other = {"kind": "verify", "traces": "curate-traces", "verifier": {"regex": {"pattern": "nothing like it"}}}
    pipeline["stages"]["second"] = other
    (where / "p.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    distill(where, "run", "--set", "import.licence=CC0-1.0")
    distill(where, "run")

    def outcomes(stage: str) -> set[tuple[str, str]]:
        listed = distill(where, "traces", "list", "--selection", stage, "--json").splitlines()
        return {(row["outcome"], row["verifier"].split()[0]) for row in map(json.loads, listed)}

    assert outcomes("select") == outcomes("verify") == {("correct", "math")}
    assert outcomes("second") == {("incorrect", "regex")}
    distill(where, "traces", "export", "out.parquet", "--selection", "select", "--outcome", "correct")
    rows = pq.read_table(where / "out.parquet").to_pylist()
    assert [(row["outcome"], row["verifier"], row["licence"]) for row in rows] == [("correct", "math", "MIT")] * len(
        ROWS
    )


def test_kept_traces_carry_the_problem_they_were_judged_by(where: Path) -> None:
    """Not with an earlier record of it, whose reference was corrected since or whose verifier is gone."""
    (where / "mine.py").write_text(
        "from distill.types import Verdict\nclass Mine:\n    name, version = 'mine', '1'\n"
        "    def verify(self, problem, trace):\n        return Verdict.correct('always')\n"
    )
    before = [row | {"a": "1"} for row in ROWS]
    for rows, verifier in ((before, "./mine.py:Mine"), (ROWS, "math")):
        (where / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        distill(where, "run", "select", "--set", f"import.verifier={verifier}", "--set", "select.keep=all")
    standing = current(where / "w", "select")
    assert standing is not None and standing.figures["verifiers"] == ["math"]
    found = kept(Store(where / "w"), standing)
    assert [(row["verifier"], row["reference"]) for row in found] == [("math", row["a"]) for row in ROWS]
