"""Writes traces to publish: one Parquet file, or a directory that `datasets.load_dataset` reads, with its card.

Each row is a conversation (`messages`, with the thinking in think tags in the assistant's turn), the same thinking and
answer as separate columns, and their metadata. Rows stream from a snapshot of the store, so memory stays small and a
run in progress is not held up, however many there are. The output gets its name once it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.dataset import card, facts
from distill.dataset.choice import Choice
from distill.store import Store
from distill.store.shards import batches
from distill.thinking import join_thinking
from pipeline.errors import InputError
from pipeline.files import disk_errors, fsync_directory, publish_directory
from pipeline.scratch import scratch

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

ROWS_A_FILE = 100_000
BATCH = 5_000
MEMORY = "512MB"
"""DuckDB's memory limit for an export or a card; what does not fit goes to a temporary file."""
OTHER_FORMS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".gz", ".zip", ".arrow", ".md", ".txt")
"""Suffixes of other file formats, which the name of an exported directory must not have."""
CARD, DATA = "README.md", "data"

ROWS = """
    SELECT t.trace_key AS id, c.problem_id, c.source, p.licence, c.difficulty, p.system,
        coalesce(p.prompt, t.prompt) AS prompt, t.thinking, t.answer, t.closed, p.reference,
        t.model, t.engine, t.temperature, t.top_p, t.top_k, t.max_tokens, t.seed, t.sample_index, t.finish,
        t.prompt_tokens, t.thinking_tokens, t.answer_tokens, c.outcome, c.score, c.verifier,
        c.version AS verifier_version
    FROM traces t JOIN chosen c USING (trace_key) LEFT JOIN problems p ON p.problem_key = c.problem_key
"""


def export(store: Store, choice: Choice, target: Path, force: bool = False, pipeline: Path | None = None) -> int:
    """Write the chosen traces to ``target``: a file if its name ends in .parquet, else a directory. Returns the number
    of rows. Replaces an earlier export only with ``force``, and anything else never."""
    single = target.suffix == ".parquet"
    check_target(target, force)
    with store.snapshot() as still, scratch(target.absolute().parent, target.name) as directory:
        if single:
            with still.reading() as connection:
                rows = _write(connection, choice, directory, 2**62)
            with disk_errors(target):
                os.replace(directory / _name(0, 1), target)
                fsync_directory(target.absolute().parent)
        else:
            rows = build(still, choice, directory / "whole", store.path.parent, pipeline)
            publish_directory(directory / "whole", target.absolute())
    return rows


def check_target(target: Path, force: bool) -> None:
    if target.suffix.lower() in OTHER_FORMS:
        raise InputError(
            f"{target}: an export is a .parquet file or a directory; `traces sql --output` writes other formats"
        )
    if not (target.exists() or target.is_symlink()):
        return
    if not force:
        raise InputError(f"{target}: exists already; name another, or add --force to replace it")
    file = target.suffix == ".parquet" and target.is_file()
    if not file and not (target.is_dir() and not target.is_symlink() and _is_export(target)):
        raise InputError(f"{target}: is not an earlier export, and --force replaces nothing else; name another")


def _is_export(directory: Path) -> bool:
    """Whether a directory holds nothing but a card and data."""
    names = {path.name for path in directory.iterdir()}
    files = list((directory / DATA).iterdir()) if (directory / DATA).is_dir() else []
    return names <= {CARD, DATA} and all(path.suffix == ".parquet" for path in files)


def build(still: Store, choice: Choice, directory: Path, workspace: Path, pipeline: Path | None = None) -> int:
    """Make the directory of a data set: ``data/train-*.parquet`` and the card."""
    (directory / DATA).mkdir(parents=True)
    with still.reading() as connection:
        rows = _write(connection, choice, directory / DATA, ROWS_A_FILE)
        text = card.render(facts.gather(connection, choice, workspace, pipeline))
    with disk_errors(directory):
        (directory / CARD).write_text(text, encoding="utf-8")
    return rows


