"""Content hashes of plain data, files and directories: the basis of all caching and resuming.

A hash here never depends on time, position, key order or the machine. `pipeline.plan` decides what goes
into the key of a stage, `distill.keys` what goes into that of a trace.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.files import write_atomic

MUCH = 4 << 30
"""Reading at least this many bytes is announced: it takes seconds, or minutes on a slow disk."""
LENGTH = 32
"""Hex digits kept of a SHA-256: 128 bits, enough to rule out collisions in any store."""


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal data gives equal text. NaN and infinity raise ValueError."""
    return _ENCODER.encode(data)  # json.dumps would make an encoder for each of a million verdicts


def content_hash(data: Any) -> str:
    """Hash of plain data (dicts, lists, strings, numbers, booleans, None)."""
    return hashlib.sha256(canonical(data).encode("utf-8", "surrogatepass")).hexdigest()[:LENGTH]


class FileHashes:
    """Content hashes of files and directories, cached by (size, mtime, ctime, inode).

    With the cache, hashing a model of many gigabytes again costs one `stat` per file. It lies in the workspace and may
    be deleted at any time. ``note`` is called before a read that takes long.
    """

    def __init__(self, memory: Path | None = None, note: Callable[[str], None] = lambda text: None) -> None:
        self.note = note
        self._memory = memory
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        if memory is not None:
            # A missing or damaged cache only costs a re-hash.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                found = json.loads(memory.read_text()).items()
                self._known = {name: entry for name, entry in found if isinstance(entry, list)}

    def of(self, path: str | os.PathLike[str]) -> str:
        """Hash of a file, or of a directory's relative names and contents. `InputError` if it does not exist."""
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such file or directory")
        if path.is_file():
            return self.each([path], str(path))[0]
        return content_hash(sorted(self.tree(path).items()))

    def tree(self, directory: Path) -> dict[str, str]:
        """Hash of each file in a directory, by relative name."""
        files = [p for p in directory.rglob("*") if p.is_file()]
        names = [p.relative_to(directory).as_posix() for p in files]
        return dict(zip(names, self.each(files, str(directory)), strict=True))

    def each(self, files: Sequence[Path], what: str) -> list[str]:
        """Hashes of files, in their order. ``what`` names them in the message about a long read."""
        known = [self._remembered(path) for path in files]
        unread = sum(path.stat().st_size for path, value in zip(files, known, strict=True) if value is None)
        if unread >= MUCH:
            self.note(f"reading {what} for its content hash, once: {unread / (1 << 30):.1f} GiB")
        return [value or self._read(path) for path, value in zip(files, known, strict=True)]

    def _remembered(self, path: Path) -> str | None:
        known = self._known.get(str(path.resolve()))
        return str(known[-1]) if known and known[:-1] == _stamp(path) else None

    def _read(self, path: Path) -> str:
        stamp = _stamp(path)  # taken before the read, so that a change during it is noticed next time
        with open(path, "rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()[:LENGTH]
        self._known[str(path.resolve())] = [*stamp, value]
        self._changed = True
        return value

    def save(self) -> None:
        if self._memory is not None and self._changed:
            with contextlib.suppress(InputError):  # a full or read-only disk: do without the cache
                write_atomic(self._memory, json.dumps(self._known), durable=False)
            self._changed = False


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What changed between two nested pieces of data, one line per leaf: ``lora.rank: 32 -> 16``."""
    if old == new:
        return []
    before, after = _named(old), _named(new)
    if before is None or after is None or (isinstance(old, list) and len(before) != len(after)):
        return [f"{name}: {_short(old)} -> {_short(new)}"]
    keys = [*before, *(key for key in after if key not in before)]
    inside = f"{name}." if name else ""
    return [line for key in keys for line in differences(before.get(key), after.get(key), f"{inside}{key}")]


def _named(data: Any) -> Mapping[Any, Any] | None:
    return data if isinstance(data, Mapping) else dict(enumerate(data)) if isinstance(data, list) else None


def _short(value: Any) -> str:
    text = "unset" if value is None else canonical(value)
    return text if len(text) <= 60 else text[:57] + "..."
