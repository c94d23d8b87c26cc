"""Compute all scores of one model on a set of problems from its verdict rows.

The rows are those of `distill.verification.scores`, answers included. The problem is the unit of every interval. An
unverifiable sample counts neither as right nor as wrong. Curves over the number of samples are estimated from the
existing samples (`distill.evaluation.voting`) and cost no calls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from statistics import fmean
from typing import Any

from distill.evaluation.statistics import Estimate, clustered_mean, paired_difference, pass_at_k, rounded
from distill.evaluation.voting import Sample, ballot, majority_at_k
from distill.store.records import Row

THIRDS = ("shorter", "middle", "longer")
Found = Mapping[str, Sequence[Sample]]


def summary(rows: Sequence[Row], pass_at: Sequence[int]) -> dict[str, Any]:
    """All figures of one model in the report."""
    found = samples(rows)
    tokens, right = sum(row["tokens"] for row in rows), sum(row["outcome"] == "correct" for row in rows)
    return {
        **mean(rows),
        **{f"pass_at_{k}": _pass_at(found, k) for k in pass_at if k > 1},
        "tokens_per_answer": round(tokens / len(rows), 2),
        "thinking_tokens_per_answer": round(fmean(row["thinking_tokens"] for row in rows), 2),
        "tokens_per_correct": round(tokens / right, 2) if right else None,
        "problems": len({row["problem_key"] for row in rows}),
        "samples": len(rows),
        "stopped": round(fmean(row["finish"] == "stop" for row in rows), 4),
        "truncated": round(fmean(row["finish"] == "length" for row in rows), 4),
        **{name: n for name in ("refused", "empty") if (n := sum(row["finish"] == name for row in rows))},
        "unverifiable": sum(row["outcome"] == "unverifiable" for row in rows),
        **{name: {key: mean(part) for key, part in sorted(parts.items())} for name, parts in groups(rows).items()},
        "by_samples": by_samples(found, pass_at),
        "by_length": by_length(found),
    }


def groups(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """The rows of each source, and of each difficulty (``source/difficulty``) where that is known."""
    found: dict[str, dict[str, list[Row]]] = {"by_source": defaultdict(list), "by_difficulty": defaultdict(list)}
    for row in rows:
        found["by_source"][row["source"]].append(row)
        if row["difficulty"] is not None:
            found["by_difficulty"][f"{row['source']}/{row['difficulty']}"].append(row)
    return found


def samples(rows: Sequence[Row]) -> dict[str, list[Sample]]:
    """The judged samples of each problem. One that was cut or is empty casts no vote."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for row in rows:
        if row["outcome"] != "unverifiable":
            vote = ballot(row["answer"] or "") if row["closed"] and row["finish"] == "stop" else ""
            found[row["problem_key"]].append(Sample(vote or None, float(row["outcome"] == "correct"), row["tokens"]))
    return found


def by_problem(rows: Sequence[Row]) -> dict[str, list[float]]:
    """0 or 1 for each judged sample, by problem."""
    return {key: [s.correct for s in part] for key, part in samples(rows).items()}


def apart(rows: Sequence[Row], contaminated: Container[str]) -> dict[str, dict[str, Any]]:
    """The score on the clean problems, and on those whose keys are in ``contaminated``."""
    parts: dict[str, list[Row]] = {"clean": [], "contaminated": []}
    for row in rows:
        parts["contaminated" if row["problem_key"] in contaminated else "clean"].append(row)
    return {name: {"problems": len({row["problem_key"] for row in part}), **mean(part)} for name, part in parts.items()}


def mean(rows: Sequence[Row]) -> dict[str, Any]:
    """pass@1 with its interval: the mean over all n samples of each problem, which is also called avg@n."""
    estimate = clustered_mean(by_problem(rows))
    return {"pass_at_1": rounded(estimate.value), "ci95": _interval(estimate)}


