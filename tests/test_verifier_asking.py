"""Opened verifiers in the pool: asked once, after the rules, and only where they can change the outcome."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from asked_verifiers import Oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.types import Outcome, Problem
from distill.verifiers import VerifierPool, asking, build, judge
from pipeline.errors import PipelineError

PROBLEM = Problem("p", "?", "42", "math", "test")
NAMES = "abcd"


def oracle(name: str) -> dict[str, Any]:
    return {"asked_verifiers:Oracle": {"of": name}}


def rule(name: str) -> dict[str, Any]:
    return {"asked_verifiers:Rule": {"of": name}}


def saying(**outcomes: str) -> str:
    return json.dumps(outcomes)


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=1) as pool:
        yield pool


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    Oracle.asked.clear()


leaves = st.sampled_from(NAMES).flatmap(lambda name: st.sampled_from([oracle(name), rule(name)]))
specs = st.recursive(
    leaves,
    lambda parts: (
        st.lists(parts, min_size=1, max_size=3).flatmap(lambda of: st.sampled_from([{"all": of}, {"any": of}]))
        | st.lists(st.fixed_dictionaries({"of": parts, "weight": st.sampled_from([0, 1, 2.5])}), min_size=1, max_size=3)
        .filter(lambda of: any(part["weight"] for part in of))
        .map(lambda of: {"weighted": of})
    ),
    max_leaves=6,
)
outcomes = st.fixed_dictionaries({name: st.sampled_from([str(outcome) for outcome in Outcome]) for name in NAMES})


@settings(max_examples=60, deadline=None)
@given(spec=specs, answers=st.lists(outcomes, min_size=1, max_size=6))
def test_skipped_questions_would_not_have_changed_the_verdict(
    pool: VerifierPool, spec: dict[str, Any], answers: list[dict[str, str]]
) -> None:
    texts = list(map(json.dumps, answers))
    verdicts = dict(pool.verify_many((n, spec, PROBLEM, text) for n, text in enumerate(texts)))
    assert verdicts.keys() == set(range(len(texts)))
    for n, text in enumerate(texts):
        whole = judge(build(spec), PROBLEM, text)  # every part, in this process
        assert (verdicts[n].outcome, verdicts[n].score) == (whole.outcome, whole.score)
        assert (verdicts[n].verifier, verdicts[n].version) == (whole.verifier, whole.version)
        assert verdicts[n].evidence["judged"] == "the text after thinking"


@pytest.mark.parametrize(
    ("spec", "answer", "asked"),
    [
        ({"all": [rule("a"), oracle("b")]}, saying(a="incorrect", b="correct"), []),
        ({"all": [rule("a"), oracle("b")]}, saying(a="correct", b="correct"), ["b"]),
        ({"all": [oracle("b"), rule("a")]}, saying(a="incorrect", b="correct"), []),
        ({"all": [rule("a"), oracle("b")]}, saying(a="unverifiable", b="incorrect"), ["b"]),
        ({"any": [rule("a"), oracle("b")]}, saying(a="correct", b="incorrect"), []),
        ({"any": [rule("a"), oracle("b")]}, saying(a="incorrect", b="correct"), ["b"]),
        ({"all": [oracle("a"), oracle("b")]}, saying(a="incorrect", b="correct"), ["a"]),
        ({"all": [oracle("a"), oracle("b")]}, saying(a="correct", b="correct"), ["a", "b"]),
        ({"any": [{"all": [rule("a"), oracle("b")]}, rule("c")]}, saying(a="correct", b="correct", c="correct"), []),
        ({"weighted": [{"of": rule("a"), "weight": 1}, {"of": oracle("b"), "weight": 0}]},
         saying(a="correct", b="incorrect"), []),
        ({"weighted": [{"of": rule("a"), "weight": 1}, {"of": oracle("b"), "weight": 1}]},
         saying(a="unverifiable", b="correct"), []),
    ],
)  # fmt: skip
def test_a_judge_is_asked_only_where_the_rules_do_not_decide(
    pool: VerifierPool, spec: dict[str, Any], answer: str, asked: list[str]
) -> None:
    verdict = pool.verify(spec, PROBLEM, answer)
    assert [name for name, _ in Oracle.asked] == asked
    assert ('"not asked"' in json.dumps(verdict.evidence)) == (len(asked) < json.dumps(spec).count("Oracle"))


def test_any_number_of_items_is_asked_in_windows(pool: VerifierPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WINDOW", 4)
    for count in (0, 3, 4, 9):
        both = [oracle("a"), "exact"]
        items = [(n, both[n % 3 == 2], PROBLEM, saying(a="correct", n=str(n))) for n in range(count)]
        assert dict(pool.verify_many(items)).keys() == set(range(count))


def test_nothing_is_asked_after_a_stop(pool: VerifierPool) -> None:
    items = [(n, oracle("a"), PROBLEM, saying(a="correct", n=str(n))) for n in range(10)]
    verdicts = dict(pool.verify_many(items, stopping=lambda: len(Oracle.asked) >= 3))
    assert len(verdicts) == len(Oracle.asked) == 3


def test_a_bug_in_a_judge_is_unverifiable(pool: VerifierPool) -> None:
    answers = [saying(a="correct"), "break", saying(a="incorrect")]
    verdicts = dict(pool.verify_many((n, oracle("a"), PROBLEM, text) for n, text in enumerate(answers)))
    assert [str(verdicts[n].outcome) for n in range(3)] == ["unverifiable", "unverifiable", "incorrect"]
    assert "ValueError: broken" in verdicts[1].reason


def test_a_verifier_is_opened_once_and_closed_with_the_pool() -> None:
    before = Oracle.closed
    with VerifierPool(workers=1) as pool:
        for _ in range(3):
            pool.verify(oracle("a"), PROBLEM, saying(a="correct"))
    assert Oracle.closed == before + 1
    with pytest.raises(PipelineError, match="closed"):
        pool.verify(oracle("a"), PROBLEM, saying(a="correct"))
