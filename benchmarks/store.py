"""The trace store beside JSONL and SQLite: rows per CPU-second, bytes on disk, the selection query, peak memory.

A million traces of 2 KB, their problems and verdicts arrive in batches of 10,000 rows (plain dicts, as the stages make
them); each side takes each batch in turn and makes it durable: ours by `Store.append` and `Store.ingest` after
every batch, JSONL by write and fsync, SQLite (WAL, a primary key on the trace) by a transaction. All sides hold
the same columns. Sizes are of everything on disk: ours is the database, the journal and what is left of shards.

The selection query: of the correct traces of each problem the four shortest, with their text, fetched in batches.
Ours is the query as a person writes it (``query``); beside it stand the same with the keys first and the texts by
a semi-join (``keys_first``; the bar is 1/1.5 of it), and the way of the stages (``stages``: the keys become members
of a collection, their texts are read as sft reads them; the rows are written and read back, so it costs more).
SQLite has an index and takes the keys first; JSONL is read three times by a short program.

The text is made, not real: words of a made-up vocabulary (6,000 words, those more frequent are shorter, drawn by
Zipf's law with exponent 0.9), numbers, and the turns of phrase of chains of thought. Its parameters were set so
that zstd shrinks it as it shrinks real ones: measured at levels 1 and 3, 2.6 and 2.9 times; five real R1 traces
2.6 and 2.7, the solutions of GSM8K 2.5 and 2.9, those of MATH-500 2.7 and 3.0. ``detail`` says what this run's had.

    python benchmarks/store.py [--quick] [--rows N]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.store import Store, schema
from distill.store.records import of_kept, record_members
from pipeline.fingerprint import content_hash

BATCH = 10_000
TABLES = ("problems", "traces", "verdicts")
SAMPLES = 8
Rows = list[dict[str, Any]]
PHRASES = (
    "Okay, let me think about this. ", "Let me see. ", "Wait, ", "let me check that again: ", "so the answer is ",
    "we have ", "which means that ", "if we substitute ", "adding this to both sides, ", "\\frac{1}{2} ", "= ", "+ ",
    "$x^2$ ", "that cannot be right. ", "in total, ", "\n\n", "\n", "Alternatively, ", "on the other hand, ",
    "by the same argument ", "the remainder is ", "the sum of ",
)  # fmt: skip


class Text:
    """Draws texts: 70% words by Zipf's law, 20% phrases, 10% numbers."""

    def __init__(self) -> None:
        draw = random.Random(0)
        made = dict.fromkeys(self._word(draw, rank) for rank in range(6_000))
        words = [word + (draw.choice((". ", ", ")) if draw.random() < 0.1 else " ") for word in made]
        weights = 1 / (np.arange(len(words)) + 3) ** 0.9
        parts = (0.7 * weights / weights.sum(), np.full(len(PHRASES), 0.2 / len(PHRASES)), np.full(1_000, 0.1 / 1_000))
        self._pieces = pa.array([*words, *PHRASES, *(f"{n} " for n in range(1_000))])
        self._cumulated = np.cumsum(np.concatenate(parts))
        lengths = pc.binary_length(self._pieces).to_numpy()
        self._length = float(np.dot(np.concatenate(parts), lengths))

    @staticmethod
    def _word(draw: random.Random, rank: int) -> str:
        syllables = 1 if rank < 120 else 2 if rank < 2_500 else 3
        spelled = (draw.choice("bcdfghklmnprstvwyz") + draw.choice("aeiou") + draw.choice(("", "", "n", "r", "s"))
                   for _ in range(syllables))  # fmt: skip
        return "".join(spelled)

    def draw(self, generator: np.random.Generator, count: int, size: int) -> list[str]:
        """``count`` texts of about ``size`` bytes."""
        pieces = generator.poisson(size / self._length, count)
        ends = np.concatenate([[0], np.cumsum(pieces)]).astype("int32")
        drawn = np.searchsorted(self._cumulated, generator.random(ends[-1]) * self._cumulated[-1])
        lists = pa.ListArray.from_arrays(pa.array(ends), self._pieces.take(pa.array(drawn)))
        found: list[str] = pc.binary_join(lists, "").to_pylist()
        return found


