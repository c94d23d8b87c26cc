"""Format figures and untrusted text for people; used by the headline, the plots and the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufffe\uffff]"
)
LEVEL = "(95% intervals)"
_MADE_BY = {"sft": "after learning from traces", "grpo": "after reinforcement learning"}
_VERIFIED = {**_MADE_BY, "sft": "after learning from verified traces"}


def headline(story: Sequence[Mapping[str, Any]], verified: bool) -> str | None:
    """``A 0.7M-parameter student went from 1.4% (0.9 to 2.1) to 45.9% (42.8 to 49.1) after ...``.

    ``story`` holds the base and the students in order. None unless there are both. ``verified`` is whether only traces
    verified as correct were learned from.
    """
    if len(story) < 2 or story[0]["role"] != "base":
        return None
    size = story[-1]["parameters"]
    start = f"A {count(size)}-parameter student" if size else "The student"
    made_by = _VERIFIED if verified else _MADE_BY
    steps = [f"to {scored(s)} {made_by.get(s['kind'], 'after ' + str(s['stage']))}" for s in story[1:]]
    return f"{start} went from {scored(story[0])} {' and '.join(steps)} {LEVEL}."


def plain_headline(subjects: Mapping[str, Mapping[str, Any]]) -> str:
    scores = [f"{label} {scored(subject)}" for label, subject in subjects.items()]
    return f"Share of problems solved: {', '.join(scores)} {LEVEL}."


def scored(subject: Mapping[str, Any]) -> str:
    """``45.9% (42.8 to 49.1)``: a model's pass@1."""
    share = subject["pass_at_1"]
    return percent(share) if share is None else f"{percent(share)} ({interval(subject['ci95'])})"


def percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.1f}%"


def interval(ci95: Sequence[float]) -> str:
    """``43.1 to 48.7``, in percent."""
    return f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}"


def points(difference: float | None) -> str:
    """A difference of shares in points: ``+9.2``."""
    return "n/a" if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def chance(p: float) -> str:
    """A p value: ``0.031``; very small ones as ``< 0.0001``."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def count(number: int) -> str:
    """``0.7M``, ``1.5B``, ``82,000``."""
    if number >= 1e9:
        return f"{number / 1e9:.1f}B"
    return f"{number / 1e6:.1f}M" if number >= 1e5 else f"{number:,}"


def visible(text: str) -> str:
    """The text with control, zero-width and direction-changing characters made visible, as ``⟨U+202E⟩``."""
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text.replace("\r\n", "\n"))
