"""Show a response while it is sampled: the answer as it arrives, the thinking dimmed or as a token count.

`Speaker` repeatedly receives the text so far and prints what is new. On a terminal, hidden thinking is one line with a
token count that disappears at the end; in a pipe only text is printed. Text that may become a think tag is held back.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from distill.cli.traces import printable
from distill.engines.base import SoFar, response_of
from distill.thinking import CLOSE, OPEN, Response, opened, split_thinking
from distill.types import Completion

DIM, PLAIN, WIPE = "\x1b[2m", "\x1b[0m", "\r\x1b[K"


class Speaker:
    def __init__(self, out: TextIO, show_thinking: bool) -> None:
        self._out, self._show = out, show_thinking
        self._terminal = out.isatty()
        self._thinking = self._answer = ""
        """The text of each that is already printed."""
        self._counting = False

    def show(self, so_far: SoFar) -> None:
        if (text := held_back(so_far.text)) is None:
            return
        parts = split_thinking(text, opened=opened(so_far.prompt))
        if not parts.closed or parts.thinking:
            self._think(parts, so_far.tokens)
        if parts.closed:
            self._say(parts.answer)

    def end(self, completion: Completion) -> None:
        """Print the rest of the complete response."""
        parts = response_of(completion)
        self._wipe()
        if self._show:
            self._print_new("_thinking", printable(parts.thinking), DIM)
        if parts.closed:
            self._say(parts.answer)
        self._write("\n" if self._answer or (self._show and self._thinking) else "")

    def broken_off(self) -> None:
        """The user interrupted the response; leave the terminal in order."""
        self._wipe()
        self._write((PLAIN if self._terminal else "") + ("\n" if self._thinking or self._answer else ""))

    def _think(self, parts: Response, tokens: int) -> None:
        if self._show:
            self._print_new("_thinking", printable(parts.thinking), DIM)
        elif self._terminal and not parts.closed:
            self._counting = True
            self._write(f"{WIPE}{DIM}thinking: {tokens:,} tokens{PLAIN}"[: shutil.get_terminal_size().columns + 20])

    def _say(self, answer: str) -> None:
        self._wipe()
        if answer and not self._answer and self._thinking:
            self._write("\n\n")
        self._print_new("_answer", printable(answer), "")

    def _print_new(self, name: str, text: str, look: str) -> None:
        """Print the new part of a text. If the printed part has changed (the engine took something back), print all."""
        printed = getattr(self, name)
        if text == printed:
            return
        new = text.removeprefix(printed) if text.startswith(printed) else f"\n{text}"
        self._write(f"{look}{new}{PLAIN}" if look and self._terminal else new)
        setattr(self, name, text)

    def _wipe(self) -> None:
        if self._counting:
            self._counting = False
            self._write(WIPE)

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()


class Aside:
    """Prints an engine's notes. While an answer is being shown they wait, because they would share its line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._held: list[str] | None = None

    def show(self, text: str) -> None:
        if self._held is not None:
            self._held.append(text)
        else:
            print(text, file=self._out, flush=True)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            for text in held:
                self.show(text)


def held_back(text: str) -> str | None:
    """A text without what may be the beginning of a think tag at its end; None if nothing is left."""
    for tag in (OPEN, CLOSE):
        cut = next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
        if cut:
            text = text[:-cut]
    return text if text.strip() else None


def speak(pieces: Iterable[SoFar | Completion], speaker: Speaker) -> Completion:
    """Show a response until it is complete."""
    try:
        for piece in pieces:
            if isinstance(piece, Completion):
                speaker.end(piece)
                return piece
            speaker.show(piece)
    except KeyboardInterrupt:
        speaker.broken_off()
        raise
    raise AssertionError("an engine's stream ends with the completion")
