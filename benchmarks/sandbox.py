"""The code sandbox against a bare start of bubblewrap: one trivial Python program per run, alternating, in one process.

The peer is what one would write by hand: ``bwrap --unshare-all --ro-bind / / python -I -S -B -c pass``, which limits
neither memory, CPU, files nor system calls. Ours is `distill.verifiers.sandbox.run` with all of its restrictions. CPU
seconds are those of this process and everything it has started. They come from a cgroup's accounting if one is
available, and otherwise from the rusage of waited-for children (which misses part of bwrap's own). The last line is one
JSON object in which a ratio above 1 means that ours is better.

    python benchmarks/sandbox.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distill.types import Outcome, Problem
from distill.verifiers import build, judge, sandbox

PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
FLAGS = ["-I", "-S", "-B", "-c"]
STDIO_CASES = 20


class Meter:
    """Measures the CPU seconds of this process and everything it starts, with its own cpuacct cgroup or rusage."""

    def __init__(self) -> None:
        self._group: Path | None = None
        with suppress(OSError):
            group = Path("/sys/fs/cgroup/cpuacct") / f"distill-benchmark-{os.getpid()}"
            group.mkdir()
            (group / "cgroup.procs").write_text(str(os.getpid()))
            self._group = group
        self.source = "cgroup" if self._group else "rusage"

    def seconds(self) -> float:
        if self._group:
            return int((self._group / "cpuacct.usage").read_text()) / 1e9
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    def close(self) -> None:
        if self._group:
            (self._group.parent / "cgroup.procs").write_text(str(os.getpid()))
            with suppress(OSError):
                self._group.rmdir()


def bare(arguments: list[str]) -> Callable[[], None]:
    command = [*arguments, PYTHON, *FLAGS, "pass"]
    return lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) and None


def boxed(backend: str) -> Callable[[], None]:
    def run() -> None:
        ran = sandbox.run("import os\nos._exit(0)", b"", sandbox=backend)
        assert (ran.ended, ran.code) == ("exit", 0), ran

    return run


def verdict(backend: str) -> Callable[[], None]:
    """A complete verdict: a program on 20 input texts, each in its own sandbox."""
    texts = [{"input": f"{n} {n}", "output": str(2 * n)} for n in range(STDIO_CASES)]
    problem = Problem("p", "?", json.dumps({"stdio": texts}), "code", "benchmark")
    code = build({"code": {"sandbox": backend}})

    def run() -> None:
        found = judge(code, problem, "a, b = map(int, input().split())\nprint(a + b)")
        assert found.outcome is Outcome.CORRECT, found

    return run


def measure(runs: dict[str, Callable[[], None]], rounds: int, each: dict[str, int]) -> dict[str, dict[str, float]]:
    """Medians over the rounds, per execution: CPU and wall milliseconds."""
    meter = Meter()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    try:
        for run in runs.values():
            run()  # start the server, fill the caches
        sandbox.close()
        for _ in range(rounds):
            for name, run in runs.items():
                cpu, wall = meter.seconds(), time.perf_counter()
                for _ in range(each[name]):
                    run()
                sandbox.close()  # so that the cost of the server is counted, including its start
                executions = each[name] * (STDIO_CASES if "texts" in name else 1)
                spent = meter.seconds() - cpu, time.perf_counter() - wall
                found[name].append((1000 * spent[0] / executions, 1000 * spent[1] / executions))
    finally:
        meter.close()
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    detail = {name: {"cpu_ms": round(cpu, 2), "wall_ms": round(wall, 2)} for name, (cpu, wall) in medians.items()}
    return detail | {"measured by": {meter.source: 1.0}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, within a minute")
    quick = parser.parse_args().quick
    holding = [name for name, fault in sandbox.survey().items() if not fault]
    bwrap = shutil.which("bwrap")
    runs = {"bare python": bare([])}
    if bwrap and "bubblewrap" in holding:
        runs["bwrap"] = bare([bwrap, "--unshare-all", "--ro-bind", "/", "/"])
    runs |= {f"ours, {name}": boxed(name) for name in holding}
    runs |= {f"ours, {name}, 20 texts": verdict(name) for name in holding[:1]}
    each = {name: (2 if "texts" in name else 10 if "bubblewrap" in name else 30) for name in runs}
    detail = measure(runs, 3 if quick else 9, each)
    peer = detail.get("bwrap", detail["bare python"])
    ratios = {}
    for name in runs:
        print(f"{name}: {detail[name]['cpu_ms']} ms of CPU, {detail[name]['wall_ms']} ms", flush=True)
        if name.startswith("ours"):
            for unit in ("cpu", "wall"):
                ratios[f"{name}, {unit}"] = round(peer[f"{unit}_ms"] / detail[name][f"{unit}_ms"], 2)
    rates = {name: round(1000 / detail[name]["wall_ms"], 1) for name in runs}
    where = {
        "load": os.getloadavg()[0],
        "peer": "bwrap" if bwrap else "bare python",
    }
    print(json.dumps({"benchmark": "sandbox", "ratios": ratios, "detail": detail | {"per_second": rates} | where}))


if __name__ == "__main__":
    main()
