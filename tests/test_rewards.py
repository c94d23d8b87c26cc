"""Components of rewards, and the problems that a step draws: their laws, in the loop, and after a kill."""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

torch = pytest.importorskip("torch")

from test_rl import grpo, policy, student, weights  # noqa: E402

from distill.keys import problem_key  # noqa: E402
from distill.store import Store  # noqa: E402
from distill.store.records import problem_row  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.types import Problem, Sampling  # noqa: E402
from distill.verifiers import VerifierPool  # noqa: E402
from rl import rewards  # noqa: E402
from rl.draws import Draws, PassRates, Preference, Task, most, shares, zero_variance  # noqa: E402
from rl.grpo import GrpoSettings, train_grpo  # noqa: E402
from rl.ledger import Ledger  # noqa: E402
from rl.rewards import Sampled  # noqa: E402
from rl.stages.grpo import GrpoSettings as StageSettings  # noqa: E402

# ------------------------------------------------------------------ mixtures


def made(*components: dict[str, Any]) -> tuple[Any, ...]:
    found = TypeAdapter(list[rewards.Component]).validate_python(list(components), strict=True)
    rewards.check(found)
    return tuple(found)


def mixed(components: tuple[Any, ...], *samples: tuple[int, dict[str, Any]], longest: int = 100) -> list[Any]:
    return rewards.mixed(components, [Sampled(range(n), scores) for n, scores in samples], longest)


MATH = {"verifier": "math"}
FORMAT = {"verifier": {"format": {"boxed": True}}, "weight": 0.1}


def test_a_reward_is_the_weighted_sum_of_its_components() -> None:
    signed = made({**MATH, "values": [-1.0, 1.0]}, FORMAT)
    found = mixed(signed, (5, {"math": 1.0, "format": 0.0}), (5, {"math": 0.0, "format": 1.0}))
    assert [m.reward for m in found] == pytest.approx([1.0, -0.9])
    assert [m.components for m in found] == [{"math": 1.0, "format": 0.0}, {"math": -1.0, "format": 1.0}]


def test_an_unjudged_component_removes_the_reward_unless_it_has_no_weight() -> None:
    samples = [(5, {"math": 1.0, "format": s}) for s in (None, 1.0, 0.0)]
    assert [m.reward for m in mixed(made(MATH, FORMAT), *samples)] == [None, 1.1, 1.0]
    watched = mixed(made(MATH, {**FORMAT, "weight": 0.0}), *samples)
    assert [m.reward for m in watched] == [1.0, 1.0, 1.0]
    assert [m.components["format"] for m in watched] == [None, 1.0, 0.0]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=2, max_size=8))
def test_a_missing_optional_component_counts_as_the_mean_of_its_group(scores: list[float | None]) -> None:
    """Its term is then the average of the others in its group."""
    optional = made(MATH, {**FORMAT, "optional": True})
    found = [m.reward for m in mixed(optional, *((5, {"math": 1.0, "format": s}) for s in scores))]
    silent = [r for r, s in zip(found, scores, strict=True) if s is None]
    assert silent == pytest.approx([math.fsum(found) / len(found)] * len(silent))


