"""Divergence from a teacher over whole distributions: its laws, plain autograd, and TRL's own as the oracle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tiny import VOCABULARY, examples, tiny  # noqa: E402
from vllm_models import needs_teacher  # noqa: E402

from distill.randomness import generator  # noqa: E402
from distill.store import Store  # noqa: E402
from distill.training import forward  # noqa: E402
from distill.training.divergence import Agreement, coarsened, generalised_jsd  # noqa: E402
from distill.training.forward import pack  # noqa: E402
from pipeline.errors import InputError  # noqa: E402

BETAS = (0.0, 0.5, 1.0)


def drawn(name: str, rows: int = 6) -> Any:
    return torch.from_numpy(generator("divergence", name).normal(0, 2, (rows, VOCABULARY)))


@given(st.sampled_from([0.0, 1.0]) | st.floats(0.01, 0.99), st.integers(1, VOCABULARY), st.integers(0, 99))
def test_it_is_a_divergence_and_coarsening_only_lowers_it(beta: float, top_k: int, seed: int) -> None:
    p, q = (drawn(f"{name}{seed}", 2).log_softmax(-1) for name in "pq")
    whole, coarse = generalised_jsd(p, q, beta), generalised_jsd(*coarsened(p, q, top_k), beta)
    assert (coarse >= -1e-12).all() and (coarse <= whole + 1e-12).all()
    torch.testing.assert_close(generalised_jsd(p, p, beta), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(generalised_jsd(p, q, beta), generalised_jsd(q, p, 1 - beta))


@pytest.mark.parametrize("beta", BETAS)
def test_value_and_gradient_equal_trl_s(beta: float) -> None:
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
    value = -Agreement(teacher, beta, top_k)(packed, pack(rows)).sum()
    value.backward()
    assert value.item() == pytest.approx(total.item(), rel=1e-4)
    for (name, one), other in zip(packed.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_what_is_no_divergence_is_refused() -> None:
    for wrong in ({"beta": 1.5}, {"beta": -0.1}, {"top_k": 0}):
        with pytest.raises(InputError, match=r"beta is between|top_k is at least"):
            Agreement(None, **wrong)


PIPELINE = """\
name: gkd
workspace: {workspace}
stages:
  problems: {{sources: [{{family: calc, train: 12}}]}}
  generate: {{problems: problems, teacher: "embedded:teacher", sampling: {{max_tokens: 96}}}}
  verify: {{traces: generate}}
  select: {{verdicts: verify, keep: all}}
  gkd:
    {{data: select, student: "embedded:student-base", teacher: "embedded:teacher", epochs: 4, batch_size: 4,
     top_k: 8, sampling: {{max_tokens: 24}}, lora: {{rank: 8, alpha: 16}}, learning_rate: 0.004}}
"""


@needs_teacher
def test_the_stage_learns_on_and_off_policy_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    digests = []
    for name, limits in (("whole", [None]), ("cut", ["1s", None])):
        file = tmp_path / f"{name}.yaml"
        file.write_text(PIPELINE.format(workspace=tmp_path / name))
        for limit in limits:
            command = [sys.executable, "-m", "distill", "run", "--pipeline", str(file)]
            done = subprocess.run(command + (["--max-time", limit] if limit else []), capture_output=True, text=True)
            assert done.returncode == 0 or (limit and done.returncode == 75), done.stdout[-1500:] + done.stderr[-1500:]
        (student,) = (tmp_path / name / "artifacts").glob("gkd-*")
        digests.append((student / "model" / "model.safetensors").read_bytes())
    assert digests[0] == digests[1]
    store = Store(tmp_path / "whole")
    losses = [row["value"] for row in store.rows("SELECT value FROM metrics WHERE name = 'loss' ORDER BY step")]
    steps = {row["step"] for row in store.rows("SELECT step FROM rollouts")}
    assert len(losses) >= 12 and 0 < len(steps) < len(losses) and sum(losses[-4:]) < sum(losses[:4])
