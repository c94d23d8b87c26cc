"""LoRA through peft, on all linear layers.

peft owns structure, names, saving and merging, so the ecosystem can read the adapters. The initial
values depend only on the seed. QLoRA needs nothing here: pass `add_lora` a model loaded with a
bitsandbytes configuration.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from distill.randomness import generator
from pipeline.errors import InputError


def add_lora(model: Any, *, rank: int, alpha: float, seed: int, final_norm: bool = False) -> Any:
    """Wrap ``model`` with a LoRA adapter on every linear layer except the output head; dropout 0.

    ``final_norm`` also trains (a copy of) the last norm's weight. It scales the logits, which low-rank
    updates inside the network can hardly do, and which is most of what RL has to change at first.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        revision=getattr(model.config, "_commit_hash", None),  # of a base from the hub, set by `distill.pretrained`
        modules_to_save=[_final_norm(model)] if final_norm else None,
    )
    student = get_peft_model(model, config)
    for name, weight in student.named_parameters():
        if "lora_A" in name:  # peft draws from the global generator; B is zero
            bound = 1 / math.sqrt(weight.shape[1])
            values = generator(seed, "lora", name).uniform(-bound, bound, weight.shape)
            weight.data.copy_(torch.from_numpy(values))
    return student


def _final_norm(model: Any) -> str:
    """The name of the norm outside the layers: ``model.norm`` in Qwen3 and Llama."""
    names = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    outside = [name for name in names if not any(part.isdigit() for part in name.split("."))]
    if len(outside) != 1:
        raise InputError(f"{type(model).__name__}: has {len(outside)} norms outside its layers; cannot train the last")
    return outside[0]
