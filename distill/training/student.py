"""Load a model as a student: with or without an adapter, and with a default learning rate.

This is the one place that knows the ways to hold a student: whole, LoRA, QLoRA; with or without gradient
checkpointing. Shared by the stages that train one. peft owns structure, names, saving and merging of an adapter, so the
ecosystem can read it; its initial values depend only on the seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from distill import pretrained
from distill.modelspec import NO_TEMPLATE, Model
from distill.randomness import generator
from distill.training.forward import checkpoint_layers
from pipeline.errors import InputError


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter to train; ``final_norm`` as in `add_lora`."""

    rank: int
    alpha: float
    final_norm: bool = False


def load(
    model: Model,
    adapter: Adapter | None = None,
    *,
    seed: int = 0,
    quantize: pretrained.Quantization | None = None,
    gradient_checkpointing: bool = False,
    half: bool = False,
    half_base: bool = False,
    device: str = "auto",
) -> tuple[Any, Any]:
    """(network on the best device, tokenizer). Trained weights are fp32. So are the others, except that with
    ``quantize`` the base's linear layers are in NF4, and with ``half_base`` all that is not trained is in bf16.

    Without an ``adapter`` all weights are trained. ``gradient_checkpointing`` keeps only each layer's input
    and recomputes the rest in the backward pass: a third more time, the same gradients. ``half`` means that
    training will compute in bf16, which the device must support.
    """
    dtype = "bfloat16" if half_base else "float32"
    network, tokenizer = pretrained.load(model, dtype, device, quantize)
    if tokenizer.chat_template is None:
        raise InputError(f"model {model.source}: {NO_TEMPLATE}")
    if half and network.device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError("precision: bf16 is not supported by this GPU; use fp32")
    if adapter:
        network = add_lora(network, rank=adapter.rank, alpha=adapter.alpha, seed=seed, final_norm=adapter.final_norm)
    if gradient_checkpointing:
        checkpoint_layers(network)
    for weight in network.parameters():
        if weight.requires_grad:  # in bf16 an update of less than 1 / 256 of a weight is lost
            weight.data = weight.data.float()
    return network, tokenizer


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


LORA_FACTOR = 10
"""The best learning rate of LoRA divided by that of full fine-tuning, for any rank (LoRA Without Regret)."""
FALL = {"llama": 0.781}
"""The power with which the best learning rate falls with the hidden size, by ``model_type``; Qwen's for all others."""


def default_learning_rate(network: Any) -> float:
    """5e-5 (2000 / hidden size)^P, ten times that for LoRA: fitted to sweeps over models of 1B to 70B parameters
    (tinker-cookbook, ``hyperparam_utils.py``)."""
    config = network.config.get_text_config()
    rate = 5e-5 * (2000 / config.hidden_size) ** FALL.get(config.model_type, 0.0775)
    return float(f"{rate * (LORA_FACTOR if hasattr(network, 'peft_config') else 1):.2g}")
