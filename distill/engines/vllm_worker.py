"""The process of one vLLM replica: it samples, scores and adopts adapters as `distill.engines.vllm_replicas` asks.

Messages are (what, argument) pairs. Each is answered by a value or an exception, except ``generate``, which adds
requests to those being sampled: lists of completions follow as they finish, until ``drop`` is answered by `DROPPED`. A
thread reads the pipe, so a replica whose parent is gone ends even while vLLM computes.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

from distill.engines.options import VllmOptions
from distill.modelspec import Model
from distill.types import Request
from pipeline.errors import PipelineError
from pipeline.forking import leave_to_parent

DROPPED = "dropped"
END = ("end", None)
NOW = ("now", None)
"""End without closing vLLM, which would first have to finish loading."""

GRACE = 20.0
"""Seconds for vLLM to close after the parent is gone. Then the process ends anyway."""


@dataclass(frozen=True)
class Opening:
    """What a replica loads. ``sharing`` is the number of replicas on this machine."""

    model: Model
    options: VllmOptions
    lora_rank: int
    sharing: int


class _Asked:
    """The requests of one call of `generate`, as the parent sends them, until it drops them."""

    def __init__(self, inbox: SimpleQueue[Any], requests: list[Request]) -> None:
        self._inbox, self._waiting = inbox, deque(requests)
        self._unanswered = 0
        self.over: str | None = None

    def answered(self) -> None:
        self._unanswered -= 1

    def stopping(self) -> bool:
        while not self.over and not self._inbox.empty():
            self._read(self._inbox.get())
        return self.over is not None

    def failed(self) -> None:
        """After an error, discard what the parent sent before it knew, up to its ``drop``, perhaps read already."""
        while not self.over:
            self._read(self._inbox.get())

    def __iter__(self) -> Iterator[Request | None]:
        while not self.over:
            if self._waiting:
                self._unanswered += 1
                yield self._waiting.popleft()
                continue
            try:
                self._read(self._inbox.get(block=not self._unanswered))
            except Empty:
                yield None

    def _read(self, message: tuple[str, Any]) -> None:
        what, argument = message
        if what == "generate":
            self._waiting += argument
        else:
            self.over = what


def serve(inbox: SimpleQueue[Any], outbox: SimpleQueue[Any]) -> None:
    """Answer messages until the end."""
    from distill.engines import vllm

    what, opening = inbox.get()
    if what == "end":
        return
    try:
        engine = vllm.load(opening.model, opening.options, opening.lora_rank, opening.sharing)
    except Exception as error:
        outbox.put(_portable(error))
        return
    outbox.put(engine.ahead)
    while (message := inbox.get()) != END:
        what, argument = message
        if what == "generate":
            if _generate(engine, _Asked(inbox, argument), outbox) == "end":
                break
            outbox.put(DROPPED)
            continue
        try:
            outbox.put(DROPPED if what == "drop" else getattr(engine, what)(argument))
        except Exception as error:
            outbox.put(_portable(error))
    engine.close()


def _generate(engine: Any, asked: _Asked, outbox: SimpleQueue[Any]) -> str | None:
    try:
        for completion in engine.generate(asked, asked.stopping):
            asked.answered()
            outbox.put([completion])
    except Exception as error:
        outbox.put(_portable(error))
        asked.failed()
    return asked.over


def _portable(error: Exception) -> Exception:
    """The exception in a form that can be pickled and raised in the parent."""
    if isinstance(error, PipelineError):
        return error
    return PipelineError(f"a vllm replica failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _receive(pipe: Connection, inbox: SimpleQueue[Any]) -> None:
    try:
        while (message := pipe.recv()) != NOW:
            inbox.put(message)
        _abandon()
    except (EOFError, OSError):
        pass  # the parent closed the pipe, or is gone
    inbox.put(END)
    ended = threading.Timer(GRACE, _abandon)
    ended.daemon = True
    ended.start()


def _send(pipe: Connection, outbox: SimpleQueue[Any]) -> None:
    """Send answers in a separate thread, so that vLLM continues while the parent is busy."""
    try:
        while (message := outbox.get()) != END:
            pipe.send(message)
    except BaseException:
        _abandon()  # the parent is gone, or would wait for an answer that cannot be sent


def _abandon() -> None:
    """End at once, together with vLLM's own workers, which do not notice a dead parent while they load."""
    try:
        for child in multiprocessing.active_children():
            child.kill()
    finally:
        os._exit(1)


def main() -> None:
    """``python -m distill.engines.vllm_worker FD [CORE...]``"""
    leave_to_parent(offspring=True)  # with tensor_parallel vLLM starts processes, which Ctrl-C would end
    if cores := {int(core) for core in sys.argv[2:]}:
        os.sched_setaffinity(0, cores)
    from distill.pretrained import quiet_libraries  # not earlier: it may start threads, which would keep all cores

    pipe = Connection(int(sys.argv[1]))
    inbox, outbox = SimpleQueue[Any](), SimpleQueue[Any]()
    threading.Thread(target=_receive, args=(pipe, inbox), daemon=True).start()
    sender = threading.Thread(target=_send, args=(pipe, outbox), daemon=True)
    sender.start()
    quiet_libraries()
    serve(inbox, outbox)
    outbox.put(END)
    sender.join()
    os._exit(0)  # not even something that vLLM left behind may keep it alive


if __name__ == "__main__":
    main()