def test_a_missing_optional_component_among_equal_ones_makes_no_difference() -> None:
    """To the last bit: the mean of three 0.1s is not 0.1."""
    optional = made(MATH, {**FORMAT, "optional": True, "weight": 1.0})
    found = mixed(optional, *((5, {"math": 0.0, "format": s}) for s in (0.1, 0.1, 0.1, None)))
    assert len({m.reward for m in found}) == 1


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([MATH, MATH], "two components are called 'math'"),
        ([{"repetition": 3}], "no verifier among"),
        ([{**MATH, "weight": 0.0}], "no component has any weight"),
        ([{"length": "target"}], "needs `tokens`"),
        ([{"length": "relative", "right": [1.0, 0.0]}], "belong to `cosine`"),
        ([{"length": "sine"}], "'cosine', 'linear'"),
        ([{**MATH, "values": [1.0, 0.0]}], "worth more than wrong"),
        ([{"verifier": "mth"}], "no verifier is called 'mth'; did you mean 'math'"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(components: list[Any], message: str) -> None:
    with pytest.raises((ValueError, ValidationError), match=message):
        made(*components)


def test_rewards_by_length() -> None:
    answers = [(20, {"math": 1.0}), (60, {"math": 1.0}), (20, {"math": 0.0}), (60, {"math": 0.0}), (60, {"math": None})]

    def of(**component: Any) -> list[float | None]:
        label = component["length"]
        return [m.components[label] for m in mixed(made(MATH, component), *answers)]

    assert of(length="relative") == [0.5, -0.5, 0.0, -0.5, None]
    assert of(length="target", tokens=50) == [-30.0, -10.0, -30.0, -10.0, -10.0]
    price = of(length="linear", right=[0.0, -1.0], wrong=[0.0, 0.0])
    assert price[:4] == pytest.approx([-0.2, -0.6, 0.0, 0.0]) and price[4] is None
    same = mixed(made(MATH, {"length": "relative"}), (9, {"math": 1.0}), (9, {"math": 0.0}))
    assert [m.components["relative"] for m in same] == [0.0, 0.0]


def test_length_and_repetition_rewards_equal_trl_s() -> None:
    theirs = pytest.importorskip("trl.rewards", reason="TRL is not installed (extra: oracle)")
    ids = [[1] * 50, [1, 2, 3, 4], [], [1, 2, 1, 2, 1, 2], list(range(130)), [5]]
    for size in (1, 2, 3):
        ours = [-rewards.repeated(tokens, size) for tokens in ids]
        assert ours == pytest.approx(theirs.get_repetition_penalty_reward(size)(ids), abs=1e-12)
    cosine = made({"verifier": "math"}, {"length": "cosine"})
    for score, message in ((1.0, r"\boxed{42}"), (0.0, r"\boxed{41}")):
        answers = [[{"content": message}]] * len(ids)
        wanted = theirs.get_cosine_scaled_reward(max_len=100)(answers, ["$42$"] * len(ids), ids)
        found = rewards.mixed(cosine, [Sampled(tokens, {"math": score}) for tokens in ids], 100)
        assert [m.components["cosine"] for m in found] == pytest.approx(wanted, abs=1e-12)


# ------------------------------------------------------------------ in the loop


def letters(pairs: Sequence[Any]) -> list[Any]:
    return [{"math": c.text.count("a") / len(c.token_ids)} for _, c in pairs]


def test_staged_lengths_bound_responses_and_the_rewards_measured_by_them(tmp_path: Path) -> None:
    mixture = made(MATH, {"length": "linear", "right": [0.0, -1.0], "wrong": [0.0, -1.0]})
    metrics, rollouts = grpo(
        student(), tmp_path, steps=3, lengths=((1, 4), (2, 6)), reward=letters, mixture=mixture,
        overlong="punish", overlong_buffer=2,
    )  # fmt: skip
    most = {step: max(len(r.completion.token_ids) for r in rollouts if r.step == step) for step in (1, 2, 3)}
    assert most == {1: 4, 2: 6, 3: 8}
    for r in rollouts:
        longest, length = most[r.step], len(r.completion.token_ids)
        assert r.components["linear"] == pytest.approx(-length / longest)
        assert r.components["overlong"] == -min(1.0, max(0.0, (length - longest + 2) / 2))
        assert r.reward == pytest.approx(sum(v for v in r.components.values() if v is not None))
    means = metrics[0].components
    assert set(means) == {"reward/math", "reward/linear", "reward/overlong"}
    assert math.fsum(means.values()) == pytest.approx(metrics[0].reward)


# ------------------------------------------------------------------ tasks and draws


def task(name: str, count: int, weight: float = 1.0) -> Task:
    return Task([Problem(f"{name}-{i}", "aa", "a", "math", name) for i in range(count)], weight)


@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 9))
def test_shares_add_up_and_are_rounded_up_or_down(parts: list[float], count: int, seed: int) -> None:
    found = shares(parts, count, seed)
    assert sum(found) == count
    for share, part in zip(found, parts, strict=True):
        assert abs(share - count * part / sum(parts)) < 1 + 1e-9


def test_shares_are_exact_on_average() -> None:
    steps, parts = 4000, (5.0, 2.0, 0.4)
    totals = [sum(column) for column in zip(*(shares(parts, 3, "mean", step) for step in range(steps)), strict=True)]
    for total, part in zip(totals, parts, strict=True):
        expected = 3 * part / sum(parts)
        error = math.sqrt((expected % 1) * (1 - expected % 1) / steps)  # the deviation caused by rounding up or down
        assert abs(total / steps - expected) < 4 * error


def test_every_problem_of_a_task_is_drawn_before_any_is_repeated() -> None:
    draws = Draws([task("a", 12, 3.0), task("b", 4)], prompts=8, seed=3)
    seen = Counter(problem.id for step in range(4) for problem in draws(step))
    assert len(seen) == 16 and set(seen.values()) == {2}
    again = Draws([task("a", 12, 3.0), task("b", 4)], prompts=8, seed=3)
    assert again(3) == draws(3) and [len(draws(step)) for step in range(4)] == [8] * 4


