"""Limit oneDNN's kernel cache: on CPU it builds a kernel for each shape of a half-precision product.

By default oneDNN keeps 1,024 of them, and torch as many again. The shapes of micro-batches keep changing, so a training
of 3M parameters grew by 8 MB with each (625 MB after sixty). With `KEPT` it stays at 331 MB and is no slower.
"""

from __future__ import annotations

import os

KEPT = 128
"""A pass needs a few dozen."""
NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def few_kernels() -> None:
    """Set the limits. Call it before the first half-precision product of a process, when they are read: wherever a
    model is loaded or trained. Limits that the user has set stay."""
    for name in NAMES:
        os.environ.setdefault(name, str(KEPT))