def by_samples(found: Found, wanted: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Accuracy and cost by number of samples, for the strategies that need nothing but samples.

    These are `pass` (any sample is right, as if a perfect verifier chose) and `majority` (useful from three samples
    on). The points are the powers of two, the number of all samples, and those ``wanted`` that are not above it. Each
    is over the problems with as many samples that could be judged.
    """
    most = max(map(len, found.values()), default=0)
    points = {2**i for i in range(most.bit_length())} | {most} | {k for k in wanted if k <= most}
    return [_point(found, k) for k in sorted(points) if k] if most > 1 else []


def _point(found: Found, k: int) -> dict[str, Any]:
    found = {key: part for key, part in found.items() if len(part) >= k}

    def estimate(choose: Callable[[Sequence[Sample]], float]) -> dict[str, Any]:
        value = clustered_mean({key: [choose(part)] for key, part in found.items()})
        return {"accuracy": rounded(value.value), "ci95": _interval(value)}

    tokens = k * fmean(fmean(s.tokens for s in part) for part in found.values())
    return {
        "samples": k,
        "problems": len(found),
        "tokens": round(tokens, 2),
        "pass": estimate(lambda part: pass_at_k(len(part), round(sum(s.correct for s in part)), k)),
        "majority": estimate(lambda part: majority_at_k(part, k)),
    }


def by_length(found: Found) -> dict[str, dict[str, Any]]:
    """Accuracy of the shorter, middle and longer third of each problem's own samples.

    The comparison is within problems, because hard problems have longer and fewer right answers anyway. Only samples
    that reached an answer count, because one that was cut is long and wrong whatever it thought. The longer third also
    has its difference from the shorter third of the same problems; if that is below zero, more thinking does not pay.
    Empty if no problem has three such samples.
    """
    thirds: dict[str, dict[str, list[float]]] = {name: {} for name in THIRDS}
    for key, part in found.items():
        answered = [s for s in part if s.answer is not None]
        if len(answered) >= len(THIRDS):
            for name, share in zip(THIRDS, _thirds(answered), strict=True):
                thirds[name][key] = [share]
    values = {name: clustered_mean(third) for name, third in thirds.items() if third}
    result: dict[str, dict[str, Any]] = {
        name: {"pass_at_1": rounded(v.value), "ci95": _interval(v)} for name, v in values.items()
    }
    if result:
        more = paired_difference(thirds["shorter"], thirds["longer"])
        result["longer"] |= {"over_shorter": rounded(more.value), "over_shorter_ci95": _interval(more)}
    return result


def _thirds(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """The share of right ones among the shorter, the middle and the longer third; the middle one has what is left over.
    Which of equally long samples belong to a third is left to chance, and this is the mean over all ways."""
    size = len(samples) // len(THIRDS)
    shorter, longer = (_right_among(samples, size, sign) for sign in (1, -1))
    middle = (sum(s.correct for s in samples) - shorter - longer) / (len(samples) - 2 * size)
    return shorter / size, min(1.0, max(0.0, middle)), longer / size


def _right_among(samples: Sequence[Sample], size: int, sign: int) -> float:
    """The mean number of right ones among the ``size`` shortest samples (longest for a ``sign`` of -1)."""
    limit = sorted(sign * s.tokens for s in samples)[size - 1]
    inside = [s.correct for s in samples if sign * s.tokens < limit]
    level = [s.correct for s in samples if sign * s.tokens == limit]
    return sum(inside) + (size - len(inside)) * fmean(level)


def _interval(estimate: Estimate) -> list[float | None]:
    return [rounded(estimate.low), rounded(estimate.high)]


def _pass_at(found: Found, k: int) -> float | None:
    """Mean over the problems with at least ``k`` samples that could be judged."""
    judged = [part for part in found.values() if len(part) >= k]
    values = [pass_at_k(len(part), round(sum(s.correct for s in part)), k) for part in judged]
    return round(fmean(values), 4) if values else None
