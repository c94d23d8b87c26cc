"""reasoning-gym's scorers as a verifier, and its entries as problems. Skipped without the library."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (extra: reasoning-gym)")
import reasoning_gym
from reasoning_gym.factory import DATASETS

from distill import catalog
from distill.sources import puzzles
from distill.store import Store
from distill.store.records import problem_of
from distill.types import Outcome, Problem, Verdict
from distill.verifiers import VerifierPool, build, judge
from distill.verifiers.reasoning_gym import EVALUATED, TRUSTED_ENTRIES, read_reference, reference_of
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.workspace import Workspace

CORRECT, INCORRECT, UNVERIFIABLE = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNVERIFIABLE

NO_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""The library gives no answers for these, so nothing shows whether their scorers work."""
BAD_SCORER = {"game_of_life_halting"}
"""Its scorer reads any text as "True"."""
NOT_ALONE = {"composite"}
"""Made of other data sets."""
SLOW = {"sokoban", "knight_swap"}
"""Each entry takes seconds of CPU to make; these were tried once by hand."""


def problem(dataset: str, entry: dict[str, Any]) -> Problem:
    return Problem("p", entry["question"], reference_of(dataset, entry), "reasoning_gym", "test")


def verdict(dataset: str, entry: dict[str, Any], answer: str, **settings: Any) -> Verdict:
    return judge(build({"reasoning_gym": settings}), problem(dataset, entry), answer)


def entry(dataset: str, index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = reasoning_gym.create_dataset(dataset, seed=3, size=20)[index]
    return found


@pytest.fixture(scope="module")
def entries() -> dict[str, dict[str, Any]]:
    return {name: entry(name) for name in sorted(DATASETS.keys() - NOT_ALONE - SLOW)}


def test_every_data_set_accepts_its_own_answer_and_rejects_nonsense(entries: dict[str, dict[str, Any]]) -> None:
    answers = ("", "   ", "no idea", "~~~~", "((((", "\x00", "{}")
    items: list[tuple[tuple[str, str], str, Problem, str]] = []
    for name, found in entries.items():
        for answer in (str(found["answer"]), *answers):
            items.append(((name, answer), "reasoning_gym", problem(name, found), answer))
    with VerifierPool(workers=1) as pool:
        outcomes = {key: given.outcome for key, given in pool.verify_many(items)}
        assert pool.restarts == 0
    wrongly = {key for key, outcome in outcomes.items() if outcome is CORRECT and key[1] in answers}
    refused = {name for name, found in entries.items() if outcomes[name, str(found["answer"])] is not CORRECT}
    assert not wrongly
    assert refused == NO_ANSWER | BAD_SCORER
    assert all(outcome is UNVERIFIABLE for (name, _), outcome in outcomes.items() if name in refused and _.strip())


def test_scorers_that_evaluate_answers_are_known() -> None:
    """According to the library's source, no other scorer passes text to Python or sympy."""
    root = Path(reasoning_gym.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text())
        scores = [
            n
            for n in ast.walk(tree)
            if isinstance(n, ast.FunctionDef) and n.name in ("score_answer", "verify_solution")
        ]
        for node in (call for function in scores for call in ast.walk(function) if isinstance(call, ast.Call)):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if (
                name in ("eval", "exec", "parse_expr", "sympify", "simplify", "loads")
                and ast.unparse(node.func) != "json.loads"
            ):
                found.add(path.stem)
    assert found - {"propositional_logic"} == EVALUATED.keys() | TRUSTED_ENTRIES.keys()


@pytest.mark.parametrize("name", sorted(EVALUATED))
def test_an_answer_is_never_run(name: str, tmp_path: Path, entries: dict[str, dict[str, Any]]) -> None:
    mark = tmp_path / "ran"
    for code in (
        f"open({str(mark)!r}, 'w')",
        f"[open({str(mark)!r}, 'w')]",
        f"().__class__.__base__ or open({str(mark)!r}, 'w')",
    ):
        for answer in (code, entries[name]["answer"] + " + " + code):
            assert verdict(name, entries[name], answer).outcome is INCORRECT
    for bomb in ("9**9**9**9", "2**(9**9)", "(" * 400 + "1" + ")" * 400, "1" * 600):
        assert verdict(name, entries[name], bomb).outcome is INCORRECT
    assert not mark.exists()


def test_text_in_an_entry_is_never_run(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    for name, bad in (("number_sorting", {"answer": code}), ("bitwise_arithmetic", {"metadata": {"problem": code}})):
        found = verdict(name, {**entry(name), **bad}, "[1]")
        assert found.outcome is UNVERIFIABLE and "would run" in found.reason
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "metadata", "gold", "right", "wrong"),
    [
        ("puzzle24", {"numbers": [7, 4, 4, 1]}, "1*(7*4 - 4)", ["(7*4 - 4)*1", "7*4 - 4*1"], ["6*4*1*1", "8+8+4+4", "24"]),
        ("coin_flip", {}, "0.171875", ["0.1719", "11/64"], ["0", "0.1", "0.17", "1"]),
        ("gsm_symbolic", {}, "279", ["279", "279.0"], ["-279", "280", "279, 98"]),
        ("complex_arithmetic", {"result": [4.0, -7.0]}, "4.0 - 7.0i", ["4 - 7i"], ["nan", "NaN", "nan + nani", "-nanj"]),
        ("word_sorting", {"sorted_words": ["a", "b"]}, "a, b", ["a, b", "a,b"], ["a, b, c", "b, a", "a"]),
        ("letter_jumble", {}, "as such", ["As such"], ["as such or else", "such as"]),
    ],
)  # fmt: skip
def test_scorers_that_accept_wrong_answers_are_overruled(
    name: str, metadata: dict[str, Any], gold: str, right: list[str], wrong: list[str]
) -> None:
    made = {"question": "?", "answer": gold, "metadata": metadata}
    assert {answer: verdict(name, made, answer).outcome for answer in right} == dict.fromkeys(right, CORRECT)
    assert {answer: verdict(name, made, answer).outcome for answer in wrong} == dict.fromkeys(wrong, INCORRECT)


