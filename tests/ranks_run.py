"""What test_ranks starts under torchrun: trainings by two ranks whose results are left in a file."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections import Counter
from contextlib import suppress
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft.tuners.lora import Linear
from test_rl import grpo, policy, student
from tiny import examples, tiny, weights
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from distill.training.forward import checkpoint_layers
from distill.training.launch import run_of_several
from distill.training.loop import TrainSettings, train
from distill.training.optimizer import OptimizerSettings
from distill.training.student import add_lora
from pipeline.errors import Stopped
from rl.critic import Critic
from rl.loss import PolicyLoss

ROWS = examples(13)  # the last batch of an epoch is one row: a rank has nothing to do
HALF: dict[str, Any] = {"precision": "bf16", "checkpointed": True}
STEPS, LEG = 8, 2
"""Updates of a run, and of one leg of a run that several numbers of ranks have a part in."""


def model(lora: bool) -> Any:
    return add_lora(tiny(), rank=4, alpha=8, seed=0) if lora else tiny()


def supervised(
    directory: Path, lora: bool, legs: int | None = None, checkpointed: bool = False, **changes: Any
) -> tuple[Any, list[float]]:
    """A whole run, or a leg of it: the weights and losses. ``checkpointed`` is about gradients."""
    made, metrics, asked = model(lora), list[Any](), count(1)
    if checkpointed:
        checkpoint_layers(made)
    settings = TrainSettings(
        OptimizerSettings(1e-3), batch_size=4, steps=STEPS, micro_batch_tokens=30, **changes
    )  # fmt: skip
    with suppress(Stopped):
        train(
            made, ROWS, settings, checkpoints=directory, on_step=metrics.append,
            stop=lambda: legs is not None and next(asked) >= legs,
        )  # fmt: skip
    return weights(made).clone(), [m.loss for m in metrics]


def refined(directory: Path, **changes: Any) -> tuple[Any, list[float]]:
    """A short run of GRPO, with a reference, two updates a step and passes that only score."""
    made = student()
    how = {"optimizer": OptimizerSettings(1e-3), "steps": 2, "updates": 2, "loss": PolicyLoss(kl=0.1)}
    metrics, _ = grpo(made, directory, policy(made), **(how | changes))
    return weights(made).clone(), [m.reward for m in metrics]


def valued(directory: Path, **changes: Any) -> tuple[Any, list[float]]:
    """The same with a value head that moves the student, too; its own weights come last."""
    critic = Critic(learning_rate=1e-2, detached=False)
    found, rewards = refined(directory, steps=1, group=3, critic=critic, loss=PolicyLoss(), **changes)
    state = torch.load(max(directory.glob("step-*")) / "state.pt", weights_only=True)
    return torch.cat([found, *(w.flatten() for w in state["weights"][-2:])]), rewards


class Written:
    """How often a gradient will be taken through what the library wrote of a layer, by its name, in this process:
    where ours is in its place, never."""

    def __init__(self) -> None:
        self.passes: Counter[str] = Counter()
        for home, name in ((qwen3, "apply_rotary_pos_emb"), (qwen3.Qwen3RMSNorm, "forward"), (Linear, "forward")):
            setattr(home, name, self._counted(f"{home.__name__} {name}", getattr(home, name)))

    def _counted(self, name: str, own: Any) -> Any:
        @wraps(own)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.passes[name] += any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
            return own(*args, **kwargs)

        return counted


def longest_message() -> list[int]:
    """Will hold the bytes of the longest message that one rank sends to the others."""
    told, own = [0], dist.scatter_object_list

    @wraps(own)
    def scatter(output: Any, messages: Any = None, **how: Any) -> None:
        told[0] = max(told[0], *(len(pickle.dumps(message)) for message in messages or [None]), 0)
        own(output, messages, **how)

    setattr(dist, "scatter_object_list", scatter)  # noqa: B010
    return told


def main(directory: Path) -> None:
    written, longest = Written(), longest_message()
    with run_of_several() as first:
        learn(directory, first)
    rank, in_training = os.environ["RANK"], written.passes.total()
    model(True)(torch.arange(9)[None])  # and as the library has it, when training is over
    (directory / f"longest-message-{rank}.json").write_text(json.dumps(longest[0]))
    (directory / f"written-{rank}.json").write_text(json.dumps({"in training": in_training, **written.passes}))


def learn(directory: Path, first: bool) -> None:
    if not first:
        return
    found: dict[str, Any] = {}
    for parallel in ("ddp", "fsdp"):
        for lora in (True, False):
            place = directory / f"{parallel}-{lora}"
            found[f"{parallel} {lora}"] = supervised(place, lora, parallel=parallel)
        found[f"{parallel} half"] = supervised(directory / f"{parallel}-half", True, parallel=parallel, **HALF)
        found[f"grpo {parallel}"] = refined(directory / f"grpo-{parallel}", parallel=parallel)
        found[f"ppo {parallel}"] = valued(directory / f"ppo-{parallel}", parallel=parallel)
        supervised(directory / "legs", False, LEG, parallel=parallel)  # goes on from where another leg ended
    torch.save(found, directory / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
