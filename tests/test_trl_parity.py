"""TRL as the oracle of the policy-gradient loss, the advantages and the log-probabilities.

TRL's own `GRPOTrainer._compute_loss` is run on log-probabilities that are leaves, for every combination of
options that both sides have; ours must give the same loss and the same gradient. Skipped where TRL is not
installed: it is not a dependency, but `make test-all` installs it.
"""

from __future__ import annotations

import inspect
import itertools
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="TRL is not installed (extra: oracle)")

from tiny import tiny  # noqa: E402
from trl import GRPOTrainer  # noqa: E402
from trl.rewards import get_soft_overlong_punishment  # noqa: E402
from trl.trainer.utils import add_fused_lm_head, nanstd  # noqa: E402

from distill.randomness import generator  # noqa: E402
from distill.training.batching import from_tokens  # noqa: E402
from distill.training.forward import pack, score_tokens  # noqa: E402
from rl import credit, loss  # noqa: E402

LENGTHS = (4, 7, 2, 6)
LONGEST = 9
MICRO = ([0, 1], [2, 3])
"""Two micro-batches of one optimizer step."""


def drawn(name: str, spread: float = 0.4) -> Any:
    return torch.from_numpy(generator("parity", name).normal(-1, spread, (len(LENGTHS), max(LENGTHS))))


MASK = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).double()
NEW, OLD, REFERENCE, ENGINE = (drawn(name) for name in ("new", "old", "reference", "engine"))
ADVANTAGES = torch.tensor([1.1, -0.4, 0.7, -1.3], dtype=torch.float64)
TOKEN_ADVANTAGES = drawn("advantages", 1.0)


def theirs(
    kind: str, level: str, beta: float, delta: float | None, engine: bool, corrected: bool, per_token: bool
) -> tuple[float, Any]:
    leaf = NEW.clone().requires_grad_()
    total = 0.0
    recipe, _ = loss.RECIPES[kind]
    for rows in MICRO:
        trainer = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *_, rows=rows, **__: (leaf[rows], torch.zeros_like(NEW[rows]), None),
            model=SimpleNamespace(training=True), args=SimpleNamespace(delta=delta, use_bias_correction_kl=corrected, steps_per_generation=1),
            accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, **_: x, gather=lambda x: x, gather_for_metrics=lambda x: x, sync_gradients=True),
            _metrics={"train": defaultdict(list)}, aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
            importance_sampling_level=level, beta=beta, loss_type=kind, epsilon_low=recipe.clip_low, epsilon_high=recipe.clip_high,
            use_vllm=engine, vllm_importance_sampling_correction=True, current_gradient_accumulation_steps=len(MICRO),
            max_completion_length=LONGEST, _entropy_bonus_enabled=False,
        )  # fmt: skip
        inputs = {
            "prompt_ids": torch.zeros(len(rows), 1).long(), "prompt_mask": torch.ones(len(rows), 1).long(),
            "completion_ids": torch.zeros_like(NEW[rows]).long(), "completion_mask": MASK[rows],
            "advantages": TOKEN_ADVANTAGES[rows] if per_token else ADVANTAGES[rows], "old_per_token_logps": OLD[rows], "ref_per_token_logps": REFERENCE[rows],
            "importance_sampling_ratio": (OLD[rows] - ENGINE[rows]).exp().clamp(max=2.0), "num_items_in_batch": MASK.sum() / len(MICRO),
        }  # fmt: skip
        part = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
        part.backward()
        total += part.item()
    return total, leaf.grad


def ours(
    kind: str, level: str, beta: float, delta: float | None, engine: bool, corrected: bool, per_token: bool
) -> tuple[float, Any]:
    recipe, aggregation = loss.RECIPES[kind]
    correction = loss.EngineCorrection("truncate" if engine else "none", high=2.0)
    policy = replace(recipe, level=level, clip_cap=delta, correction=correction, kl=beta, kl_corrected=corrected)
    weights = loss.token_weights(LENGTHS, aggregation, longest=LONGEST, micro_batches=MICRO)
    leaf = NEW.clone().requires_grad_()
    total = 0.0
    for rows in MICRO:
        kept = MASK[rows].bool()

        def flat(values: Any, rows: Any = rows, kept: Any = kept) -> Any:
            return values[rows][kept]

        shape = torch.ones_like(NEW)
        streams = {
            "advantage": flat(TOKEN_ADVANTAGES if per_token else ADVANTAGES[:, None] * shape), "engine": flat(ENGINE), "old": flat(OLD),
            "reference": flat(REFERENCE), "weight": flat(torch.tensor(weights, dtype=torch.float64)[:, None] * shape),
            "row": flat(torch.arange(len(LENGTHS))[:, None] * shape),
        }  # fmt: skip
        part = policy(flat(leaf), streams)
        part.backward()
        total += part.item()
    return total, leaf.grad


