"""Turn a judge's replies into a verdict: read each reply, form the votes, and count them.

Pure functions of completions. Replies that cannot be read or do not agree give `unverifiable`, with the texts in the
evidence. `distill.verifiers.llm_judge` makes the requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill.engines.base import response_of
from distill.types import Completion, Finish, Outcome, Verdict
from distill.verifiers.judge_prompt import Grades, Words

SHOWN = 2000
"""The evidence keeps this many characters from the end of a reply."""
NO_VERDICT = {
    Finish.LENGTH: "the judge was cut off before its verdict",
    Finish.REFUSED: "the judge refused to answer",
    Finish.EMPTY: "the judge said nothing",
}


class Vote(NamedTuple):
    """The result of one vote. An unverifiable one has no score. ``replies`` are as the evidence keeps them."""

    outcome: Outcome
    score: float | None
    reason: str
    replies: Sequence[Mapping[str, Any]]


def read(completion: Completion, form: Words | Grades) -> tuple[Any, dict[str, Any]]:
    """The word or grades in a reply (None if it has none in the requested form), and what the evidence keeps of it.

    Only the text after the judge's thinking counts.
    """
    parts = response_of(completion)
    says = form.read(parts.answer) if completion.finish is Finish.STOP and parts.closed else None
    kept = parts.answer if parts.closed else parts.thinking
    return says, {"says": says, "finish": str(completion.finish), "reply": kept[-SHOWN:]}


def vote(completions: Sequence[Completion], form: Words | Grades, threshold: float) -> Vote:
    """One vote, from the reply to one question or from the replies to both orders of a pair."""
    says, replies = zip(*(read(completion, form) for completion in completions), strict=True)
    if None in says:
        finish = completions[says.index(None)].finish
        reason = NO_VERDICT.get(finish, "the judge's reply holds no verdict in the form asked for")
        return Vote(Outcome.UNVERIFIABLE, None, reason, replies)
    if isinstance(form, Grades):
        return _graded(says[0], threshold, replies)
    if len(says) == 2:
        return _preferred(says[0], says[1], replies)
    outcome = {"correct": Outcome.CORRECT, "incorrect": Outcome.INCORRECT}.get(says[0], Outcome.UNVERIFIABLE)
    score = {Outcome.CORRECT: 1.0, Outcome.INCORRECT: 0.0}.get(outcome)
    return Vote(outcome, score, f"the judge says {says[0]}", replies)


def _graded(grades: Mapping[str, float], threshold: float, replies: Sequence[Mapping[str, Any]]) -> Vote:
    mean = sum(grades.values()) / len(grades)
    outcome = Outcome.CORRECT if mean >= threshold else Outcome.INCORRECT
    return Vote(outcome, mean / 10, f"the judge grades {mean:.3g} of 10; {threshold:g} are wanted", replies)


def _preferred(first: str, second: str, replies: Sequence[Mapping[str, Any]]) -> Vote:
    """The candidate was shown first, then second. The judge must prefer the same response both times."""
    one = {"first": "the candidate", "second": "the reference"}.get(first, "neither")
    other = {"first": "the reference", "second": "the candidate"}.get(second, "neither")
    if one != other:
        reason = f"the judge's preference turns with the order: {one}, then {other}"
        return Vote(Outcome.UNVERIFIABLE, None, reason, replies)
    outcome = Outcome.INCORRECT if one == "the reference" else Outcome.CORRECT
    score = {"the candidate": 1.0, "neither": 0.5, "the reference": 0.0}[one]
    return Vote(outcome, score, f"the judge prefers {one}, in both orders", replies)


def verdict(votes: Sequence[Vote], evidence: Mapping[str, Any], seconds: float) -> Verdict:
    """The outcome that more than half of the votes share, with their mean score; otherwise `unverifiable`."""
    counts = Counter(vote.outcome for vote in votes)
    outcome, share = counts.most_common(1)[0]
    shown = {
        **evidence,
        "votes": [
            {"outcome": str(vote.outcome), "score": vote.score, "reason": vote.reason, "said": list(vote.replies)}
            for vote in votes
        ],
        "agreement": round(share / len(votes), 4),
    }
    if len(votes) == 1:
        return Verdict(outcome, votes[0].score, votes[0].reason, shown, seconds=seconds)
    words = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    if 2 * share <= len(votes) or outcome is Outcome.UNVERIFIABLE:
        reason = f"no outcome has most of the judge's votes: {words}"
        return Verdict(Outcome.UNVERIFIABLE, None, reason, shown, seconds=seconds)
    scores = [vote.score for vote in votes if vote.score is not None]
    return Verdict(outcome, sum(scores) / len(scores), f"the judge's votes: {words}", shown, seconds=seconds)


def spent_on(completions: Sequence[Completion]) -> dict[str, float]:
    """The number of calls, tokens and cost, for the evidence and for the totals in `distill.verification`."""
    prompts = (len(c.prompt_ids) if c.prompt_tokens is None else c.prompt_tokens for c in completions)
    return {
        "calls": len(completions),
        "prompt_tokens": sum(prompts),
        "tokens": sum(completion.tokens for completion in completions),
        "cost": float(sum(completion.cost for completion in completions)),
    }
