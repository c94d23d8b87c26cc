"""Loading weights and a tokenizer through transformers: quietly, and with one clear line where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.modelspec import Model, check_directory, directory_of
from pipeline.errors import InputError


def load(model: Model, dtype: str = "float32", device: str = "auto") -> tuple[Any, Any]:
    """(causal LM, tokenizer). ``device`` "auto" is CUDA where there is one. An adapter is merged into its base,
    and its own tokenizer taken where it brings one.

    Raises `InputError` for a directory that lacks something or a hub name that cannot be had.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as library_logging

    logging: Any = library_logging  # its functions have no types
    source = model.source
    if (path := directory_of(source)) is not None:
        check_directory(path, source)
        source = str(path)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    logging.disable_progress_bar()
    try:
        own = model.adapter if model.adapter and (Path(model.adapter) / "tokenizer_config.json").is_file() else None
        tokenizer = AutoTokenizer.from_pretrained(own or source, revision=None if own else model.revision)
        network: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=model.revision, dtype=getattr(torch, dtype)
        )
        if model.adapter:
            network = merged(network, model.adapter)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        name = model.adapter or model.source
        raise InputError(f"model {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return network.to(device), tokenizer


def merged(network: Any, adapter: str) -> Any:
    """``network`` with the LoRA adapter in that directory folded into its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(network, adapter).merge_and_unload()
