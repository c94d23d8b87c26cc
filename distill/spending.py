"""What a stage spends at endpoints over all of its runs: the call log of each account, its rows and their sum.

An account is the name of a stage in a workspace; a judge's account is that name and the judge's. The cap counts
everything spent under that name, in this run or an earlier one, killed or not, with these settings or others. Users who
run the same command again rely on that. See docs/design/009-spending.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from distill.engines.calls import CallLog, CallRow, logged
from distill.engines.prices import Bill
from distill.store import Store


@dataclass(frozen=True, slots=True)
class Spending:
    """Where the calls of one account are kept."""

    store: Store
    account: str
    makes_traces: bool = True

    def of(self, part: str) -> Spending:
        """The account of a part of the stage, such as a judge."""
        return Spending(self.store, f"{self.account}/{part}", makes_traces=False)

    def open(self, model: str) -> CallLog:
        """Open the account's call log for calls to ``model``. Calls left by a killed run are in the store on return."""

        def keep(rows: Sequence[CallRow]) -> None:
            self.store.append("calls", rows)

        def known(keys: Sequence[str]) -> set[str]:
            return self.store.present("traces", keys)

        about = {"account": self.account, "model": model}
        log = CallLog(
            _directory(self.store, self.account),
            about,
            keep,
            known if self.makes_traces else None,
            self.store.ingest_if_free,
        )
        self.store.ingest()
        log.spent = spent(self.store, self.account)
        return log


def _directory(store: Store, account: str) -> Path:
    return store.path.parent / "calls" / account


def spent_so_far(store: Store, account: str) -> Bill:
    """As `spent`, with the calls that are only in the account's log: of a killed run, or of one that goes on."""
    rows = {row["call_id"]: row for row in logged(_directory(store, account))}
    stored = store.present("calls", rows) if rows and store.path.exists() else set()
    left = [row for call, row in rows.items() if call not in stored]
    names = ("prompt_tokens", "cached_tokens", "tokens", "cost")
    return sum((Bill(*(row[name] for name in names)) for row in left), spent(store, account))


def spent(store: Store, account: str) -> Bill:
    """The sum of the account's calls in the store."""
    if not store.path.exists():
        return Bill()
    row = store.rows(
        "SELECT coalesce(sum(prompt_tokens), 0)::BIGINT, coalesce(sum(cached_tokens), 0)::BIGINT, "
        "coalesce(sum(tokens), 0)::BIGINT, coalesce(sum(cost), 0) FROM calls WHERE account = ?",
        [account],
    )[0]
    prompt, cached, tokens, cost = row.values()
    return Bill(prompt, cached, tokens, Decimal(cost))


PIECES = (
    "WITH RECURSIVE pieces AS (SELECT trace_key FROM ({traces}) UNION SELECT t.continues FROM traces t "
    "JOIN pieces USING (trace_key) WHERE t.continues IS NOT NULL) SELECT trace_key FROM pieces"
)
"""Traces (a query of their keys) and, of those that continue a cut one, all that came before."""


def spent_on(store: Store, collection: str) -> Mapping[str, Any]:
    """The calls, tokens and cost of a collection's traces, over all runs, with those of the cut traces that they
    continue; empty if there were no calls."""
    members = "SELECT row_key AS trace_key FROM members WHERE collection = ?"
    row = store.rows(
        "SELECT count(*) AS calls, sum(prompt_tokens::BIGINT + tokens)::BIGINT AS paid_tokens, sum(cost) AS cost "
        f"FROM calls WHERE request_key IN ({PIECES.format(traces=members)})",
        [collection],
    )[0]
    if not row["calls"]:
        return {}
    return {**row, "cost": float(row["cost"])} if row["cost"] else {"calls": row["calls"]}
