"""The results of adaptive sampling, for people and reports: a function of the verdicts and the stored traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from distill.adaptive.course import Course
from distill.adaptive.rule import Fate
from distill.store import Store


def figures_of(store: Store, collection: str, course: Course, problem_keys: Sequence[str]) -> dict[str, Any]:
    """``tokens_saved`` is relative to ``most`` samples of every problem that was sampled, at the mean length of that
    problem's samples. Problems that were not sampled because a quota was full do not count as saved."""
    rows = store.rows(
        "SELECT label, count(*) AS tries, sum(thinking_tokens + answer_tokens)::BIGINT AS tokens "
        "FROM members JOIN traces ON row_key = trace_key WHERE collection = ? GROUP BY label",
        [collection],
    )
    fates = Counter(course.fate(number) for number in range(len(problem_keys)))
    accepted = sum(share.accepted for share in course.shares)
    tries, tokens = sum(row["tries"] for row in rows), sum(row["tokens"] for row in rows)
    figures: dict[str, Any] = {"accepted": accepted}
    if course.rule.distinct:
        figures["repeated"] = sum(course.repeated(number) for number in range(len(problem_keys)))
    if accepted:
        figures["tries_per_accepted"] = round(tries / accepted, 3)
        figures["tokens_per_accepted"] = round(tokens / accepted, 1)
    figures |= {f"{fate}_problems": fates[fate] for fate in Fate if fates[fate]}
    if fates[None]:
        figures["problems_not_asked"] = fates[None]
    saved = sum((course.rule.most - row["tries"]) * row["tokens"] / row["tries"] for row in rows)
    figures["tokens_saved"] = round(saved)
    if course.shares[0].quota:
        figures["quotas"] = {
            str(s.quota): {"accepted": s.accepted, "of": s.quota.accepted} for s in course.shares if s.quota
        }
    return figures
