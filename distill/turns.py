"""Where an assistant's turn ends: the token that the chat template writes after what is said.

It need not be the tokenizer's ``eos_token``. Qwen's base models name the end of a text so and end turns with
``<|im_end|>``; Gemma and Phi do alike. A student that learns the template's token, sampled by an engine that waits for
the tokenizer's alone, would never come to an end: so both ask here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SAID = "Good."
"""What is said to see what comes after it."""


def turn_end(tokenizer: Any) -> int | None:
    """The special token right after what an assistant says; None where the template ends a turn with none."""
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": SAID}]
    try:
        _, found, after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(SAID)
    except (TemplateError, ValueError):  # it has no template, or one that would not be asked so
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