@given(st.integers(1, 12), st.integers(1, 2), st.integers(0, 30), st.integers(0, 5))
def test_a_round_that_ends_within_a_step_loses_and_repeats_no_problem(
    prompts: int, rooms: int, more: int, seed: int
) -> None:
    """Each step is full and without repetitions, each round has every problem once, and each draw is a pure function."""
    size = prompts * rooms + more
    draws = Draws([task("a", size)], prompts, rooms, seed)
    steps = [[p.id for draw in range(rooms) for p in draws(step, draw)] for step in range(30)]
    assert all(len(step) == len(set(step)) == prompts * rooms for step in steps)
    walk = [name for step in steps for name in step]
    rounds = [walk[begin : begin + size] for begin in range(0, len(walk) - size, size)]
    assert all(len(set(names)) == size for names in rounds)
    assert [p.id for p in Draws([task("a", size)], prompts, rooms, seed)(29, rooms - 1)] == steps[29][-prompts:]


def test_most_is_the_number_of_problems_that_a_task_needs() -> None:
    assert most([3.0, 1.0], 5, 2) == [8, 4]
    draws = Draws([task("a", 8, 3.0), task("b", 4)], prompts=5, draws=2)
    for step in range(20):
        assert len({problem.id for draw in range(2) for problem in draws(step, draw)}) == 10


@pytest.mark.parametrize("prefer", [None, Preference()])
def test_draws_of_a_step_share_no_problem(prefer: Preference | None) -> None:
    draws = Draws([task("a", 40, 2.0), task("b", 20)], prompts=9, draws=2, prefer=prefer)
    for step in range(3):
        names = [problem.id for draw in range(2) for problem in draws(step, draw)]
        assert len(set(names)) == len(names) == 18


def test_uninformative_problems_are_drawn_less_often() -> None:
    rates = PassRates({f"a-{i}": (tries * i / 20, tries) for i in range(21) for tries in (30.0,)})
    draws = Draws([task("a", 21)], prompts=4, prefer=Preference(), rates=rates)
    seen = Counter(problem.id for step in range(500) for problem in draws(step))
    assert min(seen[f"a-{i}"] for i in range(5, 16)) > 2 * max(seen["a-0"], seen["a-20"]) > 0
    alike = Draws([task("a", 21)], prompts=4, prefer=Preference(strength=0), rates=rates)
    even = Counter(problem.id for step in range(500) for problem in alike(step))
    assert max(even.values()) - min(even.values()) < 6 * math.sqrt(500 * 4 / 21)


def test_pass_rates_know_only_earlier_steps_and_decay_by_half() -> None:
    rates = PassRates({"a": (4.0, 4.0)})
    rates.add(1, [("a", False), ("a", False)])
    rates.add(2, [("b", True), ("a", True)])
    assert rates.at(0) == {"a": (4.0, 4.0)}
    assert rates.at(1) == {"a": (2.0, 4.0)}
    assert rates.at(2) == {"a": (2.0, 3.0), "b": (1.0, 1.0)}


def test_a_problem_that_nobody_can_judge_is_not_drawn_before_those_that_can_be_solved() -> None:
    rates, prefer = PassRates(), Preference()
    rates.add(1, [*[("never judged", None)] * 8, *[("hopeless", False)] * 8, *[("half", i < 4) for i in range(8)]])
    rates.add(2, [*[("never judged", None)] * 8, *[("half", None)] * 8, *[("partly", p) for p in (True, None, None)]])
    known = rates.at(2)
    assert (
        known["never judged"] == known["hopeless"] == (0, 8) and known["half"] == (4, 8) and known["partly"] == (1, 1)
    )
    assert prefer.weight(known["never judged"]) < 0.5 * prefer.weight(known["half"])
    assert rates.groups(2) == {"partly": [True]}  # figures are of what was judged


def test_the_zero_variance_share_is_estimated_as_if_drawn_uniformly() -> None:
    """Half of the problems are always solved, half sometimes. The share observed under the preference, reweighted,
    estimates the share under uniform draws."""
    source = task("a", 200)
    rates = PassRates({p.id: (9.0, 9.0) if i % 2 else (3.0, 6.0) for i, p in enumerate(source.problems)})
    draws = Draws([source], prompts=20, prefer=Preference(strength=3.0), rates=rates)
    for step in range(40):
        drawn = [(p.id, bool(int(p.id[2:]) % 2)) for p in draws(step)]
        rates.add(step + 1, [(name, passed) for name, easy in drawn for passed in (True, easy)])
    found = zero_variance(draws, 40)
    assert found["all_alike"] < found["all_alike_without_preference"] - 0.1
    assert found["all_alike_without_preference"] == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("prompts", [4, 12, 24])
