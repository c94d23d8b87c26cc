"""What a step is: spans that give the text back, tags that belong to no step, and each rule on text of its kind."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.prm.scorer import aggregate
from distill.steps import split
from pipeline.errors import InputError

RESPONSE = "<think>\n12 + 7 = 19\n19 - 4 = 15\n</think>\n\n15"


def texts(text: str, rule: str, **more: object) -> list[str]:
    return [step.text for step in split(text, rule, **more)]  # type: ignore[arg-type]


def test_lines_are_steps_and_tags_are_not() -> None:
    assert texts(RESPONSE, "line") == ["12 + 7 = 19", "19 - 4 = 15", "15"]
    assert texts("<think>a</think>b", "line") == ["a", "b"]
    assert split("<think>\n \n</think>\n", "line") == []


def test_a_partial_response_has_the_steps_written_so_far() -> None:
    whole = split(RESPONSE, "line")
    for end in range(len(RESPONSE)):
        begun = split(RESPONSE[:end], "line")
        complete = [step for step in whole if step.end <= end]
        assert begun[: len(complete)] == complete
        assert len(begun) <= len(complete) + 1


def test_paragraphs_are_steps() -> None:
    assert texts("<think>\none\ntwo\n  \nthree\n</think>\n\nfour\n\nfive", "paragraph") == [
        "one\ntwo", "three", "four", "five",
    ]  # fmt: skip


def test_numbered_steps_begin_at_numbers_and_the_answer_is_its_own_step() -> None:
    text = "<think>\nLet us see.\n1. Take 3.14 of it\nmore\n2) Then\n**Step 3:** so\n</think>\n\n42"
    assert texts(text, "numbered") == ["Let us see.", "1. Take 3.14 of it\nmore", "2) Then", "**Step 3:** so", "42"]
    assert texts("<think>\n3.5 is x\nno number\n</think>\n7", "numbered") == ["3.5 is x\nno number", "7"]


def test_tokens_are_counted_within_thinking_and_answer() -> None:
    spans = [(0, 7), *((n, n + 1) for n in range(7, 12)), (12, 20), (20, 21), (21, 22)]
    text = "<think>abcde</think>xy"
    assert texts(text, "tokens:2", tokens=spans) == ["ab", "cd", "e", "xy"]
    with pytest.raises(InputError, match="spans of the tokens"):
        split(text, "tokens:2")


@pytest.mark.parametrize("rule", ["lines", "tokens", "tokens:0", "tokens:x", ""])
def test_an_unknown_rule_is_reported(rule: str) -> None:
    with pytest.raises(InputError, match="there are: line, paragraph, numbered, tokens:N"):
        split("x", rule)


@given(st.text(alphabet="ab1. \n\t", max_size=40), st.sampled_from(["line", "paragraph", "numbered"]))
def test_steps_are_in_order_and_cover_everything_but_white_space(text: str, rule: str) -> None:
    steps = split(text, rule)
    assert all(text[step.start : step.end] == step.text == step.text.strip() != "" for step in steps)
    assert all(a.end <= b.start for a, b in pairwise(steps))
    assert "".join("".join(step.text for step in steps).split()) == "".join(text.split())


def test_aggregates_of_step_scores() -> None:
    steps = [0.5, 0.25, 0.8]
    assert aggregate(steps) == pytest.approx(0.1)
    assert (aggregate(steps, "minimum"), aggregate(steps, "last"), aggregate([], "minimum")) == (0.25, 0.8, 0.0)
    with pytest.raises(InputError, match="there are: product, minimum, last"):
        aggregate(steps, "mean")  # type: ignore[arg-type]
