"""oneDNN's kernels: on a CPU there is one for each shape of a product in half precision, and few are kept.

By default it keeps 1,024, and torch as many again. Micro-batches are of ever other shapes, so that a training of 3M
parameters grew by 8 MB with each (625 MB after sixty); with `KEPT` it stays at 331 MB, in no more time.
"""

from __future__ import annotations

import os

KEPT = 128
"""A pass takes some dozens."""
NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def few_kernels() -> None:
    """To be called before the first product in half precision of a process, which is when they are read: by whoever
    loads a model, and by whoever trains one. What the user has set stays."""
    for name in NAMES:
        os.environ.setdefault(name, str(KEPT))
