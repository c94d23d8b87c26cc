"""``distill traces``: inspect the store. Read-only, and possible during a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.open import aside, store_at
from distill.cli.rows_file import check_output, write_parquet, write_rows
from distill.cli.table import WIDTH, is_cut
from distill.cli.table import show as show_rows
from distill.dataset.choice import chosen_by
from distill.store import Store
from pipeline.errors import InputError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

LONG = {
    "prompt": "prompt",
    "prefix": "given after it: the beginning of the response",
    "thinking": "thinking",
    "answer": "answer",
}
"""Texts that are shown last, each under its title."""
NAMES = "SELECT model, string_agg(name, ', ' ORDER BY name) AS name FROM models GROUP BY model"
"""The names of each model."""
SHORT = "if(regexp_full_match({0}, '[0-9a-f]{{24,}}'), {0}[:12], {0})"
"""An identity in short: the first characters of a hash. Others (`imported:DeepSeek-R1`) are not cut, because two may
begin alike."""
ARROW_ROWS = 1_000
TABLE_ROWS = 1_000
"""The most rows in a table on the terminal, since all of them are held in memory to align the columns."""


def list_traces(
    pipeline: Path, workspace: Path | None, selection: str | None, asked: Mapping[str, Any], rollouts: bool, limit: int,
    after: str | None, as_json: bool,
) -> None:  # fmt: skip
    store = store_at(pipeline, workspace)
    chosen = chosen_by(store.path.parent, selection, {**asked, "rollouts": rollouts})
    traces, condition, parameters = chosen.condition()
    if after is not None:
        last = find(store, after)
        condition += " AND (created < $created OR (created = $created AND trace_key > $trace_key))"
        parameters |= {"created": last["created"], "trace_key": last["trace_key"]}
    identity = ", o.model AS identity" if as_json else ""  # distinguishes two students of one stage
    rows = store.rows(
        f"WITH page AS (SELECT * FROM {traces} WHERE {condition} ORDER BY created DESC, trace_key LIMIT $limit) "
        "SELECT o.trace_key[:12] AS trace, o.problem_id AS problem, "
        f"coalesce(m.name, {SHORT.format('o.model')}) AS model, "
        "o.outcome, o.verifier || ' ' || o.version AS verifier, o.thinking_tokens + o.answer_tokens AS tokens, "
        f"o.finish, t.answer{identity} FROM page o JOIN traces t USING (trace_key) "
        f"LEFT JOIN ({NAMES}) m ON m.model = o.model ORDER BY o.created DESC, o.trace_key",
        {**parameters, "limit": limit},
    )
    show_rows(rows, as_json)


def sql(
    query: str, pipeline: Path, workspace: Path | None, limit: int | None, output: Path | None, as_json: bool
) -> None:
    import duckdb

    if not query.strip(" ;\n"):
        raise InputError('the query is empty; try "SELECT count(*) FROM traces"')
    if output is not None:
        check_output(output)
    with store_at(pipeline, workspace).reading() as connection:
        try:
            if output is not None and output.suffix == ".parquet":
                reader = _arrow(connection, query)
                count = write_parquet(output, reader, distinct(reader.schema.names), limit)
                _wrote(count, output, as_json)
                return
            result = connection.execute(query)
            names = distinct(column[0] for column in result.description or ())
            rows = (dict(zip(names, row, strict=True)) for row in stream(result, limit))
            if output is not None:
                _wrote(write_rows(output, names, rows), output, as_json)
            elif as_json:
                show_rows(rows, as_json)
            else:
                _show_table(rows, limit)
        except duckdb.Error as error:
            raise InputError(" ".join(str(error).split())[:500]) from None


def _wrote(count: int, output: Path, as_json: bool) -> None:
    print(json.dumps({"rows": count, "target": str(output)}) if as_json else f"wrote {count:,} rows to {output}")


def _arrow(connection: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader:
    found = connection.sql(query)
    if found is None:
        raise InputError("the query has no result to write; try a SELECT")
    return found.to_arrow_reader(ARROW_ROWS)


def distinct(names: Iterable[str]) -> list[str]:
    """Make duplicate column names distinct: a, a_1, a_2."""
    given: list[str] = []
    for name in names:
        free = (new for new in chain([name], (f"{name}_{i}" for i in count(1))) if new not in given)
        given.append(next(free))
    return given


def _show_table(rows: Iterator[dict[str, Any]], limit: int | None) -> None:
    shown = list(islice(rows, limit or TABLE_ROWS))
    show_rows(shown, False)
    if is_cut(shown):
        aside(f"cells are cut at {WIDTH} characters; --json and --output show all of them")
    if limit is None and next(rows, None) is not None:
        print(f"({TABLE_ROWS} rows shown; --limit shows more, --json and --output all)")


def stream(result: Any, limit: int | None) -> Iterator[tuple[Any, ...]]:
    """The rows of a query as they arrive, at most ``limit``."""
    left = sys.maxsize if limit is None else limit
    while left and (rows := result.fetchmany(min(left, 1_000))):
        left -= len(rows)
        yield from rows


def stats(pipeline: Path, workspace: Path | None, as_json: bool) -> None:
    store = store_at(pipeline, workspace)
    traces = store.rows(
        "WITH newest AS (SELECT trace_key, arg_max(outcome, created) AS outcome FROM judgements GROUP BY 1) "
        f"SELECT coalesce(m.name || ' ', '') || {SHORT.format('t.model')} AS model, p.source, count(*) AS traces, "
        "round(avg(t.thinking_tokens + t.answer_tokens), 1) AS tokens_each, "
        "sum(t.thinking_tokens + t.answer_tokens)::BIGINT AS tokens, "
        "count(*) FILTER (v.outcome = 'correct') AS correct, count(*) FILTER (v.outcome = 'incorrect') "
        "AS incorrect, count(*) FILTER (v.outcome = 'unverifiable') AS unverifiable, "
        "count(*) FILTER (t.finish = 'length') AS truncated, count(*) FILTER (t.finish = 'refused') AS refused, "
        "count(*) FILTER (t.finish = 'empty') AS empty "
        "FROM traces t LEFT JOIN newest v USING (trace_key) LEFT JOIN prompts p USING (prompt_key) "
        f"LEFT JOIN ({NAMES}) m ON m.model = t.model "
        "WHERE t.finish <> 'step' AND t.trace_key NOT IN (SELECT trace_key FROM rollouts) GROUP BY ALL ORDER BY ALL"
    )
    verifiers = store.rows("SELECT * FROM verifier_rates ORDER BY ALL")
    for kind, rows in (("traces", traces), ("verifier", verifiers)):
        show_rows([{"kind": kind, **row} if as_json else row for row in rows], as_json)
        if kind == "traces" and not as_json:
            print()


def show(key: str, pipeline: Path, workspace: Path | None, as_json: bool) -> None:
    store = store_at(pipeline, workspace)
    trace = find(store, key)
    verdicts = store.rows(
        "SELECT v.verifier, v.version, v.outcome, v.score, v.reason, v.evidence, p.reference FROM judgements v "
        "LEFT JOIN problems p USING (problem_key) WHERE v.trace_key = ? ORDER BY v.created, v.verdict_key",
        [trace["trace_key"]],
    )
    rollout = store.rows("SELECT * EXCLUDE (trace_key) FROM rollouts WHERE trace_key = ?", [trace["trace_key"]])
    losses = store.rows(
        "SELECT run, list(loss ORDER BY epoch) AS losses FROM trace_losses WHERE trace_key = ? GROUP BY 1 ORDER BY 1",
        [trace["trace_key"]],
    )
    if as_json:
        more = {"verdicts": verdicts, "rollout": rollout[0] if rollout else None, "losses": losses}
        print(json.dumps({**trace, **more}, default=str))
        return
    for name, value in trace.items():
        if name not in LONG and value is not None:
            print(f"{name:<16} {printable(value)}")
    for name, title in LONG.items():
        if name != "prefix" or trace[name]:
            print(f"\n--- {title}\n{printable(trace[name])}")
    for verdict in verdicts:
        print(f"\n--- {verdict['verifier']} {verdict['version']}: {verdict['outcome']}\n{printable(verdict['reason'])}")
        print(f"reference: {printable(verdict['reference'])}")
    for name, value in (rollout[0] if rollout else {}).items():
        print(f"{'rollout ' + name:<16} {value}")
    for row in losses:
        print(f"loss {row['run'][:12]} {', '.join(f'{loss:.4f}' for loss in row['losses'])}")


def find(store: Store, key: str) -> dict[str, Any]:
    rows = store.rows(
        "SELECT t.* EXCLUDE (prompt_ids, token_ids, logprobs, forced, cut), len(t.forced) AS forced_tokens, "
        "list_sort((SELECT list(continued_by) FROM continuations c WHERE c.trace_key = t.trace_key)) "
        "AS continued_by, p.problem_id, p.source, p.difficulty "
        "FROM traces t LEFT JOIN prompts p USING (prompt_key) WHERE starts_with(t.trace_key, ?) LIMIT 2",
        [key],
    )
    if not rows:
        raise InputError(f"no trace begins with {key!r}; `distill traces list` shows some")
    if len(rows) > 1:
        raise InputError(f"several traces begin with {key!r}; give more of the key")
    return rows[0]


def printable(value: Any) -> str:
    """The text with everything but newlines and printable characters replaced, since model text may contain terminal
    escapes."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in str(value))
