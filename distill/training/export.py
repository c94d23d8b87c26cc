"""Export a trained model as files that the ecosystem loads without us.

Writes ``adapter/`` (peft, safetensors) and ``model/`` (merged weights, tokenizer with chat template,
generation config), reads the latter back and compares it with the trained model. A quantised base
(QLoRA) is dequantised first: an adapter merged into 4 bits would be rounded away. The caller adds cards and
lineage.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.engines.weights import folded, plain
from distill.pretrained import quiet_libraries
from distill.tensors import copied
from distill.training.adapted import is_packed
from distill.training.forward import causal_lm
from distill.turns import stop_ids
from pipeline.errors import PipelineError

ADAPTER, MODEL = "adapter", "model"
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest logit difference allowed, relative to the largest logit: enough for the rounding of the merge, no more."""


def load_model(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load a causal LM from a local directory, without network access."""
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True)


def export_student(model: Any, tokenizer: Any, directory: Path, half: bool = False) -> None:
    """Write ``directory/model`` (in bf16 if ``half``), and ``directory/adapter`` if there is an adapter. ``model`` is
    unchanged.

    Raises `PipelineError` if the logits of the written model, or of the merged model before rounding, differ from those
    of the trained model.
    """
    quiet_libraries()
    merged = model
    if hasattr(model, "peft_config"):
        # Otherwise peft looks up the base's vocabulary on the hub; ours is always the same.
        model.save_pretrained(directory / ADAPTER, safe_serialization=True, save_embedding_layers=False)
        _make_portable(directory / ADAPTER / "adapter_config.json")
        merged = _merged(model)
    if half:
        if merged is not model:  # before rounding, which changes as much as an adapter and would hide errors
            _check(model, merged)
        merged = (copied(merged) if merged is model else merged).to(torch.bfloat16)
    generation = merged.generation_config
    ends = stop_ids(generation.eos_token_id, tokenizer)
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends
    generation.pad_token_id = tokenizer.pad_token_id if generation.pad_token_id is None else generation.pad_token_id
    merged.save_pretrained(directory / MODEL, safe_serialization=True)
    tokenizer.save_pretrained(directory / MODEL)
    dtype = merged.dtype
    del merged  # free it before main memory has to hold the model that is read back
    _check(model, load_model(directory / MODEL, dtype))


def _merged(model: Any) -> Any:
    """A plain copy with the adapter merged into its weights. It lies in main memory: a GPU that had room to train may
    have none for a second copy of all weights, unpacked if they were in 4 bits."""
    merged = copied(model, shared=filter(is_packed, model.parameters()))
    for name, layer in model.named_modules():
        if hasattr(layer, "get_base_layer") and is_packed(layer.get_base_layer().weight):
            merged.set_submodule(name, plain(merged.get_submodule(name), folded(layer).cpu()))
    merged = merged.merge_and_unload()
    if getattr(merged, "is_quantized", False):  # it no longer is, and neither the model nor its files may claim so
        merged.hf_quantizer.remove_quantization_config(merged)
    return merged


def _make_portable(path: Path) -> None:
    """Rewrite peft's config so that the base is found from any directory and equal runs write equal files. peft writes
    sets in the order of the process's hash seed, and the base's directory as given, relative to the working
    directory."""
    config = json.loads(path.read_text())
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[key] = sorted(value)
    place = Path(str(config.get("base_model_name_or_path") or ""))
    if place.name and place.is_dir():
        config["base_model_name_or_path"] = str(place.resolve())
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    path.with_name("README.md").unlink(missing_ok=True)  # peft's card is nearly empty; ours is in model/


def _check(trained: Any, loaded: Any) -> None:
    expected = _probe_logits(trained)
    gap = ((_probe_logits(loaded) - expected).abs().max() / expected.abs().max()).item()
    if not gap <= max(_TOLERANCE[causal_lm(trained).dtype], _TOLERANCE[loaded.dtype]):
        raise PipelineError(f"the exported model's logits differ from the trained model's by {gap:.2g} (relative)")


@torch.no_grad()
def _probe_logits(model: Any) -> Tensor:
    training = model.training
    ids = torch.arange(16, device=next(model.parameters()).device).unsqueeze(0)
    ids %= model.config.get_text_config().vocab_size
    logits = model.eval()(input_ids=ids, use_cache=False).logits.float().cpu()
    model.train(training)
    return logits
