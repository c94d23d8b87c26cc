"""The cores and memory that this process may use, within the limits of Linux's cgroups (v1, v2).

A container with two cores on a node of a hundred sees a hundred cores and all of the node's memory. One process per
core and a cache of half the memory would be the end of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

NO_BOUND = 1 << 62
PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cores(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """The number of cores that the process may run on, or its CPU quota in cores, rounded up, if that is less."""
    return min([len(allowed_cores()), *(math.ceil(share) for share in _shares(proc, groups))])


def limit_threads() -> None:
    """Limit torch's threads to `cores`; torch itself counts those of the node. Call this before importing torch."""
    if (there := cores()) < len(allowed_cores()):
        os.environ.setdefault("OMP_NUM_THREADS", str(there))


def allowed_cores() -> set[int]:
    """The numbers of the cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def free_of_machine(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Available memory in bytes, as Linux reports it or as the cgroups allow, if less; `NO_BOUND` elsewhere."""
    return min((free for _, free in _bounds(proc, groups)), default=NO_BOUND)


def size_of_machine(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Total memory in bytes, used or not, that the machine has or the cgroups allow; `NO_BOUND` elsewhere."""
    return min((whole for whole, _ in _bounds(proc, groups)), default=NO_BOUND)


def _bounds(proc: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """(total, free) bytes of the machine and of each cgroup. File pages that may be dropped count as free."""
    try:
        lines = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
        whole, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
        yield whole, free
    except (OSError, ValueError, KeyError):
        return
    for group, v1 in _groups("memory", proc, groups):
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if v1 else ("memory.max", "memory.current")
        try:
            most = int((group / limit).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            yield most, most - int((group / used).read_text()) + cached
        except (OSError, ValueError):
            continue


def _shares(proc: Path, groups: Path) -> Iterator[float]:
    """The CPU quota of each cgroup, in cores."""
    for group, v1 in _groups("cpu", proc, groups):
        try:
            if v1:
                quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            else:
                quota, period = map(int, (group / "cpu.max").read_text().split())
            if quota > 0 and period > 0:
                yield quota / period
        except (OSError, ValueError):  # "max": no limit
            continue


def _groups(kind: str, proc: Path, groups: Path) -> Iterator[tuple[Path, bool]]:
    """The cgroups of the process, from its own upwards, and whether each is v1, which has a hierarchy for each ``kind``
    of resource."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and kind not in kinds.split(","):
            continue
        root = groups / kinds
        here = root / path.lstrip("/")
        for group in (here, *here.parents):
            yield group, bool(kinds)
            if group == root:
                break
