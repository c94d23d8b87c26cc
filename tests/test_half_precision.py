"""Computations on half-precision tensors that are done in full precision: statistics of norms, and sums over tiles."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from distill.training import head  # noqa: E402
from distill.training.lean import _rms_norm  # noqa: E402


@pytest.mark.parametrize("half_weight", [False, True], ids=["fp32 weight", "bf16 weight"])
def test_a_norm_in_half_precision_rounds_only_its_result_forward_and_backward(half_weight: bool) -> None:
    """With statistics in bf16, which are off by up to 1 / 256, about a third of all results would differ."""
    torch.manual_seed(0)
    x, g = (torch.randn(300, 96).bfloat16() for _ in range(2))
    weight = torch.randn(96).bfloat16()
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        rows = x.to(dtype).requires_grad_()
        scales = weight.to(dtype if half_weight or dtype == torch.float64 else torch.float32).requires_grad_()
        if dtype == torch.float64:
            made = scales * rows * (rows.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        else:
            made = _rms_norm(rows, scales, 1e-6)
            assert made.dtype == scales.dtype
        found.append((made, *torch.autograd.grad(made, (rows, scales), g.to(made.dtype))))
    for exact, ours in zip(*found, strict=True):
        if ours.dtype == torch.float32:
            assert (ours - exact).norm() <= 1e-6 * exact.norm()
        else:
            assert (ours != exact.bfloat16()).float().mean() < 1e-3


def test_the_tiles_of_a_head_are_summed_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand tiles of about equal parts: a sum in bf16 stops growing after about 256 of them."""
    monkeypatch.setattr(head, "WIDTH", 8)
    torch.manual_seed(0)
    hidden = (torch.randn(12, 16) / 16).bfloat16().float().requires_grad_()
    weight = (1 + torch.randn(8 * 1024, 16) / 4).bfloat16().float()
    targets = torch.randint(0, len(weight), (12,))
    logits = (hidden.detach().bfloat16() @ weight.bfloat16().t()).double()  # rounded as the products are
    table = torch.distributions.Categorical(logits=logits)
    values, entropy = head.through(hidden, weight, targets, 1.0, True, torch.bfloat16)
    torch.testing.assert_close(values.double(), table.log_prob(targets), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), table.entropy(), atol=1e-4, rtol=0)
    (back,) = torch.autograd.grad(values.sum(), hidden)
    exact = weight[targets] - table.probs @ weight.double()
    assert (back - exact).norm() <= 1e-3 * exact.norm()


@pytest.mark.parametrize("largest", [10.0, 40.0, 200.0])
@pytest.mark.parametrize("place", [0, 5, 4095], ids=["first tile", "within", "last tile"])
def test_tiny_probabilities_in_many_tiles_are_not_lost(
    largest: float, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label is almost certain. Each of 255 tiles holds 1/25,000 of the probability, less than the rounding error of
    a logarithm as large as the logits; together they are all that is to be learned."""
    monkeypatch.setattr(head, "WIDTH", 16)
    weight = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0)) / 50
    weight[:, 0] = largest - math.log(4096 / 1e-2)
    weight[place] = torch.tensor([largest] + [0.0] * 15)
    hidden, label = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)), torch.full((3,), place)
    hidden[:, 0] = 1
    hidden.requires_grad_()
    values, entropy = head.through(hidden, weight, label, 1.0, True, torch.float32)
    table = (hidden.detach() @ weight.t()).double().log_softmax(-1)  # of the logits as they are, rounded
    torch.testing.assert_close(values.double(), table[:, place], atol=0, rtol=1e-4)
    torch.testing.assert_close(entropy.double(), -(table.exp() * table).sum(-1), atol=0, rtol=1e-4)
    (back,) = torch.autograd.grad(values.sum(), hidden)
    others = table.exp().index_fill(1, torch.tensor([place]), 0.0)
    exact = others.sum(-1, keepdim=True) * weight[place].double() - others @ weight.double()
    assert (back - exact).norm() <= 1e-4 * largest * exact.norm()
