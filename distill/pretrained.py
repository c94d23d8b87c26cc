"""Loading weights and a tokenizer through transformers: quietly, and with one clear line where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.modelspec import Model, check_directory, directory_of
from pipeline.errors import InputError


def load(model: Model, dtype: str = "float32", device: str = "auto") -> tuple[Any, Any]:
    """(causal LM, tokenizer), a LoRA adapter folded into the weights. ``device`` "auto" is CUDA where there is one.

    Raises `InputError` for a directory that lacks something or a hub name that cannot be had.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as library_logging

    logging: Any = library_logging  # its functions have no types
    source = _checked(model.source)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_in(model) or source, revision=model.revision)
        network: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=model.revision, dtype=getattr(torch, dtype)
        )
        network = network.to(device)
        if model.adapter:
            network = _folded(network, model.adapter)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        named = model.adapter or model.source
        raise InputError(f"model {named} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    if getattr(network, "_hf_peft_config_loaded", False):
        raise InputError(f"model {model.source} is an adapter on the hub; download it and name the directory")
    return network, tokenizer


def _checked(source: str) -> str:
    path = directory_of(source)
    if path is None:
        return source
    check_directory(path, source)
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
