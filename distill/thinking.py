"""Where thinking ends and the answer begins: the one rule, used by engines, store, verifiers, training.

The rule: the *last* ``</think>`` ends the thinking, whatever came before it; the answer is what
follows. An opening tag that no closing tag follows means the model was cut off (or wandered off)
inside its thinking: all of the text is thinking and the answer is empty. Text without any tag is all
answer, unless the caller says that the template had already opened ``<think>`` in the prompt.

Left out: other tag spellings. A family of models that uses another pair gets its tags mapped where it
is sampled, so that everything stored is in this one form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OPEN = "<think>"
CLOSE = "</think>"


@dataclass(frozen=True, slots=True)
class Response:
    """``closed`` is False where the text ends inside its thinking; then ``answer`` is empty."""

    thinking: str
    answer: str
    closed: bool


def split_thinking(text: str, opened: bool = False) -> Response:
    """Split a response into thinking and answer, both stripped of surrounding white space.

    ``opened`` says that the prompt ended inside a ``<think>``; it matters just for text without any
    tag, since a closing tag alone shows as much.
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
    """The response that `split_thinking` takes apart again; without thinking, the answer alone."""
    if not closed:
        return f"{OPEN}\n{thinking}"
    return f"{OPEN}\n{thinking}\n{CLOSE}\n\n{answer}" if thinking else answer


def opened_twice(prompt: str, response: str) -> int:
    """How many characters of a response open the thinking that ``prompt`` has opened already, its white space included:
    some templates end in a tag, and what is stored always begins with one (`join_thinking`)."""
    begun = response.lstrip()
    if not opened(prompt) or not begun.startswith(OPEN):
        return 0
    after = begun.removeprefix(OPEN)
    return len(response) - len(after.lstrip() if prompt[-1].isspace() else after)


def count_thinking_tokens(
    token_ids: Sequence[int], close: Sequence[int], open: Sequence[int] = (), opened: bool = False
) -> tuple[int, int]:
    """(thinking, answer) token counts by the same rule; the tags themselves count as thinking.

    ``close`` and ``open`` are the ids that spell the tags: one id where the tag is a special token,
    several where it is spelled out. The two counts always add up to ``len(token_ids)``.
    """
    end = _last(token_ids, close)
    split = 0 if end is None else end + len(close)
    reopened = open and _last(token_ids[split:], open) is not None
    if reopened or (opened and end is None):
        split = len(token_ids)
    return split, len(token_ids) - split


def estimate_tokens(text: str) -> int:
    """Roughly how many tokens a text has, where no tokenizer is known: four letters make one."""
    return -(-len(text) // 4)


def _without_opening(thinking: str) -> str:
    return thinking.strip().removeprefix(OPEN).strip()


def _last(ids: Sequence[int], piece: Sequence[int]) -> int | None:
    """Where ``piece`` last begins in ``ids``; an empty piece is nowhere."""
    wanted = tuple(piece)
    if not wanted:
        return None
    starts = range(len(ids) - len(wanted), -1, -1)
    return next((at for at in starts if tuple(ids[at : at + len(wanted)]) == wanted), None)
