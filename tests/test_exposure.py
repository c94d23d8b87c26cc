"""Contamination of a score: evaluation problems that are planted in a student's training data are found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import run_pipeline

from distill import catalog
from distill.evaluation import exposure
from distill.store import Store
from distill.types import Problem
from pipeline import manifest as manifests

FRAME = "Answer briefly and show your work. "
LONG = "A farmer has {} hens and every hen lays {} eggs a week of which he sells all but five at the market"


def asked(key: str, prompt: str) -> tuple[str, Problem]:
    return key, Problem(key, prompt, "", "exact", "s")


def taught(*prompts: str) -> list[dict[str, Any]]:
    return [{"problem_key": f"t{i}", "source": "s", "prompt": prompt} for i, prompt in enumerate(prompts)]


def test_a_run_of_words_in_a_training_prompt_is_found_but_a_shared_frame_is_not() -> None:
    others = [FRAME + f"How much is {n} times {n} and then some more" for n in range(10, 22)]
    tasks = [
        asked("copied", FRAME + LONG.format("seven", "six")),
        asked("clean", FRAME + LONG.format("nine", "four").replace("hen", "duck").replace("market", "fair")),
    ]
    found = exposure.overlaps(taught(*others, FRAME + "Now: " + LONG.format("seven", "six")), tasks, 13, 0.0)
    assert set(found) == {"copied"}
    assert found["copied"].taught == "t12" and found["copied"].share == 1.0
    assert found["copied"].ngram.startswith("a farmer has seven hens")


def test_overlap_must_reach_the_share() -> None:
    half = LONG.format("seven", "six").rpartition(" of which")[0] + " of which none is sold to anybody at any price"
    tasks = [asked("a", LONG.format("seven", "six"))]
    assert 0 < exposure.overlaps(taught(half), tasks, 8, 0.0)["a"].share < 0.9
    assert not exposure.overlaps(taught(half), tasks, 8, 0.9)


PIPELINE = """\
name: planted
stages:
  problems:
    sources:
      - {{file: taught.jsonl, prompt: question, reference: answer, verifier: math}}
      - {{file: asked.jsonl, prompt: question, reference: answer, verifier: math, split: heldout}}
  generate: {{problems: problems, teacher: models/teacher}}
  verify: {{traces: generate, workers: 1}}
  select: {{verdicts: verify, keep: all}}
  sft: {{data: select, student: models/base}}
  evaluate: {{problems: problems, models: {{base: models/base, sft: "stage:sft"}}, samples: 2, workers: 1}}
  search: {{problems: problems, model: "stage:sft", strategies: [majority], budgets: [2], workers: 1}}
  report: {{evaluation: evaluate, search: search, training: [sft]}}
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve problems to learn from and eight to evaluate on. Two of the eight are also trained on, with other
    spacing, as a problems stage refuses the same text on both sides."""
    directory = tmp_path_factory.mktemp("planted")
    calc = catalog.resolve("families", "calc")()
    problems = {split: [calc.generate(0, i, split) for i in range(12)] for split in ("train", "heldout")}
    held = problems["heldout"][:8]
    copies = [(p.prompt.replace(": ", ":  "), p.reference) for p in held[:2]]
    lines = [(p.prompt, p.reference) for p in problems["train"]] + copies
    for name, rows in (("taught", lines), ("asked", [(p.prompt, p.reference) for p in held])):
        text = "\n".join(json.dumps({"question": q, "answer": a}) for q, a in rows)
        (directory / f"{name}.jsonl").write_text(text)
    return run_pipeline(directory, text=PIPELINE)


def test_a_planted_duplicate_is_reported_beside_the_score(planted: Path) -> None:
    report = json.loads((planted / "report.json").read_text())
    assert report["base"]["contamination"] is None
    found = report["sft"]["contamination"]
    assert (found["problems"], found["share"]) == (2, 0.25)
    assert 12 <= found["trained_on"] <= 14  # a cut trace teaches nothing
    assert found["contaminated"]["problems"] == 2 and found["clean"]["problems"] == 6
    parts = [found[name]["pass_at_1"] * found[name]["problems"] for name in ("clean", "contaminated")]
    assert sum(parts) / 8 == pytest.approx(report["sft"]["pass_at_1"], abs=1e-3)
    page = (planted / "report.html").read_text()
    assert "2 of 8 problems (25.0%) overlap with what sft trained on" in " ".join(page.split())


def test_a_planted_duplicate_is_reported_beside_the_curves_of_a_search(planted: Path) -> None:
    report = json.loads((planted / "report.json").read_text())
    found, (point,) = report["search"]["contamination"], report["search"]["strategies"]["majority"]["points"]
    assert (found["problems"], found["share"], found["trained_by"]) == (2, 0.25, ["sft"])
    assert 0 <= 8 * point["accuracy"] - 6 * point["clean_accuracy"] <= 2 + 1e-3
    assert "of which 2 (25.0%) overlap with what sft trained on" in " ".join(
        (planted / "report.html").read_text().split()
    )


def test_the_evidence_names_both_problems(planted: Path) -> None:
    rows = Store(planted).rows(
        "SELECT e.label, a.prompt AS asked, t.prompt AS taught, e.share FROM exposure e "
        "JOIN problems a USING (problem_key) JOIN problems t ON t.problem_key = e.taught_key"
    )
    assert sorted(row["label"] for row in rows) == ["model", "model", "sft", "sft"]  # from search and from evaluate
    assert all(row["asked"].split() == row["taught"].split() and row["share"] == 1.0 for row in rows)


def test_a_stage_without_a_record_of_its_data_is_reported_as_unrecorded(planted: Path) -> None:
    sft = manifests.current(planted, "sft")
    assert sft
    grown = replace(sft, stage="pretrain", identity=replace(sft.identity, inputs={}))
    found = exposure.of_student(Store(planted), planted, grown, [asked("a", LONG)], 13, 0.0)
    assert (found.stages, found.unrecorded, found.taught) == ((), ("pretrain",), 0)
    known = exposure.of_student(Store(planted), planted, sft, [asked("a", LONG)], 13, 0.0)
    assert known.stages == ("sft",) and not known.unrecorded
