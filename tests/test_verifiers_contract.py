"""What every registered verifier must do. These tests also cover each new line of the catalog.

A verifier without samples in `SAMPLES` fails here: add some (gold answers, and spoiled versions of them).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distill.catalog import VERIFIERS, names, resolve
from distill.types import Outcome, Problem, Verdict
from distill.verifiers import VerifierPool, build, get, judge
from distill.verifiers.run import judge_quickly
from pipeline.errors import InputError

ADD = '{"entry_point": "add", "cases": [{"args": [2, 3], "expected": 5}, {"args": [-1, 1], "expected": 0}]}'

SYLLOGISM = '{"task": "entailment", "premises": ["forall x. P(x) -> Q(x)", "P(a)"], "conclusion": "Q(a)"}'
LEGS = '{"dataset": "leg_counting", "entry": {"question": "How many legs?", "answer": "42", "metadata": {}}}'

SAMPLES: dict[str, list[tuple[str, str, str]]] = {
    # name: (reference, gold answer, spoiled answer)
    "choice": [
        ("B", "The answer is (B).", "The answer is (C)."),
        ("D", r"\boxed{\text{(D)}}", "A, B, C or D"),
        ("A, C", r"\boxed{C \text{ and } A}", "The answer is A."),
    ],
    "code": [
        (ADD, "```python\ndef add(a, b):\n    return a + b\n```", "```python\ndef add(a, b):\n    return a - b\n```")
    ],
    "exact": [("red fox", "red  fox", "red box"), ("x", r"\boxed{x}", r"\boxed{y}")],
    "expression": [("5*x + 2", "2 + 5*x", "5*x - 2")],
    "format": [("", "done", ""), ("", r"\boxed{1}", "<think> again")],
    "logic": [
        (SYLLOGISM, "The answer is True.", "The answer is Uncertain."),
        ('{"task": "formula", "formula": "not (p and q)"}', "not p or not q", "not p and not q"),
        ('{"task": "model", "formulas": ["p xor q"]}', "p = true, q = false", "p = true, q = true"),
    ],
    "math": [
        ("42", r"\boxed{42}", r"\boxed{43}"),
        (r"\frac{1}{2}", "0.5", "0.25"),
        ("1,080", "#### 1080", "#### 1,081"),
        (r"(a+5)(b+2)", r"\boxed{ab + 2a + 5b + 10}", r"\boxed{ab + 2a + 5b}"),
        (r"\sin 2x", r"\boxed{2\sin x\cos x}", r"\boxed{\sin x\cos x}"),
    ],
    "reasoning_gym": [(LEGS, r"\boxed{42}", r"\boxed{43}")],
    "regex": [(r"\d{3} red fox(es)?", r"\boxed{123 red foxes}", r"\boxed{12 red foxes}"), ("a|b", "b", "c")],
    "truth_table": [("a and b", "0001", "0011")],
}

HOSTILE = {
    "nothing": "",
    "NUL": "\x00" * 50,
    "long": "9" * 100_000,
    "long box": r"\boxed{" + "x+" * 50_000 + "}",
    "open braces": "{" * 50_000,
    "open boxes": r"\boxed{" * 2_000,
    "closed braces": "}" * 50_000,
    "nested": "(" * 5_000 + "1" + ")" * 5_000,
    "nested fractions": r"\boxed{" + r"\frac{" * 300 + "1" + "}{2}" * 300 + "}",
    "tower": r"\boxed{9^{9^{9^{9^{9}}}}}",
    "bare tower": "9**9**9**9",
    "factorials": r"\boxed{((10!)!)!}",
    "zero division": r"\boxed{\frac{0}{0}}",
    "dollars": "$" * 100_000,
    "backslashes": "\\" * 100_000,
    "escapes": "\x1b[2J\x1b]0;x\x07",
    "lone surrogate": "\ud800",
    "digits of others": "٤٢ ４２ 𝟜𝟚",
    "commas": r"\boxed{" + "1," * 900 + "}",
    "dunder": "__import__('os').system('true')",
}

BY_NAME = sorted(set(VERIFIERS) - {"judge", "prm"})
"""The judge needs an endpoint or a model, and prm a model: their contracts are tested in other files."""
NEEDS = {"logic": "z3", "reasoning_gym": "reasoning_gym"}
"""The library that a verifier needs; an extra installs it."""
EVERY = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None,
            reason=f"{NEEDS.get(name)} is not installed",
        ),
    )
    for name in BY_NAME
]


def problem(name: str, reference: str) -> Problem:
    return Problem("p", "?", reference, name, "test")


@pytest.mark.parametrize("name", EVERY)
def test_gold_is_accepted_and_spoiled_gold_is_not(name: str) -> None:
    for reference, gold, spoiled in SAMPLES[name]:
        assert judge(build(name), problem(name, reference), gold).outcome is Outcome.CORRECT, gold
        assert judge(build(name), problem(name, reference), spoiled).outcome is Outcome.INCORRECT, spoiled


@pytest.fixture(scope="module")
def pool() -> VerifierPool:
    with VerifierPool(workers=1) as pool:
        yield pool


@pytest.mark.parametrize("name", EVERY)
def test_hostile_text_gets_a_verdict_and_never_a_reward(name: str, pool: VerifierPool) -> None:
    reference = SAMPLES[name][0][0]
    spec = {"code": {"cpu_seconds": 1, "wall_seconds": 5}} if name == "code" else name
    verdicts = dict(pool.verify_many((what, spec, problem(name, reference), text) for what, text in HOSTILE.items()))
    assert verdicts.keys() == HOSTILE.keys()
    for what, verdict in verdicts.items():
        assert verdict.outcome is not Outcome.CORRECT or name == "format", (what, verdict)
        assert (verdict.verifier, verdict.version) == (name, build(name).version)
        assert verdict.reason and "\n" not in verdict.reason
        assert (verdict.score is None) == (verdict.outcome is Outcome.UNVERIFIABLE)


@pytest.mark.parametrize("name", [every for every in EVERY if every.values[0] not in ("format", "exact", "regex")])
def test_an_unreadable_reference_never_scores(name: str, pool: VerifierPool) -> None:
    for reference in ("", "}{", "\x00"):
        assert pool.verify(name, problem(name, reference), reference).outcome is Outcome.UNVERIFIABLE


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_gives_the_verdicts_of_single_calls(name: str, pool: VerifierPool) -> None:
    items = [(a, name, problem(name, r), a) for r, gold, spoiled in SAMPLES[name] for a in (gold, spoiled)]
    batch = {key: steady(verdict) for key, verdict in pool.verify_many(items)}
    assert batch == {key: steady(judge(build(name), p, a)) for key, _, p, a in items}


@pytest.mark.parametrize("name", EVERY)
def test_the_quick_part_gives_the_whole_verifier_s_verdict_or_none(name: str) -> None:
    verifier = build(name)
    for reference, gold, spoiled in SAMPLES[name]:
        for answer in (gold, spoiled):
            quick = judge_quickly(verifier, problem(name, reference), answer)
            whole = judge(verifier, problem(name, reference), answer)
            assert quick is None or steady(quick) == steady(whole)


def steady(verdict: Verdict) -> Verdict:
    """The verdict without what may differ from run to run."""
    evidence = {key: value for key, value in verdict.evidence.items() if key != "usage"}
    return replace(verdict, seconds=0.0, evidence=evidence)


def test_importing_the_verifiers_loads_no_torch() -> None:
    code = "import sys, distill.verifiers as v; [v.build(n) for n in sys.argv[1:]]; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *BY_NAME], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


def test_importing_the_verifiers_loads_no_pydantic_duckdb_or_numpy() -> None:
    code = "import sys, distill.verifiers; print([n for n in ('pydantic', 'duckdb', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_catalog_finds_names_and_suggests_near_ones() -> None:
    assert "math" in names("verifiers") and resolve("verifiers", "math").name == "math"
    with pytest.raises(InputError, match="did you mean 'math'"):
        resolve("verifiers", "mth")
    with pytest.raises(InputError, match="valid: "):
        resolve("verifiers", "zzzzzz")
    with pytest.raises(InputError, match="cannot be loaded"):
        resolve("verifiers", "no_such_module:Verifier")


def test_settings_reach_the_verifier_and_wrong_ones_are_named() -> None:
    boxed = get("format", {"boxed": True})
    assert judge(boxed, problem("format", ""), "5").outcome is Outcome.INCORRECT
    with pytest.raises(InputError, match="boxes"):
        build({"format": {"boxes": True}})


RIGHT, WRONG, UNSURE = r"\boxed{42}", r"\boxed{43}", r"\boxed{42 \text{ cows}}"


@pytest.mark.parametrize(
    ("spec", "answer", "outcome", "score"),
    [
        ({"all": ["math", "format"]}, RIGHT, "correct", 1.0),
        ({"all": ["math", "format"]}, WRONG, "incorrect", 0.0),
        ({"all": ["math", "exact"]}, UNSURE, "incorrect", 0.0),
        ({"all": ["math", "format"]}, UNSURE, "unverifiable", None),
        ({"any": ["math", "format"]}, WRONG, "correct", 1.0),
        ({"any": ["math", "exact"]}, WRONG, "incorrect", 0.0),
        ({"any": ["math", "exact"]}, UNSURE, "unverifiable", None),
        ({"any": [{"all": ["math", "format"]}, "exact"]}, RIGHT, "correct", 1.0),
        ({"weighted": [{"of": "math", "weight": 3}, {"of": "format", "weight": 1}]}, RIGHT, "correct", 1.0),
        ({"weighted": [{"of": "math", "weight": 3}, {"of": "format", "weight": 1}]}, WRONG, "incorrect", 0.25),
        ({"weighted": [{"of": "math", "weight": 3}, {"of": "format", "weight": 1}]}, UNSURE, "unverifiable", None),
        ({"weighted": [{"of": "math", "weight": 0}, {"of": "format", "weight": 1}]}, UNSURE, "correct", 1.0),
    ],
)
def test_compositions_combine_outcomes_and_scores(
    spec: dict[str, object], answer: str, outcome: str, score: float | None
) -> None:
    verifier = build(spec)
    verdict = judge(verifier, problem("math", "42 cm"), answer)
    assert (verdict.outcome, verdict.score) == (outcome, score), verdict
    assert len(verdict.evidence["parts"]) == 2 and verdict.verifier == verifier.name


@pytest.mark.parametrize("spec", [{}, {"all": []}, {"all": "math"}, {"a": {}, "b": {}}, {"weighted": ["math"]}, 3])
def test_a_malformed_spec_is_an_input_error(spec: object) -> None:
    with pytest.raises(InputError):
        build(spec)  # type: ignore[arg-type]
