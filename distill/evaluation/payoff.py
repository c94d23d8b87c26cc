"""What thinking buys: accuracy by thinking tokens, and accuracy with thinking against without.

Works on the rows of `distill.verification.scores`; `distill.budgets` chooses the samples for each budget. All
comparisons are paired: the same problems, and the same samples of each as far as the budget leaves them unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from statistics import fmean
from typing import Any

from distill.evaluation.comparison import means
from distill.evaluation.scoring import by_problem, groups, mean
from distill.evaluation.statistics import Estimate, paired_difference, rounded
from distill.store.records import Row

PAYS, COSTS, UNDECIDED = "pays", "costs accuracy", "not shown to pay"


def curve(
    standing: Mapping[int, Sequence[Row]], whole: Sequence[Row], new: Mapping[int, int], over: Mapping[int, Set[str]]
) -> list[dict[str, Any]]:
    """Accuracy under each budget, and last without one (None).

    ``new`` counts, by budget, the samples that had to be continued for it; the rest existed before. ``over`` are those
    that thought on, which are wrong.
    """
    points: list[tuple[int | None, Sequence[Row]]] = [*sorted(standing.items()), (None, whole)]
    return [
        {
            "budget": most,
            "thinking_tokens": round(fmean(row["thinking_tokens"] for row in rows), 2),
            "tokens": round(fmean(row["tokens"] for row in rows), 2),
            **mean(rows),
            "new": 0 if most is None else new[most],
            "over": 0 if most is None else len(over[most]),
            "samples": len(whole),
        }
        for most, rows in points
    ]


def against_none(thinking: Sequence[Row], without: Sequence[Row]) -> list[dict[str, Any]]:
    """Where reasoning pays: one row for all problems, one per source, and one per difficulty of each source."""
    found = {"all": (thinking, without)}
    for name in ("by_source", "by_difficulty"):
        parts, others = groups(thinking)[name], groups(without)[name]
        found |= {key: (parts[key], others.get(key, [])) for key in sorted(parts)}
    kept = {key: pair for key, pair in found.items() if pair[1] and not _same_as_source(key, found)}
    return [_line(key, *pair) for key, pair in kept.items()]


def _same_as_source(key: str, found: Mapping[str, tuple[Sequence[Row], Sequence[Row]]]) -> bool:
    """Whether a row of one difficulty repeats its source's, which then has no other difficulty."""
    source, slash, _ = key.rpartition("/")
    return bool(slash) and source in found and len(found[source][0]) == len(found[key][0])


def _line(key: str, thinking: Sequence[Row], without: Sequence[Row]) -> dict[str, Any]:
    pair = by_problem(without), by_problem(thinking)
    found, (less, more) = paired_difference(*pair), means(*pair)
    return {
        "of": key,
        "problems": found.problems,
        "thinking": more,
        "without": less,
        "difference": rounded(found.value),
        "ci95": [rounded(found.low), rounded(found.high)],
        "tokens": round(fmean(row["tokens"] for row in thinking), 2),
        "tokens_without": round(fmean(row["tokens"] for row in without), 2),
        "says": _conclusion(found),
    }


def _conclusion(difference: Estimate) -> str:
    return PAYS if difference.low > 0 else COSTS if difference.high < 0 else UNDECIDED
