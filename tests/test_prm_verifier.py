"""The verifier `prm` with a real reward model: the embedded teacher's likelihood of each line, before any training.

Its contract is that of every verifier (`test_verifiers_contract`), but is tested here because it needs a model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from test_verifiers_contract import HOSTILE, steady  # noqa: E402

from distill import modelspec, pretrained  # noqa: E402
from distill.families.calc import Calc  # noqa: E402
from distill.families.logic import Logic  # noqa: E402
from distill.prm import files, head  # noqa: E402
from distill.stages import common, evaluate  # noqa: E402
from distill.thinking import join_thinking, split_thinking  # noqa: E402
from distill.types import Outcome, Problem  # noqa: E402
from distill.verifiers import VerifierPool, build, judge, settled  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from pipeline.fingerprint import FileHashes  # noqa: E402
from pipeline.manifest import Identity, Manifest  # noqa: E402
from pipeline.workspace import StageContext  # noqa: E402

PROBLEMS = [family.generate(0, index, "heldout") for family in (Calc(), Logic()) for index in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from distill.training.export import export_student

    directory = tmp_path_factory.mktemp("prm")
    teacher = modelspec.Model(str(modelspec.EMBEDDED / "teacher"), "")
    network, tokenizer = pretrained.load(teacher)
    export_student(network, tokenizer, directory)
    about = files.About(
        format=1, rule="line", width=network.config.hidden_size, likelihood=True, start="embedded:teacher",
        tokenizer=files.tokenizer_identity(tokenizer),
    )  # fmt: skip
    files.write(directory, head.StepHead(network.config.hidden_size, True), about)
    return directory


def spec(model: Path, **more: Any) -> dict[str, Any]:
    """With an untrained head a sound step scores .88, and six of them .46."""
    return {"prm": {"model": str(model), "threshold": 0.3, **more}}


def gold(problem: Problem) -> str:
    return join_thinking(*({"calc": Calc(), "logic": Logic()}[problem.source].solve(problem)))


def spoiled(problem: Problem) -> str:
    """The gold solution with a wrong result in its first line."""
    text = gold(problem)
    at = text.index("\n", text.index("=")) - 1
    other = {"0": "1", "1": "0"} if problem.source == "logic" else {}
    return text[:at] + other.get(text[at], "3" if text[at] != "3" else "8") + text[at + 1 :]


@pytest.fixture(scope="module")
def pool() -> VerifierPool:
    with VerifierPool(workers=1) as pool:
        yield pool


def test_gold_is_accepted_spoiled_gold_is_not_and_the_evidence_has_the_steps(model: Path, pool: VerifierPool) -> None:
    items = [(p.id + kind, spec(model), p, make(p)) for p in PROBLEMS for kind, make in (("+", gold), ("-", spoiled))]
    found = dict(pool.verify_many(items))
    for key, verdict in found.items():
        assert verdict.outcome is (Outcome.CORRECT if key.endswith("+") else Outcome.INCORRECT), verdict
        assert (verdict.verifier, verdict.version) == ("prm", build(spec(model)).version)
        steps = verdict.evidence["steps"]
        product = 1.0
        for step in steps:
            product *= step["probability"]
        assert verdict.score == pytest.approx(product, abs=1e-4)
        assert verdict.evidence["judged"] == "thinking and answer"
        if key.endswith("-"):
            assert steps[0]["probability"] < 0.5


def test_a_batch_gives_the_verdicts_of_single_calls(model: Path, pool: VerifierPool) -> None:
    for problem in PROBLEMS[:2]:
        alone = judge(build(spec(model)), problem, gold(problem))
        assert steady(pool.verify(spec(model), problem, gold(problem))) == steady(alone)
        assert judge(build(spec(model)), problem, split_thinking(gold(problem))).outcome is alone.outcome


def test_hostile_text_gets_a_verdict_and_never_a_reward(model: Path, pool: VerifierPool) -> None:
    found = dict(pool.verify_many((what, spec(model), PROBLEMS[0], text) for what, text in HOSTILE.items()))
    assert found.keys() == HOSTILE.keys()
    for what, verdict in found.items():
        assert verdict.outcome is not Outcome.CORRECT, (what, verdict)
        assert verdict.reason and "\n" not in verdict.reason
    assert found["nothing"].outcome is Outcome.INCORRECT and found["long"].outcome is Outcome.UNVERIFIABLE


def test_aggregate_and_threshold_are_in_the_key_but_the_directory_is_not(model: Path, tmp_path: Path) -> None:
    import shutil

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(model, elsewhere)
    (elsewhere / "README.md").write_text("another card")
    assert settled(spec(model)) == settled(spec(elsewhere)) == {"prm": {"threshold": 0.3}}
    assert build(spec(model)).version == build(spec(elsewhere)).version
    assert settled(spec(model, threshold=0.9, aggregate="minimum")) == {
        "prm": {"threshold": 0.9, "aggregate": "minimum"}
    }
    (elsewhere / "head.safetensors").write_bytes(b"other weights")
    assert build(spec(model)).version != build(spec(elsewhere)).version


def test_scores_by_reward_models_of_other_weights_have_other_protocols(model: Path, tmp_path: Path) -> None:
    """Though both are the pipeline's `prm:mine`: it was trained again."""
    import shutil

    shutil.copytree(model, tmp_path / "mine")
    settings = evaluate.EvaluateSettings(
        problems="problems", models={"m": "embedded:teacher"}, verifier={"prm": {"model": "prm:mine"}}
    )
    problems, mine = (
        Manifest(name, "f", Identity(name, 1, {}, {}, {}), "d", {}, 0.0, "", name) for name in ("problems", "mine")
    )

    def protocol() -> str:
        inputs = {"problems": problems, "mine": mine}
        context = StageContext("e", "evaluate", "f", tmp_path, inputs, tmp_path, tmp_path, FileHashes())
        return common.protocol(context, settings, evaluate.PROTOCOL)

    before = protocol()
    (tmp_path / "mine/head.safetensors").write_bytes(b"other weights")
    assert before != protocol()


