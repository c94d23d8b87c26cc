"""Which tokens of a conversation are learned: the assistant's turns, each including the token that ends it.

Turns are found by rendering the template with and without each of them, so it needs no ``{% generation %}`` tags.
Many templates of reasoning models do not allow that: they open the thinking in the prompt, cut it out of turns,
rewrite earlier turns, or end turns without a special token. Then the last turn is put together as an engine will see
it: the prompt that the template gives, the content, and the end of the turn (the tokenizer's end of text where the
template has none). The turns before it are then context only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.thinking import CLOSE, OPEN, join_thinking, opened
from distill.training.batching import Example, from_tokens
from distill.turns import rendered, turn_end
from distill.types import Message
from pipeline.errors import InputError


def conversation(messages: tuple[Message, ...], thinking: str, answer: str) -> list[Message]:
    """A trace as a conversation, with the thinking marked as the student writes it."""
    return [*messages, {"role": "assistant", "content": join_thinking(thinking, answer)}]


def from_messages(tokenizer: Any, key: str, messages: Sequence[Message]) -> Example:
    """A row from a conversation that ends with an assistant's turn."""
    end = turn_end(tokenizer)
    text = rendered(tokenizer, messages, asking=False)
    spans = _spans(tokenizer, text, messages) if end is not None else None
    if spans is None:
        return _last_turn(tokenizer, key, messages, tokenizer.eos_token_id if end is None else end)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"]
    mask = [False] * len(ids)
    for first, last in spans:
        inside = [t for t, (left, _) in enumerate(encoded["offset_mapping"]) if first <= left < last]
        ends = [t for t in inside if ids[t] == end]
        for t in inside:  # what follows the end token (a newline) is the template's, not the assistant's
            mask[t] = not ends or t <= ends[-1]
    return Example(key, _interned(ids), tuple(mask))


def _spans(tokenizer: Any, text: str, messages: Sequence[Message]) -> list[tuple[int, int]] | None:
    """The (start, end) of the assistant's turns in ``text``; None if they cannot be located or do not hold everything
    that was said."""
    found = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(tokenizer, messages[:turn])
        last = turn == len(messages) - 1
        after = text if last else rendered(tokenizer, messages[: turn + 1], asking=False)
        located = text.startswith(after) and after.startswith(before) and not opened(before)
        if not located or _without_spaces(message["content"]) not in _without_spaces(text[len(before) : len(after)]):
            return None
        found.append((len(before), len(after)))
    return found


def _last_turn(tokenizer: Any, key: str, messages: Sequence[Message], end: int | None) -> Example:
    *context, last = messages
    if end is None:
        raise InputError(
            f"example {key}: the student's chat template ends turns with no special token and its tokenizer has no "
            "eos_token, so the student could not learn to stop; give the tokenizer one"
        )
    if last["role"] != "assistant":
        raise InputError(
            f"example {key}: it ends with a turn of the {last['role']}; end it with one of the assistant, to be learned"
        )
    prompt = rendered(tokenizer, context)
    parts = (prompt, _continuation(prompt, last["content"]))
    prompt_ids, response = (tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"] for part in parts)
    return from_tokens(key, _interned(prompt_ids), _interned([*response, end]))


_IDS: dict[int, int] = {}


def _interned(ids: Sequence[int]) -> tuple[int, ...]:
    """The ids, with each number in memory once for all rows: a data set takes 16 bytes per token instead of 48."""
    return tuple(map(_IDS.setdefault, ids, ids))


def _continuation(prompt: str, content: str) -> str:
    """The part of ``content`` that follows a prompt. If the prompt opens the thinking and the content has none, the
    thinking is closed at once."""
    if not opened(prompt):
        return content
    if not content.startswith(OPEN):
        return f"\n{CLOSE}\n\n{content}"
    rest = content.removeprefix(OPEN)
    return rest.lstrip("\n") if prompt.endswith("\n") else rest


def _without_spaces(text: str) -> str:
    return "".join(text.split())
