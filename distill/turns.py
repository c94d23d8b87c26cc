"""Render messages with a model's chat template, and find the token that ends an assistant's turn.

That is the token that the template writes after the content, which need not be the tokenizer's ``eos_token``. In Qwen's
base models ``eos_token`` ends a text, and turns end with ``<|im_end|>``; Gemma and Phi are similar. If a student learns
the template's token and its engine waits only for the tokenizer's, sampling never stops. Both therefore ask here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from distill.types import Message
from pipeline.errors import InputError

SAID = "Good."
"""The content of a test turn, to see which tokens follow it."""


def rendered(tokenizer: Any, messages: Sequence[Message], asking: bool = True) -> str:
    """The conversation as text; with ``asking``, up to the start of the assistant's next turn."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise InputError("the model's tokenizer has no chat template, so messages cannot be rendered for it")
    plain = [dict(message) for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=asking)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(f"the model's chat template refuses a conversation of {roles}: {error}") from None
    return text


def turn_end(tokenizer: Any) -> int | None:
    """The first special token after an assistant's content; None if the template ends a turn without one."""
    turns: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": SAID}]
    try:
        _, found, after = rendered(tokenizer, turns, asking=False).rpartition(SAID)
    except InputError:
        return None
    special = set(tokenizer.all_special_ids)
    special |= {id for id, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    ids = tokenizer.encode(after, add_special_tokens=False) if found else ()
    return next((id for id in ids if id in special), None)


def stop_ids(configured: int | Iterable[int] | None, tokenizer: Any) -> list[int]:
    """The ids that end a turn: the generation config's (``eos_token_id``), the tokenizer's and the template's."""
    listed = [configured] if isinstance(configured, int) else list(configured or ())
    found = {*listed, tokenizer.eos_token_id, turn_end(tokenizer)}
    return sorted(id for id in found if id is not None)
