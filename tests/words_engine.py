"""A small engine that speaks from its own text: for tests of what is made of cut, refused and empty responses.

The response to a prompt is a fixed sequence of words, so going on from any beginning of it comes to the same
end. A token is a word with the space after it. In the file `LOG` it writes down each request as it gets it, if it is
`Installed`; at the request with the number ``killed_at`` (from 1) its whole process group is killed.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from distill import catalog
from distill.engines.base import Stopping, never
from distill.thinking import CLOSE, OPEN, count_thinking_tokens
from distill.types import Completion, Finish, Request
from pipeline.fingerprint import content_hash


def words(prompt: str) -> list[str]:
    """What is said to a prompt: some thinking, then the answer."""
    draw = int(content_hash(prompt)[:8], 16)
    thinking = [f"w{i * draw % 97} " for i in range(5 + draw % 50)]
    return [f"{OPEN}\n", *thinking, f"\n{CLOSE}\n\n", *(f"a{i} " for i in range(3)), "42"]


LOG = "asked.log"
PAUSE = 0.01


@dataclass
class Installed:
    """In place of the embedded engine, in the process where it is called."""

    killed_at: int = 0

    def __call__(self) -> None:
        catalog.ENGINES["transformers"] = "words_engine:open_engine"
        WordsEngine.log, WordsEngine.killed_at, WordsEngine.pause = LOG, self.killed_at, PAUSE


@dataclass
class WordsEngine:
    log: ClassVar[str | None] = None
    killed_at: ClassVar[int] = 0
    pause: ClassVar[float] = 0.0

    model: str
    positions: int = 10**9
    name: str = "words"
    batch_invariant: bool = True
    opened: int = 0
    asked: int = 0

    def generate(self, requests: Iterable[Request], stopping: Stopping = never) -> Iterator[Completion]:
        for request in requests:
            if stopping():
                return
            if self.log:
                with open(self.log, "a") as file:
                    file.write(f"{request.key}\n")
            self.asked += 1
            if self.asked == self.killed_at:
                os.killpg(0, signal.SIGKILL)
            time.sleep(self.pause)
            yield self._answer(request)

    def _answer(self, request: Request) -> Completion:
        prompt = "".join(f"{message['role']}: {message['content']}\n" for message in request.messages)
        said, finish = words(prompt), Finish.STOP
        if "refuse" in prompt or "silent" in prompt:
            said, finish = [], Finish.REFUSED if "refuse" in prompt else Finish.EMPTY
        given = [token for token in re.findall(r"\s*\S+\s*", request.prefix) if token]
        rest = said[len(given) :] if "".join(said).startswith(request.prefix) else said
        tokens = [*given, *rest]
        limit = min(request.sampling.max_tokens, self.positions)
        if len(tokens) > limit:
            tokens, finish = tokens[:limit], Finish.LENGTH
        ids = tuple(int(content_hash(token)[:6], 16) for token in tokens)
        close = [i for i, token in enumerate(tokens) if CLOSE in token]
        thinking, _ = count_thinking_tokens(ids, [ids[close[0]]] if close else [], [ids[0]] if ids else [])
        return Completion(
            request.key, prompt, (1, 2), "".join(tokens), ids, None, finish,
            thinking_tokens=thinking, forced=tuple(range(len(given))),
        )  # fmt: skip

    def close(self) -> None:
        pass


def open_engine(model: Any, options: Any, note: Any) -> WordsEngine:
    return WordsEngine(model.identity)
