"""distill: reasoning traces from a teacher, verified, stored, taught to a small student, refined with GRPO.

The names below are the public API. Each is imported on first use, so that importing `distill` loads neither torch nor
DuckDB.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__owner__ = f"distill-reasoning {__version__}"
"""Marks this package as ours (`distill.ownership`). `pipeline`, `distill` and `rl` each carry the same marker."""

_PUBLIC = {
    "Problem": "distill.types",
    "Sampling": "distill.types",
    "Request": "distill.types",
    "Completion": "distill.types",
    "Trace": "distill.types",
    "Verdict": "distill.types",
    "Outcome": "distill.types",
    "Store": "distill.store",
    "check": "distill.verifiers",
    "split_thinking": "distill.thinking",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'distill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
