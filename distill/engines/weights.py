"""A copy of a model for sampling: LoRA folded into the weights, the trainer's parameters untouched.

The copy shares the frozen parameters with its source and owns the others (those being trained, and
those with an adapter), which `InferenceCopy.refresh` brings up to date. So sampling from a policy
costs as much as from its base model, and frozen weights exist once. Owned weights are in memory shared
with forked processes, so a refresh reaches the sampling workers without a message.

Left out: adapters that are not LoRA on linear layers, DoRA, and models sharded by FSDP.
"""

from __future__ import annotations

import copy
import mmap
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from distill.engines.attention import plug_in
from distill.engines.norms import shorten_norms
from pipeline.errors import InputError


class InferenceCopy:
    """`model` has the weights that ``source`` (a causal LM, or a peft model of one) had at the last `refresh`."""

    def __init__(self, source: Any) -> None:
        base = source.get_base_model() if hasattr(source, "peft_config") else source
        shared = {id(t): t for t in chain(base.parameters(), base.buffers())}
        self.model: Any = copy.deepcopy(base, shared)
        for module in self.model.modules():
            module.__dict__.pop("forward", None)  # a training's own (`distill.training.lean`)
        self._owned: list[tuple[Tensor, Any]] = []
        for name, layer in base.named_modules():
            if hasattr(layer, "get_base_layer"):
                self.model.set_submodule(name, self._plain(layer))
        self._own_trained()
        self.model.eval().requires_grad_(False)
        plug_in(self.model)
        shorten_norms(self.model)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the source's current weights."""
        for weight, origin in self._owned:
            weight.copy_(origin if isinstance(origin, Tensor) else folded(origin))

    def _plain(self, layer: Any) -> nn.Linear:
        """A plain linear layer in place of one with an adapter, whether its base is quantised or not."""
        base = layer.get_base_layer()
        if not isinstance(base, nn.Linear) or not hasattr(layer, "get_delta_weight") or layer.lora_variant:
            raise InputError(f"only plain LoRA on linear layers can be sampled from, not {type(layer).__name__}")
        linear = plain(layer, _own(folded(layer)))
        self._owned.append((linear.weight, layer))
        return linear

    def _own_trained(self) -> None:
        """Give the copy its own memory for parameters that the trainer changes in place."""
        owned: dict[int, nn.Parameter] = {}  # by identity, so that tied weights stay tied
        for module in self.model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.requires_grad:
                    if id(parameter) not in owned:
                        owned[id(parameter)] = _own(parameter)
                        self._owned.append((owned[id(parameter)], parameter))
                    setattr(module, name, owned[id(parameter)])


def plain(layer: Any, weight: Tensor) -> nn.Linear:
    """A linear layer with this ``weight``, and the bias of ``layer``, which has an adapter."""
    base = layer.get_base_layer()
    linear = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), base.bias
    return linear


@torch.no_grad()
def folded(layer: Any) -> Tensor:
    """W + s B A over the active adapters: the weight that makes a plain layer equal to ``layer``."""
    from peft.utils.integrations import dequantize_module_weight

    weight = dequantize_module_weight(layer.get_base_layer()).detach()
    if layer.disable_adapters or layer.merged:
        return weight
    for adapter in layer.active_adapters:
        if adapter in layer.scaling:
            weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
    return weight


def _own(tensor: Tensor) -> nn.Parameter:
    """An unfilled parameter of this shape; on a CPU, in memory shared with forked processes."""
    memory = shared(tensor) if tensor.device.type == "cpu" else torch.empty_like(tensor)
    return nn.Parameter(memory, requires_grad=False)


def shared(tensor: Tensor) -> Tensor:
    """Zeros like ``tensor`` in memory shared with processes forked from now on. Not torch's own shared memory: that is
    in /dev/shm, which is small in containers."""
    buffer = mmap.mmap(-1, max(1, tensor.nbytes))
    return torch.frombuffer(buffer, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)
