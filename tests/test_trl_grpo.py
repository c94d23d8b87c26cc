"""GRPO against TRL's whole trainer: frozen rollouts, ten updates, the same weights.

TRL gets its rollouts through ``rollout_func``, ours through a policy that remembers them. So everything after
sampling is compared: advantages, old and reference log-probabilities, the correction for an engine with other
log-probabilities (in TRL's four modes), loss, accumulation, clipping, AdamW. Some tokens are forced, not
sampled (TRL's ``env_mask``). Skipped where TRL is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="TRL is not installed (extra: oracle)")

from datasets import Dataset  # noqa: E402
from tiny import VOCABULARY, chat_tokenizer, tiny, weights  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from distill.randomness import generator  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.training.student import add_lora  # noqa: E402
from distill.types import Completion, Finish, Problem, Request, Sampling  # noqa: E402
from rl import loss  # noqa: E402
from rl.grpo import GrpoSettings, train_grpo  # noqa: E402
from rl.monitors import GrpoMetrics  # noqa: E402

PROMPTS, GROUP, STEPS, PASSES, LONGEST, RATE = 3, 4, 5, 2, 8, 1e-3
CAP = 1.5
GIVEN = 2
"""The position of the forced token in every longer response."""


def drawn(*place: object) -> list[int]:
    draw = generator("grpo parity", *place)
    return [int(i) for i in draw.integers(3, VOCABULARY, int(draw.integers(2, LONGEST)))]


def forced(ids: Sequence[int]) -> tuple[int, ...]:
    return (GIVEN,) if len(ids) > GIVEN + 1 else ()


def prompt(name: str) -> list[int]:
    return drawn(name)


def engine_logprobs(*place: object) -> list[float]:
    """The log-probabilities that the engine reports for its tokens; the trainer's are -4.8 on average."""
    ids = drawn(*place)
    return [float(x) for x in generator("engine", *place).uniform(-5.3, -4.3, len(ids))]


def reward(ids: Sequence[int]) -> float:
    return sum(ids) / 100 + len(ids)


class Remembering:
    """A policy whose samples are fixed beforehand."""

    name = "frozen"

    def refresh(self) -> None:
        pass

    def generate(self, requests: Sequence[Request], stopping: Callable[[], bool]) -> Iterator[Completion]:
        for request in requests:
            _, _, name, index = request.key.split("/")
            ids = tuple(drawn(name, int(index)))
            said = tuple(engine_logprobs(name, int(index)))
            yield Completion(request.key, "", tuple(prompt(name)), "", ids, said, Finish.STOP, forced=forced(ids))


class Corrected(GRPOTrainer):
    """Corrects the rollouts of ``rollout_func`` as if vLLM had sampled them."""

    def _generate(self, prompts: list[Any]) -> Any:
        self.use_vllm = False
        found = super()._generate(prompts)
        self.use_vllm = True
        return found


def ours(model: Any, directory: Path, kind: str, kl: float, scale: Any, mode: str) -> list[float]:
    """The gradient norms, averaged over each step's updates; AdamW alone would hide a wrong scale."""
    recipe, aggregation = loss.RECIPES[kind]
    level, how = mode.split("_")
    correction = loss.EngineCorrection(cast(Any, how), cast(Any, level), high=CAP)
    policy = replace(recipe, correction=correction, kl=kl, kl_corrected=True)
    settings = GrpoSettings(
        OptimizerSettings(RATE, schedule="constant", warmup=0), steps=STEPS, group=GROUP, passes=PASSES, scale=scale,
        loss=policy, aggregation=aggregation, sampling=Sampling(max_tokens=LONGEST), micro_batch_tokens=60,
    )  # fmt: skip
    metrics: list[GrpoMetrics] = []
    train_grpo(
        model, Remembering(), settings, checkpoints=directory, on_step=metrics.append,
        sample=lambda step, _: [Problem(str(PROMPTS * step + i), "", "", "", "") for i in range(PROMPTS)],
        reward=lambda asked: [reward(c.token_ids) for _, c in asked],
    )  # fmt: skip
    assert all(0 < m.corrected < 1 for m in metrics)
    return [m.grad_norm for m in metrics]


def theirs(model: Any, directory: Path, kind: str, kl: float, scale: str, mode: str) -> list[float]:
    def rollouts(names: list[str], trainer: Any) -> dict[str, Any]:
        made = [drawn(name, index % GROUP) for index, name in enumerate(names)]
        mask = [[int(t not in forced(ids)) for t in range(len(ids))] for ids in made]
        said = [engine_logprobs(name, index % GROUP) for index, name in enumerate(names)]
        return {"prompt_ids": list(map(prompt, names)), "completion_ids": made, "logprobs": said, "env_mask": mask}

    recipe, _ = loss.RECIPES[kind]
    arguments = GRPOConfig(
        output_dir=str(directory), max_steps=STEPS * PASSES, num_generations=GROUP, num_iterations=PASSES,
        per_device_train_batch_size=PROMPTS * GROUP // 2, gradient_accumulation_steps=2, max_completion_length=LONGEST,
        loss_type=kind, beta=kl, scale_rewards=scale, epsilon=recipe.clip_low, epsilon_high=recipe.clip_high,
        importance_sampling_level=recipe.level, learning_rate=RATE, lr_scheduler_type="constant", adam_beta2=0.95,
        shuffle_dataset=False, gradient_checkpointing=False, use_cpu=True, bf16=False, report_to="none",
        save_strategy="no", disable_tqdm=True, logging_steps=1, vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=CAP,
    )  # fmt: skip
    names = Dataset.from_list([{"prompt": str(i)} for i in range(PROMPTS * STEPS)])
    trainer = Corrected(
        model=model, args=arguments, train_dataset=names, processing_class=chat_tokenizer(), rollout_func=rollouts,
        reward_funcs=lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
    )  # fmt: skip
    trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return [sum(norms[i : i + PASSES]) / PASSES for i in range(0, len(norms), PASSES)]


CASES = [
    ("dapo", True, 0.04, "group", "token_truncate"),
    ("dr_grpo", True, 0.0, "none", "token_mask"),
    ("grpo", False, 0.0, "batch", "sequence_truncate"),
    ("cispo", True, 0.0, "group", "sequence_mask"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "lora", "kl", "scale", "mode"), CASES, ids=[f"{c[0]}-{'lora' if c[1] else 'full'}" for c in CASES])  # fmt: skip
def test_ten_updates_on_frozen_rollouts_equal_trl_s(
    kind: str, lora: bool, kl: float, scale: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    ends, norms = [], []
    for run in (ours, theirs):
        made = add_lora(tiny(), rank=4, alpha=8, seed=1) if lora else tiny()
        before = weights(made)
        norms.append(run(made, tmp_path / run.__name__, kind, kl, scale, mode))
        ends.append(weights(made).detach())
        assert (ends[-1] - before).abs().max() > 1e-3
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and len(norms[0]) == STEPS
    # AdamW divides by the gradient's own size, so the rounding of a gradient near zero is not scaled down: it shows in one
    # weight in a thousand, and on another CPU in other weights
    gaps = (ends[0] - ends[1]).abs()
    assert gaps.quantile(0.999) < 3e-6 and gaps.max() < RATE / 10
