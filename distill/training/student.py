"""A student from a model that was found: loaded, tokenised for, threads chosen. Shared by sft and grpo."""

from __future__ import annotations

import os
from typing import Any

from distill import pretrained
from distill.modelspec import Model
from distill.thinking import join_thinking
from distill.types import Message
from pipeline.errors import InputError


def load(model: Model) -> tuple[Any, Any]:
    """(network in fp32 on the best device, tokenizer)."""
    network, tokenizer = pretrained.load(model)
    if tokenizer.chat_template is None:
        raise InputError(f"model {model.source}: its tokenizer has no chat template; a student needs one")
    return network, tokenizer


def conversation(messages: tuple[Message, ...], thinking: str, answer: str) -> list[Message]:
    """A trace as a conversation in the student's own form of thinking."""
    return [*messages, {"role": "assistant", "content": join_thinking(thinking, answer)}]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(asked: int) -> int:
    """0 means one a core."""
    return asked or cores()
