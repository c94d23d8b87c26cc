"""Problem families: endless, stable, split by structure, and their verifiers accept their own solutions."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import catalog
from distill.families.base import Family
from distill.families.calc import Calc, slipped
from distill.families.calc import count as chains
from distill.families.code import Code
from distill.families.code import count as functions
from distill.families.logic import Logic
from distill.randomness import generator
from distill.thinking import Response
from distill.types import Outcome, Problem
from pipeline.errors import InputError

FAMILIES: tuple[Family, ...] = (Calc(), Logic(), Code())
EXPECTED_IDS = ["calc/a32a04e4b291", "logic/0546af207fa2", "code/cffafb95b6ee"]
by_name = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
indices = st.integers(0, 10**9)


def judge(problem: Problem, answer: str) -> Outcome:
    """The verdict of the verifier that the problem names."""
    outcome: Outcome = (
        catalog.resolve("verifiers", problem.verifier)().verify(problem, Response("", answer, True)).outcome
    )
    return outcome


@by_name
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), index=indices, split=st.sampled_from(["train", "heldout"]))
def test_a_problem_is_a_pure_function_and_its_solution_is_correct(family: Family, seed: int, index: int, split: str):
    problem = family.generate(seed, index, split)
    assert problem == family.generate(seed, index, split)
    assert (problem.split, problem.source) == (split, family.name)
    assert problem.id.startswith(f"{family.name}/") and problem.structure and problem.difficulty
    assert judge(problem, family.solve(problem).answer) is Outcome.CORRECT


@by_name
@settings(max_examples=60, deadline=None)
@given(index=indices)
def test_a_mutated_answer_is_rejected(family: Family, index: int):
    problem = family.generate(0, index, "train")
    gold = family.solve(problem).answer
    rng = generator("mutate", index)
    digits = [place for place, character in enumerate(gold) if character.isdigit()]
    place = digits[rng.integers(len(digits))]
    base = 2 if family.name == "logic" else 10
    other = str((int(gold[place]) + int(rng.integers(1, base))) % base)
    mutated = gold[:place] + other + gold[place + 1 :]
    if not re.search(r"\b0\d", mutated) or family.name == "logic":
        assert judge(problem, mutated) is Outcome.INCORRECT


@by_name
@settings(max_examples=40, deadline=None)
@given(index=indices)
def test_a_solution_with_a_slip_in_every_line_keeps_its_form(family: Family, index: int):
    problem = family.generate(0, index, "train")
    careful, careless = family.solve(problem), family.solve(problem, 1.0, generator("slips", index))
    assert careless.thinking != careful.thinking
    assert len(careless.thinking.split("\n")) == len(careful.thinking.split("\n"))
    assert re.fullmatch(r"-?\d+|\d+\*x [+-] \d+|-\d+\*x [+-] \d+", careless.answer)


@by_name
def test_splits_share_neither_prompt_nor_structure(family: Family):
    train = [family.generate(seed, index, "train") for seed in (0, 1) for index in range(1500)]
    heldout = [family.generate(seed, index, "heldout") for seed in (0, 1) for index in range(400)]
    for aspect in ("prompt", "structure", "id"):
        assert not {getattr(p, aspect) for p in train} & {getattr(p, aspect) for p in heldout}
    assert len({p.prompt for p in train}) > 0.9 * len(train)


@by_name
def test_ids_and_prompts_correspond_one_to_one(family: Family):
    problems = [family.generate(0, index, "train") for index in range(2000)]
    assert len({p.id for p in problems}) == len({p.prompt for p in problems})


def test_logic_structures_do_not_depend_on_variable_names():
    problem = Logic().generate(0, 5, "heldout")
    assert problem.structure is not None and not re.search(r"\b[abc]\b", problem.structure)


def test_ids_never_change():
    assert [family.generate(0, 0, "train").id for family in FAMILIES] == EXPECTED_IDS


def test_the_families_are_as_large_as_documented():
    assert chains(3) > 1e8 and chains(5) > 1e12
    assert functions() == (5542, 207200)


def test_an_unknown_split_is_named():
    with pytest.raises(InputError, match="'test'"):
        Calc().generate(0, 0, "test")


@given(result=st.integers(-99, 99), index=indices)
def test_a_slip_never_gives_the_right_result(result: int, index: int):
    assert slipped(result, generator("slip", index)) != result


@by_name
def test_the_data_card_agrees_with_the_family(family: Family):
    """Its example is correct, and it names the family's verifier, module and licence."""
    text = (Path(__file__).parents[1] / "data_cards" / f"{family.name}.md").read_text()
    made = family.generate(0, 0, "train")
    prompt, answer = re.search(r"\*\*Example\.\*\* `(.+?)` → `(.+?)`", text).groups()
    reference = (
        prompt.partition(": ")[2] if family.name == "logic" else answer
    )  # the verifier computes the table from the formula
    example = replace(made, prompt=prompt, reference=reference)
    assert judge(example, answer) is Outcome.CORRECT
    assert judge(example, answer.replace(answer[-1], "7" if answer[-1] != "7" else "8")) is not Outcome.CORRECT
    assert f"by the `{made.verifier}` verifier" in text.replace("**Judged by** the", "by the")
    assert f"`distill.families.{family.name}`" in text
    assert made.licence in text
