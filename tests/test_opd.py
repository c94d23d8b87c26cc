"""On-policy distillation: its estimator against enumeration, the mixing of credit, the loop with a real teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from test_rl import after, likes_a, policy, problems, student  # noqa: E402
from tiny import chat_tokenizer, tiny, weights  # noqa: E402
from vllm_models import TEACHER, needs_teacher, needs_vllm, requests, vllm_engine  # noqa: E402

from distill import catalog, pretrained  # noqa: E402
from distill.cli.open import load  # noqa: E402
from distill.engines.transformers import TransformersEngine  # noqa: E402
from distill.modelspec import Model  # noqa: E402
from distill.randomness import generator  # noqa: E402
from distill.store import Store  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.types import Completion, Finish, Problem, Sampling  # noqa: E402
from pipeline import config, runner  # noqa: E402
from pipeline.errors import InputError, Stopped  # noqa: E402
from pipeline.events import Listener  # noqa: E402
from pipeline.workspace import Workspace  # noqa: E402
from rl import credit, loss  # noqa: E402
from rl.grpo import GrpoSettings, train_grpo  # noqa: E402
from rl.monitors import GrpoMetrics, observe  # noqa: E402
from rl.step_credit import Mixture, log_ratios, step_advantages  # noqa: E402
from rl.teacher import TransformersTeacher, VllmTeacher, check_same_tokenizer  # noqa: E402
from rl.update import Rollout, UpdateMetrics  # noqa: E402

# ------------------------------------------------------------------ the estimator, on a vocabulary of 16 tokens

THETA, PHI = (torch.from_numpy(generator("opd", name).normal(0, 1, 16)) for name in ("student", "teacher"))
STUDENT, THEIRS = THETA.log_softmax(-1), PHI.log_softmax(-1)
EXACT = (STUDENT.exp() * (STUDENT - THEIRS)).sum()


def rolled(tokens: Sequence[int], **changes: Any) -> Rollout:
    """A response of these tokens, sampled from the student."""
    ids, logprobs = tuple(tokens), tuple(STUDENT[list(tokens)].tolist())
    completion = Completion("k", "", (1,), "", ids, logprobs, changes.pop("finish", Finish.STOP), **changes)
    return Rollout(1, Problem("p", "", "", "", ""), 0, completion, None, (0.0,) * len(ids), False)


def scores(completions: Sequence[Completion]) -> list[list[float]]:
    return [THEIRS[list(c.token_ids)].tolist() for c in completions]


def gradient(tokens: Any, advantage: Any) -> Any:
    """-d loss / d theta of the mean over these tokens."""
    leaf = THETA.clone().requires_grad_()
    logprobs = leaf.log_softmax(-1)[tokens]
    streams = {
        "advantage": advantage, "engine": logprobs.detach(), "row": torch.zeros(len(tokens)),
        "weight": torch.full((len(tokens),), 1 / len(tokens), dtype=torch.float64),
    }  # fmt: skip
    loss.PolicyLoss()(logprobs, streams).backward()
    return -leaf.grad


def test_credit_of_samples_estimates_the_exact_reverse_kl() -> None:
    tokens = generator("opd", "samples").choice(16, 20_000, p=STUDENT.exp().numpy()).tolist()
    (mixed,) = Mixture(0.0, scores)([rolled(tokens)])
    kl = -torch.tensor(mixed.advantages, dtype=torch.float64)
    assert abs(kl.mean() - EXACT) < 3 * kl.std() / len(kl) ** 0.5
    assert mixed.trained and mixed.teacher == tuple(THEIRS[tokens].tolist())


def test_the_expected_gradient_is_that_of_the_exact_divergence() -> None:
    """By enumeration: the sum of each token's gradient times its probability is the gradient of -KL(student, teacher).
    The term that the estimator leaves out, E[d log p], is 0."""
    (mixed,) = Mixture(0.0, scores)([rolled(range(16))])
    advantages = torch.tensor(mixed.advantages, dtype=torch.float64)
    found = sum(STUDENT[a].exp() * gradient(torch.tensor([a]), advantages[a : a + 1]) for a in range(16))
    leaf = THETA.clone().requires_grad_()
    own = leaf.log_softmax(-1)
    (-(own.exp() * (own - THEIRS)).sum()).backward()
    torch.testing.assert_close(found, leaf.grad)


def test_sampled_gradients_average_to_the_exact_one() -> None:
    draws = torch.from_numpy(generator("opd", "draws").choice(16, (400, 64), p=STUDENT.exp().numpy()))
    found = torch.stack([gradient(row, (THEIRS - STUDENT)[row]) for row in draws])
    exact = -STUDENT.exp() * ((STUDENT - THEIRS) - EXACT)
    assert ((found.mean(0) - exact).abs() < 3.5 * found.std(0) / len(found) ** 0.5).all()


# ------------------------------------------------------------------ mixing


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(0, 2), st.floats(0.1, 2))
def test_a_mixture_is_the_weighted_sum_per_token(outcomes: list[float], weight: float, teacher: float) -> None:
    row = replace(rolled(range(len(outcomes))), advantages=tuple(outcomes), trained=True)
    (mixed,) = Mixture(weight, scores, teacher)([row])
    ratios = log_ratios(row.completion, scores([row.completion])[0])
    expected = [weight * a + teacher * r for a, r in zip(outcomes, ratios, strict=True)]
    assert mixed.advantages == pytest.approx(expected)
    (without,) = Mixture(0.0, scores, teacher)([replace(row, trained=False)])
    assert without.advantages == pytest.approx([teacher * r for r in ratios])


def test_forced_tokens_and_on_request_cut_responses_are_not_learned_from() -> None:
    cut, given_ = rolled([1, 2], finish=Finish.LENGTH), rolled([1, 2], forced=(0, 1))
    assert [r.trained for r in Mixture(0.0, scores)([cut, given_])] == [True, False]
    assert [r.trained for r in Mixture(0.0, scores, leave_out_cut=True)([cut])] == [False]


def test_metrics_of_samples_leave_out_forced_tokens() -> None:
    row = rolled([3, 5, 9], forced=(1,))
    row = replace(row, reward=0.1, teacher=tuple(scores([row.completion])[0]))
    other = replace(row, completion=replace(row.completion, finish=Finish.LENGTH, text="4"))
    how = GrpoSettings(optimizer=OptimizerSettings(1.0), steps=1, group=3)
    metrics = observe(how, 1, [row, other, row], 1, UpdateMetrics(), (0, 0))
    assert metrics.distinct == 2 and metrics.truncated == pytest.approx(1 / 3)
    assert metrics.entropy == pytest.approx(-(STUDENT[3] + STUDENT[9]).item() / 2)
    assert metrics.teacher_kl == pytest.approx((STUDENT - THEIRS)[[3, 9]].mean().item())
    assert metrics.zero_variance == 1  # three times 0.1 has a deviation of 1e-17
    same = replace(row, completion=replace(row.completion, text="Twice 2, so the answer is 4."))
    assert observe(how, 1, [row, other, same], 1, UpdateMetrics(), (0, 0)).distinct == 2  # one answer in two wordings


def test_step_rewards_are_normalised_in_their_group_and_credit_earlier_tokens() -> None:
    first, second = step_advantages([[(1, 1.0), (3, 0.0)], [(2, 1.0)]], [5, 3])
    deviation = torch.tensor([1.0, 0.0, 1.0]).std().item() + credit.EPSILON
    good, bad = (1 - 2 / 3) / deviation, (0 - 2 / 3) / deviation
    assert first == pytest.approx([good + bad, good + bad, bad, bad, 0.0]) and second == pytest.approx([good] * 3)
    (mixed, _) = Mixture(0.0, steps=lambda rows: [[(1, 1.0)], [(0, 0.0)]], step_weight=2.0)([rolled([3, 4, 5])] * 2)
    assert mixed.trained and mixed.advantages[0] == mixed.advantages[1] > 0 == mixed.advantages[2]


# ------------------------------------------------------------------ teachers


def completions(count: int = 5) -> list[Completion]:
    made = []
    for i in range(count):
        draw = generator("opd", "completion", i)
        prompt, ids = (tuple(int(x) for x in draw.integers(0, 40, n)) for n in (3 + i, 2 + 3 * i))
        made.append(Completion(str(i), "", prompt, "", ids, (0.0,) * len(ids), Finish.STOP))
    return [*made, Completion("empty", "", (1, 2), "", (), (), Finish.EMPTY)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_teacher_s_scores_are_its_own_logprobs(temperature: float) -> None:
    network = tiny()
    rows = completions()
    for limit in (1, 10_000):
        found = TransformersTeacher(network, temperature, limit)(rows)
        assert [len(t) for t in found] == [len(c.token_ids) for c in rows]
        for completion, scored in zip(rows[:-1], found, strict=False):
            ids = torch.tensor([completion.prompt_ids + completion.token_ids])
            table = (network(input_ids=ids, use_cache=False).logits[0, :-1] / temperature).log_softmax(-1)
            own = table.gather(1, ids[0, 1:, None]).squeeze(1)[len(completion.prompt_ids) - 1 :]
            torch.testing.assert_close(torch.tensor(scored), own, atol=1e-5, rtol=0)


def test_another_tokenizer_is_refused_in_one_line() -> None:
    same, other = chat_tokenizer(), chat_tokenizer()
    check_same_tokenizer(same, other, "t")
    other.add_tokens(["zz"])
    with pytest.raises(
        InputError, match=r"teacher t: its tokenizer is not the student's \(1 of their tokens"
    ) as caught:
        check_same_tokenizer(same, other, "t")
    assert "\n" not in str(caught.value)
    ends = chat_tokenizer(same.chat_template.replace("<end>", "<user>"))
    with pytest.raises(InputError, match="turns end with '<end>' for one and '<user>'"):
        check_same_tokenizer(same, ends, "t")


@needs_vllm
@needs_teacher
def test_vllm_scores_as_transformers_does() -> None:
    model = Model(str(TEACHER), "teacher")
    network, tokenizer = pretrained.load(model, device="cpu")
    sampled = list(TransformersEngine(network, tokenizer, model_identity="t").generate(requests(4, max_tokens=24)))
    ours = TransformersTeacher(network)(sampled)
    with vllm_engine(model) as engine:
        check_same_tokenizer(tokenizer, engine.tokenizer, "teacher")
        theirs = VllmTeacher(engine)(sampled)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


# ------------------------------------------------------------------ the loop


def teacher() -> Any:
    """The untrained student with the rows of its head rotated, so that it prefers other letters."""
    network = tiny(initializer_range=0.1, tie_word_embeddings=False)
    network.lm_head.weight.data = network.lm_head.weight.data.roll(7, 0)
    return network


def opd(model: Any, directory: Path, **changes: Any) -> tuple[list[GrpoMetrics], list[Rollout]]:
    hooks = {name: changes.pop(name) for name in ("stop", "recall") if name in changes}
    metrics: list[GrpoMetrics] = []
    rollouts: list[Rollout] = []
    usual = {"optimizer": OptimizerSettings(2e-2, schedule="constant"), "steps": 6, "group": 1}
    train_grpo(
        model, policy(model), GrpoSettings(**(usual | {"sampling": Sampling(max_tokens=8)} | changes)), sample=problems,
        reward=likes_a, mix=Mixture(0.0, TransformersTeacher(teacher())), checkpoints=directory,
        on_rollouts=lambda _, rows: rollouts.extend(rows), on_step=metrics.append, **hooks,
    )  # fmt: skip
    return metrics, rollouts


def test_the_student_approaches_its_teacher(tmp_path: Path) -> None:
    metrics, rollouts = opd(student(), tmp_path, steps=16, group=16)
    first, last = (math.fsum(m.teacher_kl for m in part) for part in (metrics[:3], metrics[-3:]))
    assert 0 < last < 0.8 * first
    assert all(r.trained == (len(r.completion.token_ids) > 0) for r in rollouts)
    assert all(len(r.teacher) == len(r.advantages) == len(r.completion.token_ids) for r in rollouts)


def test_the_update_equals_a_plain_loop_with_token_credit(tmp_path: Path) -> None:
    model, reference = student(), student()
    _, rollouts = opd(model, tmp_path, steps=1, optimizer=OptimizerSettings(1e-3, warmup=0))
    total, tokens, judge = torch.zeros(()), 0, teacher()
    for r in rollouts:
        ids = torch.tensor([r.completion.prompt_ids + r.completion.token_ids])
        count = len(r.completion.token_ids)
        own, theirs = (
            m(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-count:, 0]
            for m in (reference, judge)
        )
        total, tokens = total - ((theirs - own).detach() * own).sum(), tokens + count
    (total / tokens).backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    trainable = [p for p in reference.parameters() if p.requires_grad]
    torch.optim.AdamW(trainable, lr=1e-3, betas=(0.9, 0.95), weight_decay=0).step()
    torch.testing.assert_close(weights(model), weights(reference), atol=5e-5, rtol=0)


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    straight = student()
    opd(straight, tmp_path / "a")
    stopped = 0
    for calls in (3, 12, 9, 1000):
        resumed = student()
        try:
            opd(resumed, tmp_path / "b", stop=after(calls))
            break
        except Stopped:
            stopped += 1
    assert stopped and torch.equal(weights(resumed), weights(straight))


# ------------------------------------------------------------------ the stage

PIPELINE = """\
name: opd
workspace: {workspace}
stages:
  problems: {{sources: [{{family: calc, train: 12}}]}}
  opd:
    {{student: "embedded:student-base", teacher: "embedded:teacher", problems: problems, steps: 2, prompts: 6, group: 1,
     sampling: {{max_tokens: 32}}, lora: {{rank: 8, alpha: 16}}, learning_rate: 0.001}}