def choose(connection: duckdb.DuckDBPyConnection, choice: Choice) -> int:
    """Make the temporary table ``chosen``; returns its number of rows. Raises `InputError` for a bad ``where``."""
    import duckdb

    traces, condition, parameters = choice.condition()
    connection.execute(f"SET memory_limit = '{MEMORY}'")
    try:
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE chosen AS SELECT * FROM {traces} WHERE {condition}", parameters
        )
    except duckdb.Error as error:
        if not choice.where:
            raise
        raise InputError(f"--where {choice.where}: {' '.join(str(error).split())[:300]}") from None
    ((found,),) = connection.execute("SELECT count(*) FROM chosen").fetchall()
    return int(found)


def _write(connection: duckdb.DuckDBPyConnection, choice: Choice, directory: Path, rows_a_file: int) -> int:
    """Write files of at most ``rows_a_file`` rows."""
    if not (total := choose(connection, choice)):
        chosen = "; ".join(choice.words())
        raise InputError(
            f"there is no trace to export{f' with {chosen}' if chosen else ''}; `distill traces stats` counts them"
        )
    files = -(-total // rows_a_file)
    tables = _tables(connection)
    held: list[pa.Table] = []
    for index in range(files):
        wanted = min(rows_a_file, total - index * rows_a_file)
        held = _write_file(directory / _name(index, files), tables, held, wanted)
    return total


def _name(index: int, files: int) -> str:
    return f"train-{index:05d}-of-{files:05d}.parquet"


def _write_file(path: Path, tables: Iterator[pa.Table], held: list[pa.Table], wanted: int) -> list[pa.Table]:
    """Write ``wanted`` rows of ``held`` and then ``tables``; returns what is left of the last one."""
    import pyarrow.parquet as pq

    schema = row_schema()
    with disk_errors(path), open(path, "wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            while wanted:
                table = held.pop() if held else next(tables)
                writer.write_table(table.slice(0, wanted))
                if table.num_rows > wanted:
                    held = [table.slice(wanted)]
                wanted -= min(wanted, table.num_rows)
        file.flush()
        os.fsync(file.fileno())
    return held


def _tables(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
    import pyarrow as pa

    schema = row_schema()
    # Keep the joins as written: the texts then stream past the other side, which alone is held in memory.
    # One thread, so that the rows of one store always come in the same order; Python takes most of the time anyway.
    connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'; SET threads = 1")
    for batch in batches(connection, ROWS, BATCH):
        names = ("system", "prompt", "thinking", "answer", "closed")
        turns = [messages(*row) for row in zip(*(batch[name].to_pylist() for name in names), strict=True)]
        columns = [
            pa.array(turns, field.type) if field.name == "messages" else batch[field.name].cast(field.type)
            for field in schema
        ]
        yield pa.Table.from_arrays(columns, schema=schema)


def messages(system: str | None, prompt: str, thinking: str, answer: str, closed: bool) -> list[dict[str, Any]]:
    """The conversation, in the form that chat templates and trainers take."""
    turns = [{"role": "system", "content": system}] if system else []
    response = join_thinking(thinking or "", answer or "", closed is not False)
    return [*turns, {"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def row_schema() -> pa.Schema:
    """The columns of an export."""
    import pyarrow as pa

    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    text = ("prompt", "thinking", "answer", "reference", "problem_id", "source", "licence")
    whole = ("top_k", "max_tokens", "seed", "sample_index", "prompt_tokens", "thinking_tokens", "answer_tokens")
    return pa.schema([
        ("messages", pa.list_(turn)), *((name, pa.string()) for name in text), ("difficulty", pa.int64()),
        ("outcome", pa.string()), ("score", pa.float64()), ("verifier", pa.string()), ("verifier_version", pa.string()),
        ("finish", pa.string()), ("model", pa.string()), ("engine", pa.string()),
        ("temperature", pa.float64()), ("top_p", pa.float64()), *((name, pa.int64()) for name in whole),
        ("id", pa.string()),
    ])  # fmt: skip