def test_the_share_solved_is_estimated_without_bias_however_many_of_the_problems_a_step_draws(prompts: int) -> None:
    """What was known is wrong: of the problems that seemed even, all are solved now, of the hard ones none."""
    source = task("a", 24)
    found = []
    for seed in range(400):
        rates = PassRates({p.id: (4.0, 8.0) if i % 3 else (0.0, 8.0) for i, p in enumerate(source.problems)})
        draws = Draws([source], prompts, seed=seed, prefer=Preference(), rates=rates)
        rates.add(1, [(p.id, bool(int(p.id[2:]) % 3)) for p in draws(0)])
        found.append(draws.solved(1))
    assert sum(found) / 400 == pytest.approx(2 / 3, abs=0.01)


def test_the_share_solved_is_a_number_however_strong_the_preference() -> None:
    source = task("a", 24)
    rates = PassRates({p.id: (4.0, 8.0) if i % 3 else (0.0, 30.0) for i, p in enumerate(source.problems)})
    draws = Draws([source], prompts=24, prefer=Preference(strength=1000), rates=rates)
    rates.add(1, [(p.id, bool(int(p.id[2:]) % 3)) for p in draws(0)])
    assert draws.solved(1) == pytest.approx(2 / 3, abs=0.2)


def test_the_shares_of_tasks_do_not_count_as_preference() -> None:
    """All problems of a task have the same preference, lower in one of two tasks: within a task draws are uniform."""
    easy, hard = task("a", 20), task("b", 20)
    rates = PassRates({problem.id: (0.0, 30.0) for problem in hard.problems})
    draws = Draws([easy, hard], prompts=8, prefer=Preference(strength=1000), rates=rates)
    rates.add(1, [(p.id, p.id.startswith("a") and first) for p in draws(0) for first in (True, False)])
    assert zero_variance(draws, 1) == {"all_alike": 0.5, "all_alike_without_preference": 0.5}


# ------------------------------------------------------------------ killed

EXACT = [Problem(f"{i}", "ab"[i % 2] * (1 + i), "a", "exact", "test") for i in range(12)]


def refined(directory: Path, die_at: int | None = None) -> Any:
    """Six steps with a store and draws by pass rate, killed when the rollouts of a step are stored but not yet used."""
    store = Store(directory)
    store.append("problems", [problem_row(p) for p in EXACT])
    store.ingest()
    mixture = made({"verifier": {"regex": {"pattern": "a", "search": True}}, "name": "verifier"}, {"length": "linear"})
    settings = GrpoSettings(
        optimizer=OptimizerSettings(2e-2), steps=6, group=4, sampling=Sampling(max_tokens=3), reward=mixture,
        checkpoint_steps=2,
    )  # fmt: skip
    model, drawn = student(), []
    with VerifierPool(workers=1) as pool:
        ledger = Ledger(
            store, "run", settings.sampling_at, {p.id: problem_key(p) for p in EXACT}, pool, rewards.verifiers(mixture)
        )
        rates = PassRates()
        for step, passes in ledger.passes("verifier").items():
            rates.add(step, passes)
        draws = Draws([Task(EXACT)], prompts=4, prefer=Preference(), rates=rates)

        def written(step: int, rollouts: Sequence[Any]) -> None:
            ledger.write(step, rollouts)
            rates.add(step, [(r.problem.id, r.components["verifier"] >= 0.5) for r in rollouts])
            drawn.append((step, [r.problem.id for r in rollouts]))
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        train_grpo(
            model, policy(model), settings, sample=draws, reward=ledger.reward, checkpoints=directory / "checkpoints",
            recall=ledger.recall, on_rollouts=written,
        )  # fmt: skip
    return model, drawn, rates.at(6)


def test_a_killed_run_resumes_with_the_pass_rates_it_had(tmp_path: Path) -> None:
    whole, drawn, known = refined(tmp_path / "whole")
    assert any(solved for solved, _ in known.values())
    child = os.fork()
    if child == 0:
        try:
            refined(tmp_path / "killed", die_at=4)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    resumed, again, known_again = refined(tmp_path / "killed")
    assert [step for step, _ in again] == [3, 4, 5, 6]
    assert again == drawn[2:] and known_again == known
    assert torch.equal(weights(resumed), weights(whole))