"""


def written(directory: Path) -> Path:
    file = directory / "opd.yaml"
    file.write_text(PIPELINE.format(workspace=directory / "run"))
    return file


@needs_teacher
def test_one_query_explains_an_update(tmp_path: Path) -> None:
    runner.run(config.load(written(tmp_path), catalog.stage), Workspace(tmp_path / "run"), Listener(), lambda: False)
    rows = Store(tmp_path / "run").rows(
        "SELECT r.step, r.used, r.advantage, len(token_ids) AS tokens, r.teacher_logprobs, t.logprobs "
        "FROM rollouts r JOIN traces t USING (trace_key)"
    )
    assert len(rows) == 12 and {row["step"] for row in rows} == {1, 2} and all(row["used"] for row in rows)
    for row in rows:
        credit = [a - b for a, b in zip(row["teacher_logprobs"], row["logprobs"], strict=True)]
        assert len(credit) == row["tokens"] and math.fsum(credit) / len(credit) == pytest.approx(
            row["advantage"], abs=1e-4
        )


@needs_teacher
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("opd.teacher=nowhere", "teacher.*nowhere"),
        ("opd.teacher_engine={kind: vllm}\nopd.sampling.temperature=0.7", "vllm scores at temperature 1"),
        ("opd.engine=vllm\nopd.lora=null", "needs `lora`"),
        ("opd.group=0", "group"),
    ],
)
def test_impossible_settings_are_refused_when_the_yaml_is_read(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(written(tmp_path), setting.split("\n"))
    assert "\n" not in str(caught.value)
