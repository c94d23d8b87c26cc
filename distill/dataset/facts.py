"""The facts of a data card as plain data, read from the store and the manifests of its stages; nothing is assumed.

What was not measured is None or empty, and the card says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import __version__
from distill.dataset.choice import Choice, lineage, problem_sets
from distill.spending import PIECES
from pipeline.errors import InputError
from pipeline.manifest import Manifest

if TYPE_CHECKING:
    import duckdb

Facts = dict[str, Any]
MOST_ROWS = 40
"""The most rows of a table in the card; those left out are counted."""
QUANTILES = {"min": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "max": 1.0}


def gather(connection: duckdb.DuckDBPyConnection, choice: Choice, workspace: Path, pipeline: Path | None) -> Facts:
    """The facts of the traces in the temporary table ``chosen`` (`distill.dataset.write.choose`)."""
    chain = lineage(workspace, choice.collection)
    return {
        "name": _name(chain if choice.collection else [], workspace),
        "distill": __version__,
        "conditions": choice.words(),
        "totals": _rows(connection, TOTALS)[0],
        "problems": _rows(connection, PROBLEMS),
        "teachers": _rows(connection, TEACHERS),
        "sampling": _rows(connection, SAMPLING),
        "systems": _rows(connection, SYSTEMS),
        "example": _example(connection),
        "verifiers": _rows(connection, VERIFIERS),
        "funnel": _funnel(connection, choice),
        "lengths": _lengths(connection),
        "duplicates": _rows(connection, DUPLICATES)[0],
        "heldout": _rows(connection, HELDOUT, {"collections": problem_sets(workspace, chain)})[0],
        "overlap": _overlap(connection, chain),
        "cost": _cost(connection),
        "stages": [_stage(manifest) for manifest in chain],
        "software": {name: v for m in chain for name, v in sorted(m.software.items())},
        "pipeline": _pipeline(pipeline),
    }


TOTALS = """
    SELECT count(*) AS traces, count(DISTINCT problem_id) AS problems,
        coalesce(sum(prompt_tokens), 0)::BIGINT AS prompt_tokens,
        coalesce(sum(thinking_tokens), 0)::BIGINT AS thinking_tokens,
        coalesce(sum(answer_tokens), 0)::BIGINT AS answer_tokens,
        count(*) FILTER (engine = 'imported') AS imported
    FROM chosen
"""
PROBLEMS = """
    SELECT c.source, p.licence, count(DISTINCT c.problem_key) AS problems, count(*) AS traces,
        min(c.difficulty) AS difficulty_from, max(c.difficulty) AS difficulty_to
    FROM chosen c LEFT JOIN problems p USING (problem_key) GROUP BY ALL ORDER BY ALL
"""
TEACHERS = """
    SELECT c.model, c.engine, count(*) AS traces, sum(c.thinking_tokens + c.answer_tokens)::BIGINT AS tokens,
        count(*) FILTER (c.finish = 'length') AS truncated, any_value(m.name) AS name
    FROM chosen c LEFT JOIN (
        SELECT model, string_agg(name, ', ' ORDER BY name) AS name FROM models GROUP BY model) m USING (model)
    GROUP BY c.model, c.engine ORDER BY traces DESC, c.model
"""
"""The models that sampled, each with the names that pipelines give it."""
SAMPLING = """
    SELECT t.temperature, t.top_p, t.top_k, t.max_tokens, count(DISTINCT t.seed) AS seeds, min(t.seed) AS seed_from,
        max(t.seed) AS seed_to, max(t.sample_index) + 1 AS samples, count(*) AS traces
    FROM chosen JOIN traces t USING (trace_key) GROUP BY ALL ORDER BY traces DESC, 1, 2, 3, 4
"""
SYSTEMS = """
    SELECT p.system, count(*) AS traces FROM chosen LEFT JOIN problems p USING (problem_key)
    GROUP BY ALL ORDER BY traces DESC, 1
"""
VERIFIERS = """
    SELECT j.verifier, j.version, j.settings, count(*) FILTER (j.outcome = 'correct') AS correct,
        count(*) FILTER (j.outcome = 'incorrect') AS incorrect,
        count(*) FILTER (j.outcome = 'unverifiable') AS unverifiable
    FROM judgements j SEMI JOIN chosen USING (trace_key, problem_key) GROUP BY ALL ORDER BY ALL
"""
DUPLICATES = """
    WITH texts AS (SELECT md5(thinking || chr(31) || answer) AS text FROM traces SEMI JOIN chosen USING (trace_key))
    SELECT (count(*) - count(DISTINCT text))::BIGINT AS same_text FROM texts
