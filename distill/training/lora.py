"""LoRA through peft, on all linear layers, and a faster forward for small ones.

peft owns structure, names, saving and merging, so that adapters are what the ecosystem reads; the
initial values come from the seed alone. QLoRA needs nothing here: hand `add_lora` a model loaded
with a bitsandbytes configuration.

`folded` replaces the forward of LoRA layers while training: W + s B A is formed once per micro-batch
and the tokens pass through one product instead of three. Same function, same gradients; fewer
operations whenever in * out < 3 r (in + out), that is where the rank is not small against the layer,
and always fewer passes over memory and less Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.randomness import generator
from pipeline.errors import InputError

FOLD = 4
"""Fold where in * out <= FOLD r (in + out). Equal operations at 3; passes over memory are saved beyond."""


def add_lora(model: Any, *, rank: int, alpha: float, seed: int, final_norm: bool = False) -> Any:
    """Wrap ``model`` with a LoRA adapter on every linear layer but the output head; dropout 0.

    ``final_norm`` trains (a copy of) the last norm's weight too: it scales the logits, which low-rank
    updates inside the network can hardly do, and which is most of what RL has to change at first.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
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


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Within this context, LoRA layers where it saves work multiply by W + s B A."""
    from peft.tuners.lora import Linear

    layers = [m for m in model.modules() if type(m) is Linear and _worth_folding(m)]
    for layer in layers:
        setattr(layer, "forward", partial(_folded_forward, layer))  # noqa: B010
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _worth_folding(layer: Any) -> bool:
    if type(layer.get_base_layer()) is not nn.Linear or layer.merged or layer.lora_variant:
        return False
    if len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    if not isinstance(layer.lora_dropout[name], nn.Identity):
        return False
    rows, columns = layer.get_base_layer().weight.shape
    return rows * columns <= FOLD * layer.r[name] * (rows + columns)


def _folded_forward(layer: Any, x: Tensor) -> Tensor:
    base = layer.get_base_layer()
    if layer.disable_adapters:
        return F.linear(x, base.weight, base.bias)
    name = layer.active_adapters[0]
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return F.linear(x, torch.addmm(base.weight, b, a, alpha=layer.scaling[name]), base.bias)
