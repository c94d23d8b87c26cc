"""Compare the verdicts of two verifiers, or of two versions of one verifier, on the same traces of a store.

A pair is one trace that both have judged against the same reference. The problem may differ, because the verifier that
a problem names is part of its key. The measures are symmetric: neither verifier is assumed to be right. They also show
how often a judge disagrees with a rule-based verifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from distill.evaluation.statistics import wilson
from distill.store import Store
from distill.types import Outcome
from pipeline.document import parse_value
from pipeline.errors import InputError
from pipeline.fingerprint import canonical

NAMED = re.compile(r"(.*?)(?:@([^@{}]+))?", re.DOTALL)
NEWEST = """
    SELECT j.trace_key, p.reference, p.problem_id, p.source, j.outcome, j.reason
    FROM judgements j JOIN problems p USING (problem_key)
    WHERE [j.verifier, j.version, j.settings] = ${0}
    QUALIFY row_number() OVER (PARTITION BY j.trace_key, p.reference ORDER BY j.created DESC, j.verdict_key) = 1
"""
PAIRS = f"""
    WITH a AS ({NEWEST.format("a")}), b AS ({NEWEST.format("b")})
    SELECT a.trace_key AS trace, a.problem_id AS problem, a.source, a.outcome AS a, b.outcome AS b,
        a.reason AS a_reason, b.reason AS b_reason
    FROM a JOIN b ON a.trace_key = b.trace_key AND a.reference = b.reference
"""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one verifier with its settings, as recorded in the store."""

    verifier: str
    version: str
    settings: str

    def __str__(self) -> str:
        plain = self.settings == canonical(self.verifier)
        return f"{self.verifier if plain else self.settings}@{self.version}"

    def named(self, text: str) -> bool:
        """Whether ``text`` names this version, as NAME or NAME@VERSION. A spec may stand in place of the name.

        For a version like 2/0.9.0 (`distill.verifiers.extras`) or 1+a94f, the first part is enough.
        """
        name, version = NAMED.fullmatch(text.strip()).groups()  # type: ignore[union-attr]
        spec = parse_value(name) if name.startswith("{") else name
        own = (None, self.version, re.split("[/+]", self.version)[0])
        return version in own and (name == self.verifier or canonical(spec) == self.settings)


@dataclass(frozen=True, slots=True)
class Agreement:
    """``table[a][b]`` counts the traces with outcome a from the first verifier and outcome b from the second.

    ``disagreement`` is the share of contradictions (correct against incorrect) among the traces that neither found
    unverifiable, and ``ci95`` its 95% interval.
    """

    a: Version
    b: Version
    traces: int
    table: Mapping[str, Mapping[str, int]]
    judged_by_both: int
    agreement: float | None
    disagreement: float | None
    ci95: tuple[float, float]
    differences: Sequence[Mapping[str, Any]]


def versions(store: Store) -> list[Version]:
    """Every verifier version with verdicts in this store, in the order of their first verdicts."""
    rows = store.rows("SELECT verifier, version, settings FROM judgements GROUP BY ALL ORDER BY min(created), 1, 2, 3")
    return [Version(**row) for row in rows]


def choose(known: Sequence[Version], a: str | None, b: str | None) -> tuple[Version, Version]:
    """The two versions that ``a`` and ``b`` name. Without names the store must hold exactly two."""
    if a is None and b is None:
        if len(known) != 2:
            raise InputError(f"name two of the verifiers in the store with --a and --b: {_listed(known)}")
        return known[0], known[1]
    if a is None or b is None:
        raise InputError("--a and --b go together: each names a verifier, such as math@1")
    first, second = _one(known, a), _one(known, b)
    if first == second:
        raise InputError(f"--a and --b both mean {first}; name two of: {_listed(known)}")
    return first, second


def _one(known: Sequence[Version], text: str) -> Version:
    found = [version for version in known if version.named(text)]
    if len(found) != 1:
        how = "no verifier in the store is" if not found else "several verifiers in the store are"
        raise InputError(f"{how} called {text!r}; there are: {_listed(found or known)}")
    return found[0]


def _listed(known: Sequence[Version]) -> str:
    return ", ".join(map(str, known)) or "none"


def compare(store: Store, a: Version, b: Version, limit: int | None = None) -> Agreement:
    """Compare the verdicts of two verifiers; ``differences`` lists at most ``limit`` traces on which they differ."""
    who = {"a": _parts(a), "b": _parts(b)}
    counts = store.rows(f"SELECT a, b, count(*) AS n FROM ({PAIRS}) GROUP BY ALL", who)
    count = {(row["a"], row["b"]): row["n"] for row in counts}
    table = {str(x): {str(y): count.get((x, y), 0) for y in Outcome} for x in Outcome}
    total = sum(count.values())
    settled = (Outcome.CORRECT, Outcome.INCORRECT)
    both = sum(count.get(pair, 0) for pair in product(settled, settled))
    contradictions = sum(count.get(pair, 0) for pair in (settled, settled[::-1]))
    rate = contradictions / both if both else None
    differences = store.rows(
        f"SELECT * FROM ({PAIRS}) WHERE a <> b "
        "ORDER BY a = 'unverifiable' OR b = 'unverifiable', source, problem, trace LIMIT $limit",
        who | {"limit": limit},
    )
    return Agreement(
        a, b, total, table, both,
        agreement=sum(count.get((x, x), 0) for x in Outcome) / total if total else None,
        disagreement=rate,
        ci95=(0.0, 1.0) if rate is None else wilson(rate, _problems(store, who)),
        differences=differences,
    )  # fmt: skip


def _problems(store: Store, who: Mapping[str, Any]) -> int:
    """The number of problems with traces that both verifiers found correct or incorrect.

    Samples of one problem are not independent, so each problem counts once in the interval
    (see `distill.evaluation.statistics`).
    """
    sql = f"SELECT count(DISTINCT (source, problem)) AS n FROM ({PAIRS}) WHERE 'unverifiable' NOT IN (a, b)"
    found: int = store.rows(sql, who)[0]["n"]
    return found


def _parts(version: Version) -> list[str]:
    return [version.verifier, version.version, version.settings]