"""
HELDOUT = """
    WITH held AS (
        SELECT DISTINCT p.prompt_key FROM members m JOIN problems p ON p.problem_key = m.row_key
        WHERE m.label = 'heldout' AND ($collections = [] OR m.collection IN $collections))
    SELECT (SELECT count(*) FROM held) AS heldout,
        (SELECT count(DISTINCT p.prompt_key) FROM chosen JOIN problems p USING (problem_key)
            WHERE p.prompt_key IN (SELECT prompt_key FROM held)) AS shared
"""


def _rows(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Any = ()) -> list[dict[str, Any]]:
    result = connection.execute(sql, parameters)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _example(connection: duckdb.DuckDBPyConnection) -> str | None:
    """The prompt of the first trace by key, as the model saw it."""
    rows = _rows(
        connection,
        "SELECT prompt FROM traces WHERE trace_key = (SELECT min(trace_key) FROM chosen)",
    )
    return rows[0]["prompt"] if rows else None


def _funnel(connection: duckdb.DuckDBPyConnection, choice: Choice) -> list[dict[str, Any]]:
    """From generated to kept: by reason of rejection if there is a selection, else by the newest verdict."""
    rows = _rows(
        connection,
        "SELECT outcome, sum(traces)::BIGINT AS traces, sum(tokens)::BIGINT AS tokens FROM funnel "
        "WHERE collection = $collection AND (run IS NULL OR run = $run) GROUP BY outcome",
        {"collection": choice.collection, "run": choice.run},
    )
    rows.sort(key=lambda row: (row["outcome"] != "kept", -row["traces"], row["outcome"]))
    return rows or _rows(
        connection,
        "SELECT coalesce(outcome, 'not judged') AS outcome, count(*) AS traces, "
        "sum(thinking_tokens + answer_tokens)::BIGINT AS tokens FROM chosen GROUP BY ALL ORDER BY ALL",
    )


def _lengths(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    points = list(QUANTILES.values())
    found = []
    for name in ("prompt_tokens", "thinking_tokens", "answer_tokens"):
        sql = f"SELECT quantile_disc({name}, {points}) AS at, avg({name}) AS mean FROM chosen"
        row = _rows(connection, sql)[0]
        at = row["at"] or [None] * len(points)
        found.append(
            {"tokens": name.removesuffix("_tokens"), **dict(zip(QUANTILES, at, strict=True)), "mean": row["mean"]}
        )
    return found


def _overlap(connection: duckdb.DuckDBPyConnection, chain: list[Manifest]) -> list[dict[str, Any]] | None:
    """For each evaluation set, how many problems overlap with it according to curation, and how many of these are
    among the chosen, even if there are none. None if no overlap was looked for."""
    curations = {m.fingerprint: m for m in chain if m.identity.kind in ("curate", "curate-traces")}
    rows = _rows(
        connection,
        "SELECT evaluation, count(DISTINCT problem_key) AS problems, "
        "count(DISTINCT problem_key) FILTER (problem_key IN (SELECT problem_key FROM chosen)) AS among_these, "
        "max(share) AS largest_share FROM curation WHERE evaluation IS NOT NULL AND ($runs = [] OR run IN $runs) "
        "GROUP BY ALL ORDER BY ALL",
        {"runs": list(curations)},
    )
    found = {row["evaluation"] for row in rows}
    compared = {name for m in curations.values() for name in (*m.identity.settings["against"], *m.figures["against"])}
    clean = sorted(compared - found)
    rows += [{"evaluation": name, "problems": 0, "among_these": 0, "largest_share": None} for name in clean]
    return rows or None


def _cost(connection: duckdb.DuckDBPyConnection) -> dict[str, Any] | None:
    """What the endpoints billed for the chosen traces and for all calls; None if nothing was billed."""
    row = _rows(
        connection,
        "SELECT sum(cost)::DOUBLE AS total, "
        f"sum(cost) FILTER (request_key IN ({PIECES.format(traces='SELECT trace_key FROM chosen')}))::DOUBLE AS chosen "
        "FROM calls",
    )[0]
    return row if row["total"] else None


def _name(chain: list[Manifest], workspace: Path) -> str:
    return f"{workspace.resolve().name}, stage {chain[-1].stage}" if chain else workspace.resolve().name


def _stage(manifest: Manifest) -> dict[str, Any]:
    identity = manifest.identity
    settings: Mapping[str, Any] = {k: v for k, v in identity.settings.items() if v is not None}
    return {
        "stage": manifest.stage, "kind": identity.kind, "version": identity.version,
        "fingerprint": manifest.fingerprint, "settings": settings, "files": dict(identity.files),
    }  # fmt: skip


def _pipeline(path: Path | None) -> dict[str, str] | None:
    if path is None or not path.is_file():
        return None
    try:
        return {"name": path.name, "text": path.read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
