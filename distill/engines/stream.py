"""Reassembles a streamed reply: server-sent events in, the reply of a call without streaming out.

So replies are interpreted in one place (`distill.engines.chat`), streamed or not. Left out: everything in the event
stream format that chat endpoints do not use (names of events other than errors, ids, several data lines per event).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from distill.engines import chat

TEXTS = {"content", "reasoning", "reasoning_content", "refusal"}
DATA = b"data:"
NAME = b"event:"
ERROR = b"error"
END = b"[DONE]"
LOOKED_INTO = 2**16


class Stream:
    """Takes bytes as they arrive, and parses them when there are many, which takes half the time."""

    def __init__(self) -> None:
        self._unparsed: list[bytes] = []
        self._size = 0
        self._received = 0
        self._texts: dict[str, list[str]] = {}
        self._data: dict[str, Any] = {}
        self._reason: Any = None
        self._name = b""
        self._begun = self._done = False

    def feed(self, piece: bytes) -> None:
        """Add bytes. Raises `chat.Malformed`, here or later, for an event that is not a piece of a chat completion."""
        self._unparsed.append(piece)
        self._size += len(piece)
        if self._size > LOOKED_INTO:
            self._parse()

    def texts(self) -> tuple[str, str]:
        """(thinking, answer) so far."""
        self._parse()
        thinking = self._texts.get("reasoning", self._texts.get("reasoning_content", []))
        return chat.untagged("".join(thinking)), "".join(self._texts.get("content", []))

    @property
    def received(self) -> int:
        """The bytes of text so far, which are at least as many as the tokens."""
        self._parse()
        return self._received

    @property
    def ended(self) -> bool:
        """Whether the last event has come, or the finish reason: only the token counts may be missing."""
        self._parse()
        return self._begun and (self._done or self._reason is not None)

    def _parse(self) -> None:
        *lines, rest = b"".join(self._unparsed).split(b"\n")
        self._unparsed, self._size = [rest], 0
        for line in lines:
            if line.startswith(DATA):
                self._take(line[len(DATA) :].strip())
            elif line.startswith(NAME) or not line.strip():
                self._name = line[len(NAME) :].strip()

    def _take(self, data: bytes) -> None:
        if data == END:
            self._done = True
        elif self._name == ERROR:
            self._error(data.decode(errors="replace"))
        else:
            self._event(chat.parsed(data.decode(errors="replace")))

    def reply(self) -> Any:
        """The whole reply. Raises `chat.Malformed` if the stream ended in the middle."""
        self._unparsed.append(b"\n")
        self._parse()
        if self._data.get("error"):
            return self._data
        if not self.ended:
            raise chat.Malformed("the stream ended in the middle of a reply")
        message = {name: "".join(pieces) for name, pieces in self._texts.items()}
        return {**self._data, "choices": [{"message": message, "finish_reason": self._reason}]}

    def _error(self, said: str) -> None:
        """An event of that name, whatever its form."""
        found: Any = said
        with suppress(chat.Malformed):
            found = chat.parsed(said)
        self._data["error"] = (isinstance(found, dict) and found.get("error")) or found or "without words"

    def _event(self, event: Any) -> None:
        if not isinstance(event, dict):
            raise chat.Malformed("a piece of the stream is not a JSON object")
        for name in ("error", "usage"):
            if event.get(name):
                self._data[name] = event[name]
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        self._begun = True
        self._reason = choice.get("finish_reason") or self._reason
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        for name, text in chat.in_fields(delta).items():
            if name in TEXTS and text:
                if not isinstance(text, str):
                    raise chat.Malformed(f"the reply's {name} is not text")
                self._received += len(text) if text.isascii() else len(text.encode(errors="replace"))
                self._texts.setdefault(name, []).append(text)
