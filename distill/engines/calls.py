"""A crash-safe log of the paid calls of one account: what each cost, and the replies that are not stored yet.

One line is written before a call is made and another, with the whole reply, as soon as it is over. A killed process
loses nothing that it wrote; a power failure loses about a second. So whoever opens the log after a crash knows what
every call cost, counts a call without an end at the most that it can have cost, and finds the replies that were paid
for but had not become rows yet. These are handed out instead of being requested again.

The log knows nothing of the store: ``keep`` stores the rows of finished calls, ``known`` returns which requests have
become rows, and ``closed`` is called once the last rows are kept. A reply leaves the log a minute or more after it
was handed out (callers make it durable within a second), when the log is closed in order, or if nobody asks for it
for a week.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

from distill.engines.chat import Reply
from distill.engines.prices import NOTHING, Bill
from distill.types import Finish
from pipeline.errors import PipelineError
from pipeline.files import disk_errors, fsync_directory, make_directory

SEGMENT_BYTES = 32 * 2**20
KEPT_SECONDS = 60.0
SYNC_SECONDS = 1.0
UNASKED_SECONDS = 7 * 24 * 3600.0
PART = "\n"
"""Separates a request's key from the number of the call, if its response takes several calls."""

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode

CallRow = dict[str, Any]
Keep = Callable[[Sequence[CallRow]], None]
Known = Callable[[Sequence[str]], Set[str]]
Paid = tuple[Reply, float]
"""A reply, and when it arrived (seconds since 1970)."""


class CallEnd(StrEnum):
    """How a call ended, for its bill."""

    ANSWERED = "answered"  # billed as the endpoint reports
    LOST = "lost"  # no usable reply: counted at the most that it can have cost
    ENDED = "ended"  # we hung up: counted by what had arrived


@dataclass(slots=True)
class Call:
    """One call. Until it is over, ``bill`` is the most that it can take."""

    id: str
    key: str
    bill: Bill
    outcome: CallEnd = CallEnd.LOST
    seconds: float = 0.0
    over: float | None = None
    """When it ended (seconds since 1970); None while it runs."""