def test_the_aggregates_minimum_and_last(model: Path, pool: VerifierPool) -> None:
    text = spoiled(PROBLEMS[0])
    product, least, last = (
        pool.verify(spec(model, aggregate=how), PROBLEMS[0], text) for how in ("product", "minimum", "last")
    )
    probabilities = [step["probability"] for step in product.evidence["steps"]]
    assert product.score <= least.score == pytest.approx(min(probabilities), abs=1e-5)
    assert last.score == pytest.approx(probabilities[-1], abs=1e-5)


def test_the_model_is_asked_only_where_the_rules_do_not_decide(model: Path, pool: VerifierPool) -> None:
    whole = {"all": ["math", spec(model)]}
    wrong = pool.verify(whole, replace(PROBLEMS[0], reference="1000"), gold(PROBLEMS[0]))
    assert wrong.evidence["parts"][1]["outcome"] == "not asked"
    assert pool.verify(whole, PROBLEMS[0], gold(PROBLEMS[0])).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "no/such/place"}, "is not a directory"),
        ({"model": "prm:judge", "threshold": 2.0}, "threshold"),
        ({"model": "prm:judge", "agregate": "last"}, "aggregate"),
        ({}, "model"),
    ],
)
def test_bad_settings_are_an_error_of_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build({"prm": settings})
    assert "\n" not in str(caught.value)


def test_a_stage_s_model_cannot_be_named_outside_a_pipeline(pool: VerifierPool) -> None:
    with pytest.raises(InputError, match="name the directory that it made"):
        pool.verify({"prm": {"model": "prm:judge"}}, PROBLEMS[0], gold(PROBLEMS[0]))
