"""Split a response into thinking and answer: the one rule for engines, store, verifiers and training.

The *last* ``</think>`` ends the thinking, whatever came before it; the answer is what follows. If no closing tag
follows an opening tag, the model was cut off (or went astray) inside its thinking: the whole text is thinking and the
answer is empty. Text without any tag is all answer, unless the caller says that the template had already opened
``<think>`` in the prompt.

Left out: other tag spellings. If a family of models uses other tags, they are mapped where it is sampled, so that
everything stored has this one form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OPEN = "<think>"
CLOSE = "</think>"


@dataclass(frozen=True, slots=True)
class Response:
    """``closed`` is False if the text ends inside its thinking; ``answer`` is then empty."""

    thinking: str
    answer: str
    closed: bool


def split_thinking(text: str, opened: bool = False) -> Response:
    """Split a response into thinking and answer, both stripped of surrounding white space.

    ``opened`` means that the prompt ended inside a ``<think>``. It matters only for text without any tag, since a
    closing tag alone shows it too.
    """
    before, close, after = text.rpartition(CLOSE)
    if OPEN in after or (opened and not close):
        return Response(_without_opening(text), "", closed=False)
    if close:
        return Response(_without_opening(before), after.strip(), closed=True)
    return Response("", text.strip(), closed=True)


def opened(prompt: str) -> bool:
    """Whether a prompt ends inside thinking that its template has opened."""
    return prompt.rstrip().endswith(OPEN)


def join_thinking(thinking: str, answer: str, closed: bool = True) -> str:
    """The inverse of `split_thinking`: the response as text. Without thinking, the answer alone."""
    if not closed:
        return f"{OPEN}\n{thinking}"
    return f"{OPEN}\n{thinking}\n{CLOSE}\n\n{answer}" if thinking else answer


def opened_twice(prompt: str, response: str) -> int:
    """The length of the opening tag in a response, with its white space, if ``prompt`` has opened the thinking already;
    otherwise 0. Some templates end in a tag, and stored responses with thinking always begin with one
    (`join_thinking`)."""
    begun = response.lstrip()
    if not opened(prompt) or not begun.startswith(OPEN):
        return 0
    after = begun.removeprefix(OPEN)
    return len(response) - len(after.lstrip() if prompt[-1].isspace() else after)


def count_thinking_tokens(
    token_ids: Sequence[int], close: Sequence[int], open: Sequence[int] = (), opened: bool = False
) -> tuple[int, int]:
    """(thinking, answer) token counts by the same rule; the tags themselves count as thinking.

    ``close`` and ``open`` are the ids of the tags: one id if the tag is a special token, several if it is spelled out.
    The two counts always add up to ``len(token_ids)``.
    """
    end = _last(token_ids, close)
    split = 0 if end is None else end + len(close)
    reopened = open and _last(token_ids[split:], open) is not None
    if reopened or (opened and end is None):
        split = len(token_ids)
    return split, len(token_ids) - split


def estimate_tokens(text: str) -> int:
    """The approximate number of tokens of a text, for want of a tokenizer: one per four characters."""
    return -(-len(text) // 4)


def _without_opening(thinking: str) -> str:
    return thinking.strip().removeprefix(OPEN).strip()


def _last(ids: Sequence[int], piece: Sequence[int]) -> int | None:
    """The index at which ``piece`` last begins in ``ids``; None if it does not occur or is empty."""
    wanted = tuple(piece)
    if not wanted:
        return None
    starts = range(len(ids) - len(wanted), -1, -1)
    return next((at for at in starts if tuple(ids[at : at + len(wanted)]) == wanted), None)
