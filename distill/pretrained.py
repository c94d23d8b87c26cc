"""Loading weights and a tokenizer through transformers: quietly, and with one clear line where it fails."""

from __future__ import annotations

from typing import Any

from distill.modelspec import Model, check_directory, directory_of
from pipeline.errors import InputError


def load(model: Model, dtype: str = "float32", device: str = "auto") -> tuple[Any, Any]:
    """(causal LM, tokenizer). ``device`` "auto" is CUDA where there is one.

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
        tokenizer = AutoTokenizer.from_pretrained(source, revision=model.revision)
        network: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=model.revision, dtype=getattr(torch, dtype)
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"model {model.source} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    return network.to(device), tokenizer
