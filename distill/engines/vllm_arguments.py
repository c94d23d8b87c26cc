"""Which of vLLM's own arguments a YAML may set beside our options, and which of them change samples.

Names are read from vLLM's source without importing it (which takes half a minute), so that a misspelt name in
``engine_args`` or ``speculative`` is reported while the YAML is read. Without vLLM they are not checked: opening the
engine reports that it is missing. Values are checked by vLLM.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.mistakes import nearest

OPTIONS = {
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "tensor_parallel_size": "tensor_parallel",
    "data_parallel_size": "data_parallel",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "enable_prefix_caching": "prefix_caching",
    "speculative_config": "speculative",
}
"""Arguments that have an option of ours."""

OURS = frozenset(
    [
        "model",
        "model_weights",
        "tokenizer",
        "tokenizer_revision",
        "tokenizer_mode",
        "revision",
        "runner",
        "convert",
        "skip_tokenizer_init",
        "logprobs_mode",
        "enable_lora",
        "max_loras",
        "max_lora_rank",
        "scheduling_policy",
        "stream_interval",
        "seed",
        "disable_log_stats",
        "spec_method",
        "spec_model",
        "spec_tokens",
        "logits_processors",
        "served_model_name",
        "hf_token",
    ]
)
"""Arguments that the engine sets itself, because it relies on their values."""

OPERATIONAL = frozenset(
    [
        "async_scheduling",
        "attention_backend",
        "block_size",
        "compilation_config",
        "cpu_distributed_timeout_seconds",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "data_parallel_backend",
        "disable_cascade_attn",
        "disable_custom_all_reduce",
        "distributed_executor_backend",
        "distributed_timeout_seconds",
        "download_dir",
        "enable_chunked_prefill",
        "enable_expert_parallel",
        "enable_sleep_mode",
        "enforce_eager",
        "kernel_config",
        "kv_cache_memory_bytes",
        "kv_offloading_backend",
        "kv_offloading_size",
        "log_level",
        "long_prefill_token_threshold",
        "max_cudagraph_capture_size",
        "max_logprobs",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "numa_bind",
        "numa_bind_cpus",
        "numa_bind_nodes",
        "optimization_level",
        "performance_mode",
        "pipeline_parallel_size",
        "prefix_caching_hash_algo",
        "profiler_config",
        "safetensors_load_strategy",
        "shutdown_timeout",
        "use_tqdm_on_load",
    ]
)
"""Arguments that change speed or memory, and samples only by rounding. Any other argument, and any that a later vLLM
adds, is assumed to change samples."""


def checked(arguments: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return ``arguments`` if all of them may be set; ValueError for the first that may not."""
    for name in arguments or {}:
        if option := OPTIONS.get(name):
            raise ValueError(f"{name} is set by the option {option!r}, not here")
        if name in OURS:
            raise ValueError(f"{name} is set by the engine itself")
        if (known := _fields("engine/arg_utils.py", "EngineArgs")) and name not in known:
            raise ValueError(f"vLLM has no engine argument {name!r}{nearest(name, _settable(known))}")
    return arguments or None


def checked_speculation(settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same for the fields of vLLM's ``speculative_config``."""
    for name in settings or {}:
        if (known := _fields("config/speculative.py", "SpeculativeConfig")) and name not in known:
            raise ValueError(f"vLLM's speculative_config has no field {name!r}{nearest(name, sorted(known))}")
    return settings or None


def changing(arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The arguments that change samples, and so are part of a trace's key."""
    return {name: value for name, value in (arguments or {}).items() if name not in OPERATIONAL} or None


def _settable(known: frozenset[str]) -> list[str]:
    return sorted(known - OURS - set(OPTIONS))


@cache
def _fields(file: str, name: str) -> frozenset[str]:
    """The annotated fields of one of vLLM's classes, read from its source; empty if it cannot be read."""
    found = importlib.util.find_spec("vllm")
    for root in (found.submodule_search_locations if found else None) or ():
        try:
            tree = ast.parse((Path(root) / file).read_text())
        except (OSError, ValueError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                fields = (item.target for item in node.body if isinstance(item, ast.AnnAssign))
                return frozenset(t.id for t in fields if isinstance(t, ast.Name) and not t.id.startswith("_"))
    return frozenset()
