"""What a process keeps in memory from one training step to the next, on a CPU.

- glibc's allocator: by default it gives large blocks back to the kernel at once, and each step pays for zeroed pages
  again (7% of a step's CPU time at 3M parameters, measured). `keep_freed_memory` keeps them. With any other allocator
  it does nothing.
- oneDNN's kernel cache: for half precision it builds a kernel for each shape of a product. By default it keeps 1,024 of
  them, and torch as many again. The shapes of micro-batches keep changing, so a training of 3M parameters grew by 8 MB
  with each (625 MB after sixty). With `limit_kernel_caches` it stays at 331 MB and is no slower.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""
KEPT = 1 << 30
"""Bytes that may stay free at the end of the heap."""
LARGE = 1 << 25
"""Blocks of at least this size are mapped one by one. It is the largest value that glibc allows."""
KERNELS = 128
"""The kernels that may stay: a pass needs a few dozen."""
KERNEL_LIMITS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process within this context; give it back afterwards."""
    libc = _glibc()
    if libc:
        libc.mallopt(MMAP_THRESHOLD, LARGE)
        libc.mallopt(TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        if libc:
            libc.mallopt(TRIM_THRESHOLD, 2 * LARGE)  # as glibc sets it beside such an mmap threshold
            libc.malloc_trim(0)


@lru_cache
def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def limit_kernel_caches() -> None:
    """Limit the kernel caches. Call it before the first half-precision product of a process, when the limits are read:
    wherever a model is loaded or trained. Limits that the user has set stay."""
    for name in KERNEL_LIMITS:
        os.environ.setdefault(name, str(KERNELS))