def test_partial_scores_are_kept_and_the_threshold_decides() -> None:
    made = {"question": "?", "answer": "42", "metadata": {}}
    partial = verdict("leg_counting", made, "42 legs")
    assert partial.outcome is INCORRECT and partial.score == pytest.approx(2 / 7)
    assert verdict("leg_counting", made, "42 legs", threshold=0.25).outcome is CORRECT
    for threshold in (0, 1.5, True, "1"):
        with pytest.raises(InputError, match="threshold"):
            build({"reasoning_gym": {"threshold": threshold}})


@pytest.mark.parametrize(
    "answer",
    ["42", r"So \boxed{42}.", r"\boxed{\text{42}}", "Thus <answer>42</answer>", "It is 41. The answer is: 42", "<answer>41</answer> no <answer> 42 </answer>"],
)  # fmt: skip
def test_the_answer_is_found_in_its_usual_places(answer: str) -> None:
    assert verdict("leg_counting", {"question": "?", "answer": "42", "metadata": {}}, answer).outcome is CORRECT


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("42", "it is not"),
        ('{"dataset": "gcd"}', "it is not"),
        ('{"dataset": "gcd", "entry": {"question": "?", "answer": "", "metadata": {}}}', "no answer"),
        ('{"dataset": "gcd", "entry": {"question": "?", "answer": null, "metadata": {}}}', "no answer"),
        ('{"dataset": "no_such", "entry": {"question": "?", "answer": "1", "metadata": {}}}', "no such dataset"),
        ('{"dataset": "gcd", "config": {"x": 1}, "entry": {"question": "?", "answer": "1", "metadata": {}}}', "no such dataset"),
        ('{"dataset": "countdown", "entry": {"question": "?", "answer": "1", "metadata": {}}}', "own answer"),
    ],
)  # fmt: skip
def test_an_unusable_reference_is_unverifiable(reference: str, why: str) -> None:
    found = judge(build("reasoning_gym"), Problem("p", "?", reference, "reasoning_gym", "test"), "1")
    assert found.outcome is UNVERIFIABLE and why in found.reason


