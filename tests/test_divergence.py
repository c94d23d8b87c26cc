"""Divergence from a teacher over whole distributions: its laws, plain autograd, and TRL's implementation as the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from test_rl import after, policy, problems, student  # noqa: E402
from tiny import VOCABULARY, examples, tiny, weights  # noqa: E402
from vllm_models import needs_teacher  # noqa: E402

from distill import catalog  # noqa: E402
from distill.cli.open import load  # noqa: E402
from distill.modelspec import EMBEDDED  # noqa: E402
from distill.randomness import generator  # noqa: E402
from distill.store import Store  # noqa: E402
from distill.training import forward  # noqa: E402
from distill.training.batching import Order  # noqa: E402
from distill.training.conversations import conversation, from_messages  # noqa: E402
from distill.training.divergence import NegativeDivergence, coarsened, generalised_jsd  # noqa: E402
from distill.training.forward import pack  # noqa: E402
from distill.training.loop import StepMetrics, TrainSettings, train  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.types import Sampling  # noqa: E402
from pipeline import config, runner  # noqa: E402
from pipeline.errors import Stopped  # noqa: E402
from pipeline.events import Listener  # noqa: E402
from pipeline.plan import plan  # noqa: E402
from pipeline.workspace import Workspace  # noqa: E402
from rl.gkd import Batches  # noqa: E402

BETAS = (0.0, 0.5, 1.0)


def drawn(name: str, rows: int = 6) -> Any:
    return torch.from_numpy(generator("divergence", name).normal(0, 2, (rows, VOCABULARY)))


@given(st.sampled_from([0.0, 1.0]) | st.floats(0.01, 0.99), st.integers(1, VOCABULARY), st.integers(0, 99))
def test_generalised_jsd_is_a_divergence_and_coarsening_only_lowers_it(beta: float, top_k: int, seed: int) -> None:
    p, q = (drawn(f"{name}{seed}", 2).log_softmax(-1) for name in "pq")
    whole, coarse = generalised_jsd(p, q, beta), generalised_jsd(*coarsened(p, q, top_k), beta)
    assert (coarse >= -1e-12).all() and (coarse <= whole + 1e-12).all()
    torch.testing.assert_close(generalised_jsd(p, p, beta), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(generalised_jsd(p, q, beta), generalised_jsd(q, p, 1 - beta))


@pytest.mark.parametrize("beta", BETAS)
def test_value_and_gradient_equal_those_of_trl(beta: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer", reason="TRL is not installed (extra: oracle)")
    for temperature in (1.0, 0.9):
        ours, theirs = drawn("student").requires_grad_(), drawn("student").requires_grad_()
        teacher = drawn("teacher")
        p, q = (x.div(temperature).log_softmax(-1) for x in (ours, teacher))
        one = generalised_jsd(p, q, beta).mean()
        labels = torch.zeros(1, len(teacher)).long()
        other = gkd.GKDTrainer.generalized_jsd_loss(theirs[None], teacher[None], labels, beta, temperature)
        one.backward()
        other.backward()
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("top_k", [None, VOCABULARY, 5])
def test_packed_and_chunked_equals_autograd_on_full_logits(
    beta: float, top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny(hidden_size=24, initializer_range=0.5)
    teacher.requires_grad_(False)
    plain, packed = tiny(), tiny()
    rows = examples(4)
    total = torch.zeros(())
    for row in rows:
        ids, learned = torch.tensor([row.input_ids]), torch.tensor(row.labels_mask[1:])
        p, q = (m(input_ids=ids, use_cache=False).logits[0, :-1][learned].log_softmax(-1) for m in (plain, teacher))
        total = total + generalised_jsd(*coarsened(p, q, top_k), beta).sum()
    total.backward()
    monkeypatch.setattr(forward, "CHUNK", 2 * VOCABULARY * 7)  # seven tokens at a time
    value = -NegativeDivergence(teacher, beta, top_k)(packed, pack(rows)).logprobs.sum()
    value.backward()
    assert value.item() == pytest.approx(total.item(), rel=1e-4)
    for (name, one), other in zip(packed.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


# ------------------------------------------------------------------ GKD: the loop and the stage


def gkd(
    model: Any, directory: Path, on_policy: float, stop: Any = lambda: False
) -> tuple[list[StepMetrics], list[int]]:
    """Train twelve steps of four rows; returns the metrics and the steps that were sampled."""
    engine, tasks = policy(model), [p for step in range(3) for p in problems(step)]
    tokenizer = engine.tokenizer
    rows = [from_messages(tokenizer, p.id, conversation(p.messages, "", "abc")) for p in tasks]
    order, sampled, metrics = Order(tuple(map(len, rows)), 4, 0), list[int](), list[StepMetrics]()
    source = Batches(
        rows,
        tasks,
        order,
        engine,
        Sampling(max_tokens=8),
        on_policy,
        stop,
        on_samples=lambda step, samples: sampled.append(step),
    )
    settings = TrainSettings(OptimizerSettings(1e-2), steps=12, batch_size=4)
    teacher = tiny(initializer_range=0.1, tie_word_embeddings=False)
    teacher.lm_head.weight.data = teacher.lm_head.weight.data.roll(7, 0)
    train(
        model, source, settings, checkpoints=directory, stop=stop, on_step=metrics.append,
        measure=NegativeDivergence(teacher.requires_grad_(False).eval(), 1.0),
    )  # fmt: skip
    return metrics, sampled


@pytest.mark.parametrize(("on_policy", "count"), [(0.0, 0), (1.0, 12)])
def test_the_divergence_falls_on_rows_of_the_teacher_and_on_own_samples(
    tmp_path: Path, on_policy: float, count: int
) -> None:
    metrics, sampled = gkd(student(), tmp_path, on_policy)
    assert len(sampled) == count
    assert 0 < sum(m.loss for m in metrics[-3:]) < 0.7 * sum(m.loss for m in metrics[:3])


def test_a_run_stopped_anywhere_and_resumed_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    straight = student()
    _, sampled = gkd(straight, tmp_path / "a", 0.5)
    assert 0 < len(sampled) < 12
    stopped = 0
    for calls in (4, 15, 25, 10_000):  # between steps, and while sampling
        resumed = student()
        try:
            gkd(resumed, tmp_path / "b", 0.5, after(calls))
            break
        except Stopped:
            stopped += 1
    assert stopped and torch.equal(weights(resumed), weights(straight))


PIPELINE = """\
name: gkd
workspace: run
stages:
  problems: {sources: [{family: calc, train: 12, heldout: 3}]}
  generate: {problems: problems, teacher: "embedded:teacher", sampling: {max_tokens: 96}}
  verify: {traces: generate}
  select: {verdicts: verify, keep: all}
  gkd:
    {data: select, student: "embedded:student-base", teacher: "embedded:teacher", epochs: 2, batch_size: 4,
     top_k: 8, sampling: {max_tokens: 16}, lora: {rank: 8, alpha: 16}, threads: 1, workers: 1,
     norm_learning_rate: 5e-2,
     watch: {problems: problems, every: 3}}