def batches(rows: int) -> Iterator[dict[str, Rows]]:
    """Rows of each table, `SAMPLES` traces a problem, six in ten of them correct."""
    text = Text()
    for first in range(0, rows, BATCH):
        count = min(BATCH, rows - first)
        generator = np.random.default_rng(first)
        prompts = text.draw(generator, -(-count // SAMPLES), 180)
        thoughts = text.draw(generator, count, 1_640)
        answers = text.draw(generator, count, 180)
        correct = generator.random(count) < 0.6
        traces = [
            _trace(first + i, first // BATCH, prompts[i // SAMPLES], thoughts[i], answers[i]) for i in range(count)
        ]
        yield {
            "problems": [_problem(prompt) for prompt in prompts],
            "traces": traces,
            "verdicts": [_verdict(trace, bool(right)) for trace, right in zip(traces, correct, strict=True)],
        }


def _problem(prompt: str) -> dict[str, Any]:
    key = content_hash(["prompt", prompt])
    return {
        "problem_key": key,
        "prompt_key": key,
        "problem_id": f"made/{key[:12]}",
        "source": "made",
        "split": "train",
        "verifier": "math",
        "licence": "Apache-2.0",
        "prompt": prompt,
        "reference": "1",
        "metadata": "{}",
    }


def _trace(number: int, batch: int, prompt: str, thinking: str, answer: str) -> dict[str, Any]:
    return {
        "trace_key": content_hash(["trace", number]),
        "prompt_key": content_hash(["prompt", prompt]),
        "model": "http://api.example.com/v1 teacher-large",
        "engine": "openai",
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 0,
        "max_tokens": 4096,
        "seed": 0,
        "sample_index": number % SAMPLES,
        "finish": "stop",
        "closed": True,
        "prompt_tokens": len(prompt) // 4,
        "thinking_tokens": len(thinking) // 4,
        "answer_tokens": len(answer) // 4,
        "seconds": round(3 + number * 0.618 % 1, 3),
        "created": datetime(2026, 1, 1, batch // 3600 % 24, batch // 60 % 60, batch % 60),
        "prompt": prompt,
        "thinking": thinking,
        "answer": answer,
    }


def _verdict(trace: dict[str, Any], right: bool) -> dict[str, Any]:
    return {
        "verdict_key": content_hash(["verdict", trace["trace_key"]]),
        "trace_key": trace["trace_key"],
        "problem_key": trace["prompt_key"],
        "verifier": "math",
        "version": "7",
        "settings": '"math"',
        "outcome": "correct" if right else "incorrect",
        "score": float(right),
        "reason": "equal to the reference" if right else "another number than the reference",
        "evidence": '{"path": "exact"}',
        "seconds": 0.001,
        "created": trace["created"],
    }


NATURAL = """
    SELECT thinking, answer FROM (
        SELECT t.*, row_number() OVER (
            PARTITION BY t.prompt_key ORDER BY t.thinking_tokens + t.answer_tokens, t.trace_key) AS nth
        FROM traces t JOIN verdicts v ON v.trace_key = t.trace_key WHERE v.outcome = 'correct') ranked
    WHERE nth <= 4
"""
BEST = """
    SELECT trace_key FROM (
        SELECT t.trace_key, row_number() OVER (
            PARTITION BY t.prompt_key ORDER BY t.thinking_tokens + t.answer_tokens, t.trace_key) AS nth
        FROM traces t JOIN verdicts v ON v.trace_key = t.trace_key WHERE v.outcome = 'correct') ranked
    WHERE nth <= 4
"""
KEYS_FIRST = f"SELECT thinking, answer FROM traces WHERE trace_key IN ({BEST})"


class Ours:
    """`select` goes the way of the stages: the keys of the chosen become members of a collection, and the texts
    of its members are read."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory)

    def add(self, table: str, rows: Rows) -> None:
        self.store.append(table, rows)
        self.store.ingest()

    def close(self) -> None:
        self.store.mend()

    def judged(self) -> None:
        """The verdicts as a verify stage leaves them: members of a collection."""
        with self.store.reading() as connection:
            keys = [("verdict", key) for (key,) in connection.execute("SELECT verdict_key FROM verdicts").fetchall()]
        self.verdicts = record_members(self.store, keys)

    def select(self) -> int:
        with self.store.reading() as connection:
            best = [("kept", key) for (key,) in connection.execute(BEST).fetchall()]
        collection = record_members(self.store, best)
        rows = of_kept(self.store, collection, self.verdicts, "m.position, t.trace_key, t.thinking, t.answer, p.*")
        return sum(len(row["thinking"]) + len(row["answer"]) for row in rows)

    def query(self, sql: str) -> int:
        with self.store.reading() as connection:
            return _length(connection.execute(sql))


def _length(result: Any) -> int:
    """Of all texts; they are fetched, in batches, as whoever wants them must."""
    length = 0
    while rows := result.fetchmany(BATCH):
        length += sum(len(thinking) + len(answer) for thinking, answer in rows)
    return length


class Jsonl:
    def __init__(self, directory: Path) -> None:
        self._paths = {table: directory / f"{table}.jsonl" for table in TABLES}

    def add(self, table: str, rows: Rows) -> None:
        with open(self._paths[table], "a") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        pass

    def select(self) -> int:
        """In two passes, so that not all texts are held."""
        right = {v["trace_key"] for v in self._read("verdicts") if v["outcome"] == "correct"}
        of_prompt: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for t in self._read("traces"):
            if t["trace_key"] in right:
                of_prompt[t["prompt_key"]].append((t["thinking_tokens"] + t["answer_tokens"], t["trace_key"]))
        kept = {key for found in of_prompt.values() for _, key in sorted(found)[:4]}
        return sum(len(t["thinking"]) + len(t["answer"]) for t in self._read("traces") if t["trace_key"] in kept)

    def _read(self, table: str) -> Iterator[dict[str, Any]]:
        with open(self._paths[table]) as lines:
            yield from map(json.loads, lines)


class Sqlite:
    def __init__(self, directory: Path) -> None:
        self._connection = sqlite3.connect(directory / "store.sqlite")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        for table in TABLES:
            columns = ", ".join(schema.arrow_schemas()[table].names)
            self._connection.execute(f"CREATE TABLE {table} ({columns}, PRIMARY KEY ({schema.KEYS[table][0]}))")
        self._connection.execute("CREATE INDEX by_trace ON verdicts (trace_key)")

    def add(self, table: str, rows: Rows) -> None:
        marks = ", ".join("?" * len(rows[0]))
        values = [[str(v) if isinstance(v, datetime) else v for v in row.values()] for row in rows]
        with self._connection:
            sql = f"INSERT OR IGNORE INTO {table} ({', '.join(rows[0])}) VALUES ({marks})"
            self._connection.executemany(sql, values)

    def close(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def select(self) -> int:
        return _length(self._connection.execute(KEYS_FIRST))


Side = Ours | Jsonl | Sqlite


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
    """Traces per CPU-second of each side, in turn with every batch; the memory ours takes, early and late."""
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
    """CPU-seconds of each side's selection, and of ours as one SQL query; all must find the same text. The median of
    three, of the peers (JSONL takes a minute) of so many."""
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
    """`distill traces export` as a process of its own: its CPU-seconds, its peak memory, the size it writes."""
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
    """Of this process, all its threads, and of its children that have ended."""
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
