"""Thinking budgets in evaluation, with the embedded teacher: what is kept, what is cut; nothing is sampled twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distill import budgets, catalog
from distill.evaluation import payoff
from distill.generation import wanted
from distill.store import Store
from distill.types import Sampling, ThinkingBudget
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.workspace import Workspace

THOUGHT = {"thinking": "12 + 7 = 19\n19 * 3 = 57", "thinking_tokens": 20, "opened": False}


def wanted_sample() -> Any:
    problem = catalog.resolve("families", "calc")().generate(0, 0, "heldout")
    return wanted([("p", problem)], "model", Sampling(seed=3), 1)[0]


def test_thinking_within_the_budget_is_left_as_it_is() -> None:
    assert budgets.within(wanted_sample(), THOUGHT, ThinkingBudget(20), "model") is not None
    assert budgets.within(own := wanted_sample(), THOUGHT, ThinkingBudget(20), "model") is own


def test_longer_thinking_is_cut_between_words_and_closed() -> None:
    cut = budgets.within(wanted_sample(), THOUGHT, ThinkingBudget(10), "model")
    assert cut.asked.prefix == "<think>\n12 + 7 = 19\n</think>\n\n" and cut.asked.budget == ThinkingBudget(10)
    assert cut.key != wanted_sample().key and cut.sample_index == wanted_sample().sample_index
    assert (
        budgets.within(wanted_sample(), THOUGHT, ThinkingBudget(0), "model").asked.prefix == "<think>\n\n</think>\n\n"
    )
    opened = budgets.within(wanted_sample(), {**THOUGHT, "opened": True}, ThinkingBudget(10), "model")
    assert opened.asked.prefix == "12 + 7 = 19\n</think>\n\n"


@pytest.mark.parametrize(
    ("text", "share", "kept"),
    [("one two three", 0.5, "one"), ("one two three", 8 / 13, "one two"), ("unspaced", 0.5, ""), ("", 0.0, "")],
)
def test_a_text_is_cut_between_words(text: str, share: float, kept: str) -> None:
    assert budgets.cut(text, share) == kept


def run(where: Path, samples: int = 2, family: str = "calc", **evaluate: Any) -> dict[str, Any]:
    stages = {
        "problems": {"sources": [{"family": family, "train": 1, "heldout": 6}]},
        "evaluate": {
            "problems": "problems", "models": {"teacher": "embedded:teacher"}, "samples": samples, "greedy": False,
            "engine": {"kind": "transformers", "workers": 1}, "sampling": {"max_tokens": 96}, "workers": 1, **evaluate,
        },
    }  # fmt: skip
    (where / "p.yaml").write_text(yaml.safe_dump({"name": "p", "workspace": str(where / "w"), "stages": stages}))
    spec = config.load(where / "p.yaml", catalog.stage)
    return dict(runner.run(spec, Workspace(where / "w"), Listener(), lambda: False)[-1].manifest.figures)


def test_a_budget_curve_samples_an_answer_to_each_cut_response_only_once(tmp_path: Path) -> None:
    figures = run(tmp_path, budgets=[0, 24, 90])["subjects"]["teacher"]
    points = {at["budget"]: at for at in figures["by_budget"]}
    assert points[0]["new"] == 12 and 0 < points[24]["new"] <= 12 and points[90]["new"] == 0
    assert points[90]["pass_at_1"] == points[None]["pass_at_1"] > points[0]["pass_at_1"]
    rows = Store(tmp_path / "w").rows("SELECT budget, thinking_tokens, answer FROM traces WHERE budget IS NOT NULL")
    assert len(rows) == points[0]["new"] + points[24]["new"] and all(row["answer"] for row in rows)
    closing = 6  # the tokens that close the thinking count as thinking
    assert all(row["thinking_tokens"] <= 24 + closing for row in rows if '"most":24' in row["budget"].replace(" ", ""))
    run(tmp_path, budgets=[0, 24])  # fewer budgets sample nothing more and change no verdict
    assert len(Store(tmp_path / "w").rows("SELECT 1 FROM traces")) == 12 + len(rows)


def test_an_answer_after_more_thinking_than_the_budget_is_wrong(tmp_path: Path) -> None:
    """The teacher often thinks on behind the closing, and closes its thinking again. Here every answer is accepted."""
    figures = run(tmp_path, 4, "logic", budgets=[8], verifier={"regex": {"pattern": ".+", "whole": True}})
    point = figures["subjects"]["teacher"]["by_budget"][0]
    rows = Store(tmp_path / "w").rows("SELECT thinking_tokens, answer FROM traces WHERE budget IS NOT NULL")
    closing = 6
    over = [row for row in rows if row["thinking_tokens"] > 8 + closing and row["answer"]]
    assert len(rows) == 24 and 0 < len(over) == point["over"] < 24
    assert point["pass_at_1"] == round(1 - len(over) / 24, 4)


def test_thinking_is_compared_with_none_on_the_problems_on_which_both_could_be_judged() -> None:
    def rows(**outcomes: str) -> list[dict[str, Any]]:
        row = {"source": "calc", "difficulty": None, "tokens": 9, "finish": "stop", "closed": True, "answer": "7"}
        return [{**row, "problem_key": key, "outcome": outcome} for key, outcome in outcomes.items()]

    thinking, without = rows(a="correct", b="unverifiable"), rows(a="incorrect", b="correct")
    (whole, *_) = payoff.against_none(thinking, without)
    assert (whole["problems"], whole["thinking"], whole["without"], whole["difference"]) == (1, 1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("thinking", "went_on"),
    [
        ("1 + 1", False),
        ("1 +\n</think>\n\n<think>", False),
        ("1 +\nTime is up.\n</think>\n\nThe answer is <think>\nTime is up.", False),
        ("1 +\n</think>\n\n1 = 2", True),
        ("1 +\n</think>\n\n<think>\n1 = 2", True),
    ],
)
def test_thinking_on_is_told_from_opening_what_the_engine_closes(thinking: str, went_on: bool) -> None:
    closing = "\nTime is up.\n</think>\n\nThe answer is "
    assert budgets.thought_on(thinking, closing if "Time" in thinking else "\n</think>\n\n") is went_on


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"budgets": [8, 8]}, "budgets: must be in rising order, each once"),
        ({"budgets": [0, 96]}, "96 tokens of thinking leave no room for the answer"),
        ({"budgets": [8], "prompting": {"prefill": "<think>\nSo"}}, "exclude each other"),
        ({"budgets": [8], "thinking": {"budget": 8}}, "must be below thinking.budget"),
        (
            {"budgets": [8], "engine": {"kind": "openai", "base_url": "http://localhost/v1"}},
            "budgets: dialect openai cannot continue a prefilled response",
        ),
    ],
)
def test_impossible_budgets_are_refused_when_the_yaml_is_read(
    tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        run(tmp_path, **settings)
