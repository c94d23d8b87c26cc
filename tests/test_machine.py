"""The memory and cores that a container may use, according to its cgroups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.machine import cores, free_of_machine, size_of_machine

ROOT = str(Path(__file__).parent.parent)
ALL = len(os.sched_getaffinity(0))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("names", [("memory.max", "memory.current", "inactive_file", "0::"), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "4:memory:")], ids=["v2", "v1"])  # fmt: skip
def test_a_parent_cgroup_s_limit_bounds_free_and_total_memory(names: tuple[str, str, str, str], tmp_path: Path) -> None:
    limit, used, cached, line = names
    group = tmp_path / "groups" / ("memory" if "memory:" in line else "") / "job"
    write(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    write(tmp_path / "proc/self/cgroup", f"{line}/job/step\n")
    assert free_of_machine(tmp_path / "proc", tmp_path / "groups") == 8000 * 1024
    assert size_of_machine(tmp_path / "proc", tmp_path / "groups") == 9000 * 1024
    write(group / limit, "5000000")
    write(group / used, "3000000")
    write(group / "memory.stat", f"{cached} 1000000\n")
    assert free_of_machine(tmp_path / "proc", tmp_path / "groups") == 3_000_000
    assert size_of_machine(tmp_path / "proc", tmp_path / "groups") == 5_000_000


@pytest.mark.parametrize("v1", [False, True], ids=["v2", "v1"])
@pytest.mark.parametrize(("quota", "expected"), [(50_000, 1), (100_001, 2), (ALL * 1_000_000, ALL), (-1, ALL)])
def test_a_parent_cgroup_s_cpu_quota_bounds_the_cores(v1: bool, quota: int, expected: int, tmp_path: Path) -> None:
    group = tmp_path / "groups" / ("cpu,cpuacct" if v1 else "") / "pod"
    write(tmp_path / "proc/self/cgroup", f"{'3:cpu,cpuacct:' if v1 else '0::'}/pod/job\n")
    assert cores(tmp_path / "proc", tmp_path / "groups") == ALL
    if v1:
        write(group / "cpu.cfs_quota_us", str(quota))
        write(group / "cpu.cfs_period_us", "100000")
    else:
        write(group / "cpu.max", f"{'max' if quota < 0 else quota} 100000")
    assert cores(tmp_path / "proc", tmp_path / "groups") == min(expected, ALL)


def test_torch_uses_no_more_threads_than_the_cpu_quota_allows() -> None:
    """Torch respects CPU affinity by itself, but not a CPU quota."""
    code = (
        "from distill import machine; machine._shares = lambda *_: [0.5]; machine.limit_threads()\n"
        "import torch; print(torch.get_num_threads(), machine.cores())"
    )
    bare = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"PYTHONPATH": ROOT}
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