GRID = list(
    itertools.product(
        ("grpo", "bnpo", "dr_grpo", "dapo", "cispo"),
        ("token", "sequence"),
        (0.0, 0.04),
        (None, 1.5),
        (False, True),
        (False, True),
        (False, True),
    )
)


GRID = [
    case for case in GRID if case[0] != "cispo" or case[3] is None
]  # dual clipping is an option of the clipped loss alone


@pytest.mark.filterwarnings("ignore")
def test_loss_and_gradient_equal_trl_on_the_whole_grid() -> None:
    assert len(set(GRID)) == 288
    for case in GRID:
        their_loss, their_gradient = theirs(*case)
        our_loss, our_gradient = ours(*case)
        assert our_loss == pytest.approx(their_loss, rel=1e-7), case
        torch.testing.assert_close(
            our_gradient, their_gradient, rtol=1e-6, atol=1e-9, msg=lambda m, c=case: f"{c}: {m}"
        )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropies_of_packed_rows_equal_trl_s_of_padded_rows(temperature: float) -> None:
    model, patched = tiny(initializer_range=0.3), tiny(initializer_range=0.3)
    add_fused_lm_head(patched, temperature=temperature, outputs=("log_probs", "entropy"))
    draw = generator("parity", "ids")
    rows = [(draw.integers(3, 40, 5).tolist(), draw.integers(3, 40, n).tolist()) for n in LENGTHS]
    width = max(LENGTHS)
    ids = torch.tensor([[*p, *r, *[0] * (width - len(r))] for p, r in rows])
    mask = torch.tensor([[1] * (5 + len(r)) + [0] * (width - len(r)) for _, r in rows])
    trainer = SimpleNamespace(
        temperature=temperature, use_liger_kernel=False, args=SimpleNamespace(use_liger_kernel=False),
        model_kwarg_keys=set(), accelerator=SimpleNamespace(unwrap_model=lambda m: m, autocast=nullcontext), aux_loss_enabled=False,
    )  # fmt: skip
    with torch.no_grad():
        measured = inspect.unwrap(GRPOTrainer._get_per_token_logps_and_entropies)  # without its profiler
        found, spread, _ = measured(trainer, patched, ids, mask, width, compute_entropy=True)
        batch = pack([from_tokens(str(i), p, r) for i, (p, r) in enumerate(rows)])
        made = score_tokens(model, batch, temperature, entropy=True)
    assert made.entropy is not None
    ours = (torch.split(values, [e.supervised for e in batch.examples]) for values in (made.logprobs, made.entropy))
    for example, got, entropy in zip(batch.examples, *ours, strict=True):
        row = int(example.key)
        torch.testing.assert_close(got, found[row, : len(got)], atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy, spread[row, : len(got)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("group", [2, 4])
def test_advantages_equal_trl_s_formulas(group: int) -> None:
    """As in `_generate_and_score_completions`: rewards minus the group's mean, over TRL's own deviation, and 0 where a
    reward is NaN. Includes constant groups, and groups with one judged sample or none."""
    seen = set()
    for seed in range(100):
        draw = generator("parity", group, seed)
        rewards = torch.from_numpy(draw.integers(0, 3, (5, group)).astype(float))
        rewards[torch.from_numpy(draw.random((5, group)) < 0.2)] = torch.nan
        judged = (~rewards.isnan()).sum(1)
        seen |= {(int(n), bool(one)) for n, one in zip(judged, credit.informative(rewards), strict=True)}
        centred = rewards - rewards.nanmean(1, keepdim=True)
        deviations = {"group": nanstd(rewards, 1, keepdim=True) + 1e-4, "batch": nanstd(rewards) + 1e-4, "none": 1.0}
        for scale, deviation in deviations.items():
            theirs = (centred / deviation).nan_to_num(0.0)
            ours = credit.advantages(rewards, scale=cast(Any, scale))
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert {(0, False), (1, False), (group, False), (group, True)} <= seen


def test_the_soft_overlong_penalty_equals_trl_s() -> None:
    punish = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    lengths = [1, 79, 80, 81, 95, 99, 100, 130]
    assert [credit.soft_overlong(n, 100, 20) for n in lengths] == pytest.approx(punish([[0] * n for n in lengths]))
