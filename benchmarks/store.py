"""The trace store against JSONL and SQLite: rows per CPU-second, bytes on disk, the selection query, peak memory.

A million traces of 2 KB with their problems and verdicts arrive in batches of 10,000 rows (plain dicts, as the stages
make them). The sides take turns with each batch and make it durable: ours by `Store.append` and `Store.ingest` after
every batch, JSONL by write and fsync, SQLite (WAL, a primary key on the trace) by a transaction. All sides hold the
same columns. Sizes include everything on disk; for ours, the database, the journal and the remaining shards.

`_store_sides` explains the selection query, and `_made_traces` how the text is made. ``detail`` contains the zstd
compression ratios of this run's text.

    python benchmarks/store.py [--quick] [--rows N]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from _made_traces import batches
from _store_sides import KEYS_FIRST, NATURAL, TABLES, Jsonl, Ours, Side, Sqlite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 traces")
    parser.add_argument("--rows", type=int, help="how many traces; a million by default")
    parser.add_argument("--directory", type=Path, help="where to work; a temporary directory by default")
    arguments = parser.parse_args()
    rows = arguments.rows or (50_000 if arguments.quick else 1_000_000)
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir=arguments.directory) as name:
        ratios, detail = compare(Path(name), rows)
    print(json.dumps({"benchmark": "store", "ratios": ratios, "detail": detail}))


def compare(directory: Path, rows: int) -> tuple[dict[str, float], dict[str, Any]]:
    makers: dict[str, Callable[[Path], Side]] = {"ours": Ours, "jsonl": Jsonl, "sqlite": Sqlite}
    for name in makers:
        (directory / name).mkdir()
    sides = {name: make(directory / name) for name, make in makers.items()}
    rates, detail = ingest(sides, rows)
    sizes = {name: size(directory / name) for name in sides}
    say(f"ingested, traces per CPU-second: {rates}; bytes: {sizes}")
    ours = sides["ours"]
    assert isinstance(ours, Ours)
    ours.judged()
    selects = select(sides, peers=3 if rows <= 200_000 else 1)
    say(f"selection, CPU-seconds: {selects}")
    ratios = {
        "ingest_beside_25000_a_second": rates["ours"] / 25_000,
        "ingest_beside_jsonl": rates["ours"] / rates["jsonl"],
        "ingest_beside_sqlite": rates["ours"] / rates["sqlite"],
        "size_beside_jsonl": sizes["jsonl"] / sizes["ours"],
        "size_beside_sqlite": sizes["sqlite"] / sizes["ours"],
        "selection_beside_keys_first": selects["keys_first"] / selects["query"],
        "selection_beside_jsonl": selects["jsonl"] / selects["query"],
        "selection_beside_sqlite": selects["sqlite"] / selects["query"],
    }
    detail |= {
        "share_of_jsonl": round(sizes["ours"] / sizes["jsonl"], 3),
        "megabytes": {name: round(bytes / 1e6, 1) for name, bytes in sizes.items()},
        "selection_cpu_seconds": selects,
        "export": export(directory / "ours", directory / "exported"),
        "load": os.getloadavg(),
    }
    return {name: round(value, 2) for name, value in ratios.items()}, detail


def ingest(sides: Mapping[str, Side], rows: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Traces per CPU-second of each side, taking turns with every batch, and the memory ours needs early and late."""
    seconds: dict[str, Counter[str]] = {table: Counter() for table in TABLES}
    counts: Counter[str] = Counter()
    peaks: list[int] = []
    text: dict[str, float] = {}
    for found in batches(rows):
        text = text or shrinks("".join(t["thinking"] for t in found["traces"]))
        for table, batch in found.items():
            counts[table] += len(batch)
            for name, side in sides.items():
                gc.collect()
                forget_peak()
                before, begun = memory("VmRSS"), cpu_seconds()
                side.add(table, batch)
                seconds[table][name] += cpu_seconds() - begun
                if side is sides["ours"]:
                    peaks.append(memory("VmHWM") - before)
    for name, side in sides.items():
        begun = cpu_seconds()
        side.close()
        seconds["traces"][name] += cpu_seconds() - begun
    rates = {table: {name: round(counts[table] / s) for name, s in spent.items()} for table, spent in seconds.items()}
    tenth = max(len(peaks) // 10, 1)
    memories = {"first_tenth": max(peaks[:tenth]), "last_tenth": max(peaks[-tenth:])}
    return rates["traces"], {"rows": rows, "rows_per_cpu_second": rates, "ingest_megabytes": memories, "text": text}


def select(sides: Mapping[str, Side], peers: int) -> dict[str, float]:
    """CPU-seconds of each side's selection, and of ours as one SQL query. All must find the same text. The figures are
    medians of three runs, for the peers of ``peers`` runs, because JSONL takes a minute."""
    ours = sides["ours"]
    assert isinstance(ours, Ours)
    ways: dict[str, Callable[[], int]] = {name: side.select for name, side in sides.items()}
    ways["stages"] = ways.pop("ours")
    ways["keys_first"] = lambda: ours.query(KEYS_FIRST)
    ways["query"] = lambda: ours.query(NATURAL)
    took: dict[str, list[float]] = defaultdict(list)
    lengths = set()
    for turn in range(3):
        for name, way in ways.items():
            if turn >= peers and name in ("jsonl", "sqlite"):
                continue
            gc.collect()
            begun = cpu_seconds()
            lengths.add(way())
            took[name].append(cpu_seconds() - begun)
    assert len(lengths) == 1, f"they do not find the same text: {lengths}"
    return {name: round(statistics.median(times), 3) for name, times in took.items()}


def export(workspace: Path, target: Path) -> dict[str, float]:
    """Run `distill traces export` as a process: its CPU-seconds, peak memory and output size."""
    command = [sys.executable, "-m", "distill", "traces", "export", str(target), "--workspace", str(workspace)]
    begun = cpu_seconds()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return {"cpu_seconds": round(cpu_seconds() - begun, 1), "peak_megabytes": peak, "megabytes": size(target) // 10**6}


def shrinks(text: str) -> dict[str, float]:
    raw = text.encode()
    return {f"zstd_{n}": round(len(raw) / len(pa.Codec("zstd", n).compress(raw, asbytes=True)), 2) for n in (1, 3)}


def size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def cpu_seconds() -> float:
    """The CPU-seconds of this process, all its threads, and its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def memory(what: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) // 1024
    return 0


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
