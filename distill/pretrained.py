"""Loading weights and a tokenizer through transformers: quietly, and with one clear line where it fails."""

from __future__ import annotations

from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, Literal

from distill import hub
from distill.modelspec import Model, check_directory, directory_of
from distill.training.kernels import few_kernels
from pipeline.errors import InputError

Quantization = Literal["nf4"]


def load(
    model: Model, dtype: str = "float32", device: str = "auto", quantize: Quantization | None = None
) -> tuple[Any, Any]:
    """(causal LM, tokenizer), a LoRA adapter folded into the weights. ``device`` "auto" is CUDA where there is one.

    ``quantize`` "nf4" holds the linear layers (not the output head) in 4 bits and computes in ``dtype``.
    Raises `InputError` for a directory that lacks something or a hub name that cannot be had.
    """
    source = _checked(model)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hush()
    few_kernels()  # where a process samples before it trains, the first product is the sampler's
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_in(model) or source, revision=model.revision)
        how = _quantised(model, dtype, device) if quantize else {}
        network: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=model.revision, dtype=getattr(torch, dtype), **how
        )
        network.config._commit_hash = model.revision  # transformers writes it down no more
        network = _in_one_layout(network) if quantize else network.to(device)
        if model.adapter:
            network = _folded(network, model.adapter)
            # No file holds what an adapter trained from here belongs on: by either name it would load, and be wrong.
            network.name_or_path = f"{model.adapter} merged into {model.source}"
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        named, lines = model.adapter or model.source, [line.strip() for line in str(error).strip().splitlines()]
        said = " ".join(lines[: 2 if lines[0].endswith(":") else 1])  # torch names what does not fit in the second
        other = f"; is it an adapter of another base model than {source}?" if model.adapter else ""
        raise InputError(f"model {named} cannot be loaded: {said}{other}") from error
    if getattr(network, "_hf_peft_config_loaded", False):
        raise InputError(f"model {model.source} is an adapter on the hub; download it and name the directory")
    return network, tokenizer


def tokenizer_of(model: Model) -> Any:
    """The tokenizer alone."""
    source = _checked(model)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(_tokenizer_in(model) or source, revision=model.revision)
    except (OSError, ValueError) as error:
        raise InputError(f"model {model.source} has no tokenizer: {str(error).strip().splitlines()[0]}") from error


def hush() -> None:
    """Keep transformers from drawing progress bars over whatever display there is, and bitsandbytes from telling of a
    kernel that it lacks, which `_in_one_layout` rules out anyway. For every process that is to import it, before."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)


def _quantised(model: Model, dtype: str, device: str) -> dict[str, Any]:
    """What makes transformers load in NF4 with double quantisation (QLoRA, https://arxiv.org/abs/2305.14314)."""
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
    """On a CPU with AVX512-BF16 bitsandbytes packs weights anew for inference: in bf16 whatever the compute type, for
    sizes that 32 divides alone, and for good. Then sampling and training would see two models, and many crash."""
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
    """The adapter's directory, where it has a tokenizer (and chat template) of its own."""
    files = ("tokenizer.json", "tokenizer_config.json")
    there = model.adapter and any((Path(model.adapter) / name).is_file() for name in files)
    return model.adapter if there else None


def _folded(network: Any, adapter: str) -> Any:
    """The adapter's change added to the weights: sampling and training then cost what the base does."""
    from peft import PeftModel

    merged: Any = PeftModel.from_pretrained(network, adapter).merge_and_unload(safe_merge=True)
    return merged
