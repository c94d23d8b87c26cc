"""Choose the example problems of the report, with the student's answers before and after training.

They are chosen by rule, not by taste: problems whose first sample was wrong before and right after, one of each source
in turn, in the order of their keys. If there are none, the first problems are shown and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.store import Store

LONGEST = 6000
"""The most characters shown of a text; the middle of a longer one is left out."""


def gather(store: Store, evaluation: str, labels: Sequence[str], wanted: int) -> dict[str, Any]:
    """The ``examples`` of the report. ``rule`` is "learned" or "first"; answers are in the order of ``labels``."""
    rows = store.rows(
        "SELECT m.label, v.problem_key, t.trace_key, m.row_key AS verdict_key, p.source, v.outcome "
        "FROM members m JOIN verdicts v ON m.row_key = v.verdict_key JOIN traces t USING (trace_key) "
        "JOIN problems p USING (problem_key) WHERE m.collection = ? AND t.sample_index = 0 "
        "ORDER BY v.problem_key, m.position",
        [evaluation],
    )
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["problem_key"], {"source": row["source"]}).setdefault(row["label"], row)
    whole = {key: answers for key, answers in first.items() if all(label in answers for label in labels)}
    learned = {
        key: answers
        for key, answers in whole.items()
        if answers[labels[0]]["outcome"] == "incorrect" and answers[labels[-1]]["outcome"] == "correct"
    }
    chosen = _in_turn(learned or whole)[:wanted]
    return {
        "rule": "learned" if learned else "first",
        "before": labels[0],
        "after": labels[-1],
        "candidates": len(learned),
        "problems": [_problem(store, key, [whole[key][label] for label in labels]) for key in chosen],
    }


def _in_turn(problems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The keys, with the first of each source, then the second of each, and so on."""
    seen: dict[str, int] = {}
    rounds = []
    for key, answers in problems.items():
        seen[answers["source"]] = seen.get(answers["source"], 0) + 1
        rounds.append((seen[answers["source"]], answers["source"], key))
    return [key for _, _, key in sorted(rounds)]


def _problem(store: Store, key: str, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = "problem_id, source, difficulty, prompt, reference"
    problem = store.rows(f"SELECT {columns} FROM problems WHERE problem_key = ?", [key])[0]
    texts = {"prompt": shortened(problem["prompt"]), "reference": shortened(problem["reference"])}
    return {**problem, **texts, "answers": [_answer(store, row) for row in answers]}


def _answer(store: Store, row: Mapping[str, Any]) -> dict[str, Any]:
    found = store.rows(
        "SELECT t.thinking, t.answer, t.closed, t.finish, t.thinking_tokens, t.answer_tokens, v.outcome, v.reason "
        "FROM traces t, verdicts v WHERE t.trace_key = ? AND v.verdict_key = ?",
        [row["trace_key"], row["verdict_key"]],
    )[0]
    texts = {name: shortened(found[name]) for name in ("thinking", "answer", "reason")}
    return {"label": row["label"], **found, **texts}


def shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"
