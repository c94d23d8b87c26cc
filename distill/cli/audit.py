"""``distill traces diff-verifiers`` and ``disagreements``: find traces on which verifiers disagree."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.cli.open import store_at
from distill.cli.table import render
from distill.cli.table import show as show_rows
from distill.evaluation import agreement
from distill.evaluation.agreement import Agreement
from distill.types import Outcome


def diff_verifiers(
    a: str | None, b: str | None, pipeline: Path, workspace: Path | None, limit: int, as_json: bool
) -> None:
    store = store_at(pipeline, workspace)
    found = agreement.compare(store, *agreement.choose(agreement.versions(store), a, b), limit)
    if as_json:
        print(json.dumps(asdict(found) | {"a": str(found.a), "b": str(found.b)}, ensure_ascii=False))
    else:
        _show(found)


def _show(found: Agreement) -> None:
    a, b = str(found.a), str(found.b)
    print(render([{f"{a}  \\  {b}": x, **found.table[x]} for x in map(str, Outcome)]))
    if found.traces == 0:
        print("\nno trace has been judged by both")
        return
    print(f"\nthe same verdict on {found.agreement:.1%} of {found.traces:,} traces")
    if found.disagreement is not None:
        low, high = found.ci95
        print(f"contradictions: {found.disagreement:.2%} (95%: {low:.2%} to {high:.2%}) "
              f"of the {found.judged_by_both:,} that neither found unverifiable")  # fmt: skip
    if found.differences:
        rows = [
            {"trace": d["trace"][:12], "problem": d["problem"], a: d["a"], b: d["b"],
             "why": d["a_reason"], "why (second)": d["b_reason"]}
            for d in found.differences
        ]  # fmt: skip
        print(f"\n{render(rows, width=48)}")
        differing = found.traces - sum(found.table[x][x] for x in map(str, Outcome))
        if differing > len(rows):
            print(f"({differing - len(rows):,} more; --limit shows them)")


def disagreements(pipeline: Path, workspace: Path | None, limit: int, as_json: bool) -> None:
    store = store_at(pipeline, workspace)
    rows = store.rows("SELECT * FROM disagreements ORDER BY ALL LIMIT ?", [limit])
    show_rows(rows if as_json else [_brief(row) for row in rows], as_json)


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    other = f"{row['other_verifier']} {row['other_version']}" if row["other_verifier"] else "its own check"
    return {
        "trace": row["trace_key"][:12],
        "problem": row["problem_id"],
        "verifier": f"{row['verifier']} {row['version']}",
        "says": row["outcome"],
        "against": other,
        "which says": row["other_outcome"],
        "reason": row["other_reason"] or row["reason"],
    }