def test_without_the_library_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    found = verdict("spell_backward", {"question": "?", "answer": "1", "metadata": {}}, "1")
    assert found.outcome is UNVERIFIABLE and "pip install 'distill-reasoning[reasoning-gym]'" in found.reason
    with pytest.raises(InputError, match="pip install"):
        list(puzzles.make("gcd", {}, 0, "train", 1))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(metadata=st.dictionaries(st.text(max_size=5), plain, max_size=3))
def test_an_entry_is_read_back_from_its_reference(metadata: dict[str, Any]) -> None:
    made = {"question": "?", "answer": "x", "metadata": metadata}
    assert read_reference(reference_of("gcd", made)) == ("gcd", made, "{}")


# Problems.


def test_problems_have_stable_ids_and_pass_their_own_verifier() -> None:
    made = list(puzzles.make("word_sorting", {"max_words": 4}, 7, "train", 5, "Answer in a box."))
    assert made == list(puzzles.make("word_sorting", {"max_words": 4}, 7, "train", 5, "Answer in a box."))
    assert len({p.id for p in made}) == 5 and all(p.prompt.endswith("\nAnswer in a box.") for p in made)
    assert made[:3] == list(puzzles.make("word_sorting", {"max_words": 4}, 7, "train", 3, "Answer in a box."))
    for one in made:
        gold = json.loads(one.reference)["entry"]["answer"]
        assert judge(build(one.verifier), one, rf"\boxed{{{gold}}}").outcome is CORRECT


def test_neighbouring_seeds_and_splits_share_nothing() -> None:
    sets = [
        {p.prompt for p in puzzles.make("word_sorting", {}, seed, split, 30)}
        for seed in (0, 1)
        for split in ("train", "heldout")
    ]
    assert sum(map(len, sets)) == 120 == len(set().union(*sets))


def test_a_pipeline_combines_puzzles_with_other_sources(tmp_path: Path) -> None:
    source = "{reasoning_gym: gcd, train: 6, heldout: 3, config: {max_value: 50}, instruction: Just the number.}"
    (tmp_path / "p.yaml").write_text(
        f"name: small\nstages:\n  problems: {{sources: [{source}, {{family: calc, train: 2}}], limit: 4}}\n"
    )
    workspace = Workspace(tmp_path / "run")
    spec = config.load(tmp_path / "p.yaml", catalog.stage, workspace=workspace.path)
    (manifest,) = [done.manifest for done in runner.run(spec, workspace, Listener(), lambda: False)]
    assert {name: manifest.figures[name] for name in ("train", "heldout")} == {"train": 6, "heldout": 3}
    rows = Store(workspace.path).rows("SELECT * FROM problems WHERE source = 'reasoning_gym/gcd'")
    assert sorted(row["split"] for row in rows) == ["heldout"] * 3 + ["train"] * 4
    for row in rows:
        gold = json.loads(row["reference"])["entry"]["answer"]
        assert judge(build(row["verifier"]), problem_of(row), gold).outcome is CORRECT


def test_ids_do_not_depend_on_the_process() -> None:
    code = "from distill.sources import puzzles; print([p.id for n in ('family_relationships', 'syllogism') for p in puzzles.make(n, {}, 0, 'train', 2)])"
    root = Path(__file__).parents[1]
    runs = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, cwd=root, capture_output=True, text=True, check=True)
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0].stdout == runs[1].stdout


@pytest.mark.parametrize(
    ("name", "config", "why"),
    [
        ("gdc", {}, "gdc"),
        ("gcd", {"no_such": 1}, "no_such"),
        ("gcd", {"seed": 1}, "seed cannot be configured"),
        ("word_ladder", {}, "differ from run to run"),
        ("rush_hour", {}, "cannot give 2 problems"),
        ("game_of_life_halting", {}, "accepts nonsense"),
        ("count_bits", {"min_n": 1, "max_n": 1}, "cannot give 2 problems"),
    ],
)
def test_a_data_set_that_cannot_be_made_is_an_error_of_one_line(name: str, config: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        list(puzzles.make(name, config, 0, "train", 2))