class CallLog:
    """A log in its own directory, or in memory without one. One user at a time.

    ``about`` holds columns that all of its rows share. ``spent`` is what the calls of earlier runs took; ``replies``
    are those of their replies that have not become rows, by the call's key.
    """

    def __init__(
        self,
        directory: Path | None = None,
        about: Mapping[str, str] | None = None,
        keep: Keep = lambda rows: None,
        known: Known | None = None,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self.spent = NOTHING
        self.replies: dict[str, Reply] = {}
        self._directory, self._about, self._keep, self._known = directory, dict(about or {}), keep, known
        self._closed, self.durable = closed, directory is not None
        self._run, self._count = uuid.uuid4().hex[:12], 0
        self._handed: dict[str, float] = {}
        self._old: list[_Segment] = []
        self._segment: _Segment | None = None
        self._synced = 0.0
        if directory is not None:
            self._recover(make_directory(directory))

    def begin(self, key: str, most: Bill) -> Call:
        """Log a call that is about to be made."""
        self._count += 1
        call = Call(f"{self._run}-{self._count}", key, most)
        if self._segment:
            self._segment.open.add(call.id)
            self._write(self._segment, ["call", call.id, key, *_plain(most)])
        return call

    def end(self, call: Call, outcome: CallEnd, bill: Bill, seconds: float = 0.0, reply: Reply | None = None) -> None:
        """Log how a call ended, before anybody gets its reply."""
        call.outcome, call.bill, call.seconds, call.over = outcome, bill, seconds, time.time()
        home = next((s for s in (*self._old, self._segment) if s and call.id in s.open), None)
        if home is None:
            return
        home.open.discard(call.id)
        home.calls.append(call)
        if reply is not None:
            home.replies.add(call.key)
        line = ["over", call.id, str(outcome), *_plain(bill), seconds, call.over, reply and _reply_data(reply)]
        self._write(home, line)
        self._sync(home)
        if home is self._segment and home.size > SEGMENT_BYTES:
            self._rotate()

    def handed_out(self, key: str) -> None:
        """From now on, it is up to the caller to store the replies under ``key``."""
        if self._segment:
            self._handed[key] = time.monotonic()

    def handed_back(self, keys: Iterable[str]) -> None:
        """The replies under these keys were not stored: keep them for the next run."""
        for key in keys:
            self._handed.pop(key, None)

    def close(self) -> None:
        """Replies that were handed out must be durable by now; the others stay for the next run."""
        if self._segment is None:
            return
        segments, self._segment, self._old = [*self._old, self._segment], None, []
        self._keep([_row(call, self._about) for segment in segments for call in segment.calls])
        if left := self._left(segments):
            self._start(left).close()
        for segment in segments:
            segment.close()
            segment.path.unlink(missing_ok=True)
        self._closed()

    def _left(self, segments: Sequence[_Segment]) -> dict[str, Paid]:
        """The replies in the log that have not become rows or, without ``known``, that were not handed out."""
        keys = {key for segment in segments for key in segment.replies}
        rows = self._handed.keys() if self._known is None else self._become_rows(keys)
        if not (wanted := {key for key in keys if request_of(key) not in rows}):
            return {}
        found = {key: paid for segment in segments for key, paid in _read(segment.path)[1].items()}
        return {key: found[key] for key in wanted if key in found}

    def _recover(self, directory: Path) -> None:
        """Take over what earlier runs left, in an order that makes being killed again harmless."""
        old = sorted(directory.glob("*.jsonl"))
        rows: list[CallRow] = []
        paid: dict[str, Paid] = {}
        for path in old:
            found, replies = _read(path)
            rows += found
            paid |= replies
        if rows:
            self._keep(rows)
        become, oldest = self._become_rows(paid), time.time() - UNASKED_SECONDS
        paid = {key: each for key, each in paid.items() if request_of(key) not in become and each[1] > oldest}
        self.replies = {key: reply for key, (reply, _) in paid.items()}
        self._segment = self._start(paid)
        for path in old:
            path.unlink()

    def _become_rows(self, keys: Iterable[str]) -> Set[str]:
        """The requests that have become rows; none if the store cannot be read now."""
        requests = [request_of(key) for key in keys]
        with suppress(PipelineError):
            return self._known(requests) if self._known and requests else frozenset()
        return frozenset()

    def _start(self, paid: Mapping[str, Paid]) -> _Segment:
        """A new file that begins with replies from old ones; durable on return."""
        assert self._directory
        segment = _Segment(self._directory)
        self._write(segment, ["log", self._about])
        for key, (reply, at) in paid.items():
            segment.replies.add(key)
            self._write(segment, ["reply", key, _reply_data(reply), at])
        os.fsync(segment.file)
        return segment

    def _rotate(self) -> None:
        """Continue in a new file; drop old ones whose replies were all handed out a while ago."""
        assert self._segment
        self._old.append(self._segment)
        self._segment = self._start({})
        past = time.monotonic() - KEPT_SECONDS
        for segment in list(self._old):
            if segment.open or any(self._handed.get(request_of(key), past + 1) > past for key in segment.replies):
                continue
            self._keep([_row(call, self._about) for call in segment.calls])
            segment.close()
            segment.path.unlink()
            self._old.remove(segment)
            for key in segment.replies:
                self._handed.pop(request_of(key), None)

    def _write(self, segment: _Segment, line: list[Any]) -> None:
        with disk_errors(segment.path):
            segment.size += os.write(segment.file, f"{_ENCODE(line)}\n".encode())

    def _sync(self, segment: _Segment) -> None:
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fdatasync(segment.file)
            self._synced = time.monotonic()


class _Segment:
    """One file of the log: its finished calls, the ids of its running calls, the keys of its replies."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f"{time.time_ns():020d}.jsonl"
        with disk_errors(self.path):
            self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644)
            fsync_directory(directory)
        self.size = 0
        self.open: set[str] = set()
        self.calls: list[Call] = []
        self.replies: set[str] = set()

    def close(self) -> None:
        os.close(self.file)


def part_key(key: str, part: int) -> str:
    """The key of the call for part ``part`` (from 0) of the response to the request ``key``."""
    return f"{key}{PART}{part}" if part else key


def logged(directory: Path) -> list[CallRow]:
    """The rows of all calls in a log that a killed run has left, or that a run is writing."""
    rows: list[CallRow] = []
    for path in directory.glob("*.jsonl"):
        with suppress(FileNotFoundError):  # its rows have just been kept
            rows += _read(path)[0]
    return rows


def request_of(key: str) -> str:
    return key.partition(PART)[0]


def _lines(path: Path) -> Iterator[list[Any]]:
    """The lines of a log, without those that a power failure cut short or a disk damaged."""
    with open(path, "rb") as file:
        for line in file:
            try:
                data = json.loads(line)
            except ValueError:
                continue
            if isinstance(data, list):
                yield data


def _read(path: Path) -> tuple[list[CallRow], dict[str, Paid]]:
    """The rows of the calls in one file of a log, and the replies in it."""
    about: dict[str, str] = {}
    calls: dict[str, Call] = {}
    paid: dict[str, Paid] = {}
    for kind, *data in _lines(path):
        if kind == "log":
            about = data[0]
        elif kind == "reply":
            paid[data[0]] = _reply(data[1]), data[2]
        elif kind == "call":
            calls[data[0]] = Call(data[0], data[1], _bill(data[2:6]), over=path.stat().st_mtime)
        elif kind == "over" and data[0] in calls:
            call, (outcome, *bill, seconds, over, reply) = calls[data[0]], data[1:]
            call.outcome, call.bill, call.seconds, call.over = CallEnd(outcome), _bill(bill), seconds, over
            if reply:
                paid[call.key] = _reply(reply), over
    return [_row(call, about) for call in calls.values()], paid


def _row(call: Call, about: Mapping[str, str]) -> CallRow:
    return {
        **about,
        "call_id": call.id,
        "request_key": request_of(call.key),
        "outcome": str(call.outcome),
        "prompt_tokens": call.bill.prompt_tokens,
        "cached_tokens": call.bill.cached_tokens,
        "tokens": call.bill.tokens,
        "cost": call.bill.cost,
        "seconds": call.seconds,
        "created": datetime.fromtimestamp(call.over or time.time(), UTC),
    }


def _plain(bill: Bill) -> list[Any]:
    return [bill.prompt_tokens, bill.cached_tokens, bill.tokens, str(bill.cost)]


def _bill(data: Sequence[Any]) -> Bill:
    return Bill(data[0], data[1], data[2], Decimal(data[3]))


def _reply_data(reply: Reply) -> list[Any]:
    return [reply.thinking, reply.answer, str(reply.finish), *_plain(reply.bill), reply.thinking_tokens, reply.seconds]


def _reply(data: Sequence[Any]) -> Reply:
    return replace(Reply(data[0], data[1], Finish(data[2]), _bill(data[3:7])), thinking_tokens=data[7], seconds=data[8])
