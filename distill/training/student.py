"""Load a model as a student: with or without an adapter, and with a default learning rate.

This is the one place that knows the ways to hold a student: whole, LoRA, QLoRA; with or without gradient
checkpointing. Shared by the stages that train one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from distill import pretrained
from distill.modelspec import NO_TEMPLATE, Model
from distill.training.forward import checkpoint_layers
from distill.training.lora import add_lora
from pipeline.errors import InputError


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter to train; ``final_norm`` as in `distill.training.lora.add_lora`."""

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
