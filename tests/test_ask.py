"""`distill ask`: how long the thinking may and must be, and what is shown of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.cli import ask as asking
from distill.cli.options import Effort
from distill.types import ThinkingBudget
from pipeline.errors import InputError

QUESTION = "Compute left to right: 4 + 32 - 10 - 1 * 3 + 13"
PIPELINE = "name: p\nstages:\n  problems: {sources: [{family: calc, train: 2}]}\n"


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    (tmp_path / "p.yaml").write_text(PIPELINE)

    def ask(budget: int | None = None, effort: Effort | None = None, force: int = 0, as_json: bool = True) -> Any:
        asking.ask(
            QUESTION,
            "embedded:teacher",
            tmp_path / "p.yaml",
            None,
            not as_json,
            0.0,
            96,
            budget,
            effort,
            force,
            0,
            as_json,
        )
        said = capsys.readouterr().out
        return json.loads(said) if as_json else said

    return ask


def test_a_budget_ends_the_thinking_and_an_answer_is_given_all_the_same(ask: Any) -> None:
    free, capped = ask(), ask(budget=8)
    assert free["answer"] and free["thinking_tokens"] > 12
    assert capped["closed"] and capped["answer"] and len(capped["thinking"].split()) <= 8
    assert free["thinking"].startswith(capped["thinking"])


def test_forced_thinking_goes_on(ask: Any) -> None:
    free = ask()
    longer = ask(force=free["thinking_tokens"] + 10)
    assert longer["thinking_tokens"] > free["thinking_tokens"] and "Wait" in longer["thinking"]


def test_the_thinking_is_hidden_unless_asked_for(ask: Any) -> None:
    told = ask()
    assert told["thinking"] in ask(as_json=False) and told["answer"] in ask(as_json=False)


def test_effort_is_a_share_of_what_there_is() -> None:
    bounds = {effort: asking.bounds(512, None, effort, 0) for effort in Effort}
    assert bounds == {Effort.LOW: ThinkingBudget(64), Effort.MEDIUM: ThinkingBudget(256), Effort.HIGH: None}
    assert asking.bounds(512, None, None, 0) is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((512, 8, Effort.LOW, 0), "give one of them"),
        ((512, 8, None, 9), "--force-budget 9 is more thinking than the 8 tokens there may be"),
        ((512, 512, None, 0), "512 tokens of thinking leave no room for the answer in --max-tokens 512"),
        ((512, None, Effort.HIGH, 600), "600 tokens of thinking leave no room"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(asked: tuple[Any, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        asking.bounds(*asked)