def test_every_verdict_of_every_component_is_stored_including_refills(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("problems", [problem_row(p) for p in EXACT])
    mixture = made({"verifier": None}, {"verifier": {"regex": {"pattern": "a"}}, "weight": 0.0})
    settings = GrpoSettings(
        optimizer=OptimizerSettings(2e-2), steps=1, group=2, sampling=Sampling(max_tokens=3), reward=mixture, refills=2
    )
    model = student()
    with VerifierPool(workers=1) as pool:
        ledger = Ledger(
            store, "run", settings.sampling_at, {p.id: problem_key(p) for p in EXACT}, pool, rewards.verifiers(mixture)
        )
        train_grpo(
            model, policy(model), settings, sample=Draws([Task(EXACT)], prompts=2, draws=3), reward=ledger.reward,
            checkpoints=tmp_path / "checkpoints", on_rollouts=ledger.write,
        )  # fmt: skip
    store.ingest()
    counts = store.rows("SELECT verifier, count(*) AS n FROM verdicts JOIN rollouts USING (trace_key) GROUP BY 1")
    (rollouts,) = store.rows("SELECT count(*) AS n FROM rollouts")
    assert rollouts["n"] > 4 and {row["n"] for row in counts} == {rollouts["n"]} and len(counts) == 2


# ------------------------------------------------------------------ YAML


def test_settings_at_their_defaults_are_in_no_fingerprint() -> None:
    plain = StageSettings(student="stage:sft", problems="problems").model_dump(mode="json")
    assert not {"reward", "lengths", "pass_rate"} & plain.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifier": "math", "reward": [MATH]}, "give `verifier` or `reward`"),
        ({"lengths": [{"until": 5, "max_tokens": 9999}]}, "no stage is longer"),
        ({"lengths": [{"until": 5, "max_tokens": 8}, {"until": 5, "max_tokens": 9}]}, "ends at a later step"),
        ({"pass_rate": {"aim": 1.0}}, "less than 1"),
        ({"sampling": {"top_p": 0.9}}, "no truncation"),
        ({"overlong": "punish"}, "overlong_buffer between 0 and max_tokens"),
        (
            {"overlong": "punish", "overlong_buffer": 5, "lengths": [{"until": 1, "max_tokens": 4}]},
            r"between 0 and max_tokens \(4\)",
        ),
        ({"kl": 0.1, "lora": None}, "kl needs `lora`"),
        ({"kl": 0.1, "kl_estimator": "k1"}, "gradient of k1 is 0"),
        ({"kl": 0.1, "kl_estimator": "k2", "kl_corrected": True}, "k2 has the divergence's gradient as it is"),
        ({"clip_cap": 1.1, "clip_high": 0.2}, "clip_cap must be above"),
        ({"clip_cap": 1.25}, r"clip_cap \(1.25\) must be above 1 \+ clip_high, which is 0.28 for `loss: dapo`"),
        ({"clip_cap": 1.2, "loss": "grpo"}, r"which is 0.2 for `loss: grpo`"),
        ({"scale": "mean", "reward": [{"verifier": "math", "values": [-1, 1]}]}, "no reward may be negative"),
        ({"scale": "mean", "reward": [{"verifier": "math"}, {"repetition": 3}]}, "no reward may be negative"),
        ({"scale": "mean", "overlong": "punish", "overlong_buffer": 9}, "no reward may be negative"),
        ({"loss": "cispo", "clip_low": 0.1}, "cispo has one bound"),
        ({"loss": "cispo", "clip_high": 0.28}, r"clip_high \(0.28\) bounds the weight itself .* take 1 or more"),
        ({"engine": "vlm"}, "'vlm' is not valid; valid: transformers, vllm"),
        ({"engine": {"kind": "vllm", "gpu_memory": 0.3}}, r"gpu_memory\n  Extra inputs are not permitted"),
        ({"engine": {"kind": "transformers", "dtype": "bfloat16"}}, "has no options here"),
        ({"engine_floor": 3}, "below engine_cap"),
        (
            {"engine_level": "sequence", "engine_correction": "none"},
            "engine_level does nothing with `engine_correction:",
        ),
        ({"engine_cap": 3.0, "engine_correction": "none"}, "engine_cap does nothing with `engine_correction: none`"),
        ({"base_precision": "bf16"}, "needs `lora` and `precision: bf16`"),
        ({"base_precision": "bf16", "precision": "bf16", "norm_learning_rate": 0.1}, "norm in bf16"),
        ({"overlong_buffer": 16}, "overlong_buffer lowers rewards with `overlong: punish` alone"),
        ({"updates": 9, "prompts": 8}, r"a step has 8 \(prompts\)"),
        ({"reward": [MATH, MATH]}, "two components"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StageSettings(student="stage:sft", problems="problems", **changes)
