"""Load weights and a tokenizer with transformers, quietly, and with a one-line error if that fails."""

from __future__ import annotations

from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal

from distill import hub
from distill.modelspec import Model, check_directory, directory_of
from distill.training.allocator import limit_kernel_caches
from pipeline.errors import InputError

Quantization = Literal["nf4"]


def load(
    model: Model, dtype: str = "float32", device: str = "auto", quantize: Quantization | None = None
) -> tuple[Any, Any]:
    """Load (causal LM, tokenizer), with a LoRA adapter merged into the weights.

    ``device`` "auto" is CUDA if there is a GPU. ``quantize`` "nf4" holds the linear layers (not the output head) in 4
    bits and computes in ``dtype``. Raises `InputError` for an incomplete directory or an unavailable hub model.
    """
    source = _checked(model)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    limit_kernel_caches()  # before the first matrix product: the sampler's, if a process samples before it trains
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_in(model) or source, revision=model.revision)
        how = _quantised(model, dtype, device) if quantize else {}
        network: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=model.revision, dtype=getattr(torch, dtype), **how
        )
        network.config._commit_hash = model.revision  # transformers no longer records it
        network = _in_one_layout(network) if quantize else network.to(device)
        if model.adapter:
            network = _folded(network, model.adapter)
            # An adapter trained from here belongs on the merged weights, which no file holds. With either name alone as
            # its base it would load without an error and be wrong.
            network.name_or_path = f"{model.adapter} merged into {model.source}"
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        named, lines = model.adapter or model.source, [line.strip() for line in str(error).strip().splitlines()]
        message = " ".join(lines[: 2 if lines[0].endswith(":") else 1])  # torch puts the mismatch on the second line
        other = f"; is it an adapter for a base model other than {source}?" if model.adapter else ""
        raise InputError(f"model {named} cannot be loaded: {message}{other}") from error
    if getattr(network, "_hf_peft_config_loaded", False):
        raise InputError(f"model {model.source} is an adapter on the hub; download it and name the directory")
    return network, tokenizer


def tokenizer_of(model: Model) -> Any:
    """Load the tokenizer alone."""
    source = _checked(model)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(_tokenizer_in(model) or source, revision=model.revision)
    except (OSError, ValueError) as error:
        raise InputError(f"model {model.source} has no tokenizer: {str(error).strip().splitlines()[0]}") from error


def quiet_libraries() -> None:
    """Turn off the progress bars of transformers, which would disturb our display, and the warning of bitsandbytes
    about a missing kernel, which `_in_one_layout` rules out anyway. Call it before importing bitsandbytes."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)


def _quantised(model: Model, dtype: str, device: str) -> dict[str, Any]:
    """The arguments with which transformers loads in NF4 with double quantisation (QLoRA, arXiv:2305.14314)."""
    if find_spec("bitsandbytes") is None:
        raise InputError("quantize: nf4 needs bitsandbytes; pip install 'distill-reasoning[qlora]', or leave it out")
    if model.adapter:
        raise InputError(f"quantize: the adapter {model.adapter} cannot be folded into 4 bits; merge it first")
    import torch
    from transformers import BitsAndBytesConfig

    nf4: Any = BitsAndBytesConfig  # it has no types
    return {
        "device_map": {"": device},
        "quantization_config": nf4(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        ),
    }


def _in_one_layout(network: Any) -> Any:
    """Stop bitsandbytes from repacking the weights for inference, as it does on CPUs with AVX512-BF16.

    It repacks them permanently, in bf16 whatever the compute type, and only supports sizes divisible by 32. Sampling
    and training would then see different weights, and many models would crash.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return network


def _checked(model: Model) -> str:
    path = directory_of(model.source)
    if path is None:
        hub.check_reachable(model.source, model.revision)
        hub.quiet()
        return model.source
    check_directory(path, model.source)
    return str(path)


def _tokenizer_in(model: Model) -> str | None:
    """The adapter's directory, if it has its own tokenizer (and chat template)."""
    files = ("tokenizer.json", "tokenizer_config.json")
    there = model.adapter and any((Path(model.adapter) / name).is_file() for name in files)
    return model.adapter if there else None


def _folded(network: Any, adapter: str) -> Any:
    """Merge the adapter into the weights, so that sampling and training cost no more than with the base."""
    from peft import PeftModel

    merged: Any = PeftModel.from_pretrained(network, adapter).merge_and_unload(safe_merge=True)
    return merged