"""


def test_a_selection_without_traces_is_refused_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "gkd.yaml"
    file.write_text(PIPELINE)
    planned = config.load(file, catalog.stage).stages["gkd"]
    reason = planned.stage.refuse(planned.settings, {"select": {"kept": 0}, "problems": {"heldout": 3}})
    assert reason is not None and reason.startswith("select kept no trace to train on")


@needs_teacher
def test_the_stage_stores_every_sample_it_learned_from(tmp_path: Path) -> None:
    file = tmp_path / "gkd.yaml"
    file.write_text(PIPELINE)
    spec, workspace = config.load(file, catalog.stage), Workspace(tmp_path / "run")
    forecast = plan(spec, workspace)[-1].forecast
    assert forecast is not None and forecast.figures["memory"] > 0
    runner.run(spec, workspace, Listener(), lambda: False)
    assert (norm_of(tmp_path / "run/gkd/model") - norm_of(EMBEDDED / "student-base")).abs().max() > 0.05
    store = Store(tmp_path / "run")
    losses = store.rows("SELECT value FROM metrics WHERE name = 'loss' AND value > 0")
    steps = store.rows("SELECT step, count(*) AS samples FROM rollouts JOIN traces USING (trace_key) GROUP BY step")
    assert len(losses) == 6 and 0 < len(steps) < 6 and all(row["samples"] == 4 for row in steps)
    lengths = store.rows("SELECT step FROM metrics WHERE name = 'length' ORDER BY step")
    assert lengths == [{"step": row["step"]} for row in sorted(steps, key=lambda row: row["step"])]
    measured = store.rows("SELECT step FROM metrics WHERE name = 'heldout_pass_at_1' ORDER BY step")
    assert [row["step"] for row in measured] == [0, 3, 6]
    rolled_back(tmp_path, file)


def norm_of(directory: Path) -> Any:
    """The weight of the final norm."""
    with safe_open(directory / "model.safetensors", "pt") as file:
        return file.get_tensor("model.norm.weight")


def rolled_back(where: Path, file: Path) -> None:
    """The limit is so tight that any change of length is drift: the run ends with the best student so far."""
    alarmed = ["gkd.alarms={window: 1, length_ratio: 1.00001}", "gkd.on_alarm=rollback", "gkd.on_policy=1.0"]
    settings = [
        "gkd.sampling.max_tokens=64",
        "gkd.watch.every=1",
        "gkd.learning_rate=1.0",
        "gkd.max_tokens=60",
        *alarmed,
    ]
    spec = load(file, settings)
    figures = runner.run(spec, Workspace(where / "run"), Listener(), lambda: False)[-1].manifest.figures
    assert figures["alarms"].startswith("length at step") and figures["rolled_back_to"] < figures["steps"] < 6
    assert figures["dropped"] and figures["examples"] + figures["dropped"] == 12
