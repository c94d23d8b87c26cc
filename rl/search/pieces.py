"""Make the `Piece` that a search sees of a trace, from a row of the store or fresh from an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.engines.base import response_of
from distill.evaluation.voting import ballot
from distill.thinking import join_thinking
from distill.types import Completion, Finish
from rl.search.base import Piece

COLUMNS = (
    "trace_key, prompt, thinking, answer, closed, cut, finish, forced, prompt_tokens, thinking_tokens, answer_tokens"
)
"""The columns of the table `traces` that `of_row` reads."""


def of_row(row: Mapping[str, Any]) -> Piece:
    """The piece of a row with `COLUMNS`."""
    text = row["cut"] if row["cut"] is not None else join_thinking(row["thinking"], row["answer"], row["closed"])
    given, finish = _begun_with(row["forced"] or ()), Finish(row["finish"])
    return Piece(
        row["trace_key"], row["prompt"], text, row["answer"], _vote(row["answer"], row["closed"], finish), finish,
        row["prompt_tokens"] + given, row["thinking_tokens"] + row["answer_tokens"] - given,
    )  # fmt: skip


def of_completion(completion: Completion) -> Piece:
    parts, given = response_of(completion), _begun_with(completion.forced)
    prompt = len(completion.prompt_ids) if completion.prompt_tokens is None else completion.prompt_tokens
    return Piece(
        completion.key, completion.prompt, completion.text, parts.answer,
        _vote(parts.answer, parts.closed, completion.finish), completion.finish, prompt + given,
        completion.tokens - given,
    )  # fmt: skip


def _vote(answer: str, closed: bool, finish: Finish) -> str | None:
    """As in `distill.evaluation.scoring.samples`: a response that was cut off or is empty casts no vote."""
    return (ballot(answer) or None) if closed and finish is Finish.STOP else None


def _begun_with(forced: Sequence[int]) -> int:
    """The number of tokens with which the response was begun: its forced tokens before the first sampled one."""
    return next((at for at, place in enumerate(forced) if at != place), len(forced))
