"""The output of `distill verify`: stdout, or a file that gets its name once it is complete.

Every line is flushed at once, because the next one may take long and the command may be killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pipeline.errors import Busy, Exit, InputError
from pipeline.files import TEMPORARY, disk_errors, fsync_directory, make_directory


class Rows(Protocol):
    def kept(self) -> Iterator[dict[str, Any]]:
        """The lines that an earlier, stopped attempt left. Call it once, before writing anything."""

    def write(self, line: str) -> None: ...

    def complete(self) -> None: ...


class Stdout:
    """Writes to stdout. If the reader goes away (`| head`), the command ends silently and with success."""

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Stdout]:
        if sys.stdout is None:
            raise InputError("stdout is closed; the verdicts have nowhere to go, name a file with --output")
        lines = cls()
        try:
            try:
                yield lines
            finally:
                lines.complete()
        except BrokenPipeError:
            # Otherwise Python would flush its buffer at exit and print an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(Exit.DONE)

    def kept(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def write(self, line: str) -> None:
        sys.stdout.buffer.write(encoded(line))
        sys.stdout.buffer.flush()

    def complete(self) -> None:
        sys.stdout.buffer.flush()


class Output:
    """Writes ``path``, first under a temporary name beside it. That name contains ``identity``, a hash of everything
    that the lines depend on."""

    def __init__(self, path: Path, file: BinaryIO, temporary: Path) -> None:
        self._path, self._file, self._temporary = path, file, temporary

    @classmethod
    @contextmanager
    def open(cls, path: Path, identity: str) -> Iterator[Output]:
        if path.is_symlink() or (path.exists() and not path.is_file()) or not path.name:
            kind = "a link" if path.is_symlink() else "a directory" if path.is_dir() else "no regular file"
            raise InputError(f"--output {path}: is {kind}; name a file, or leave it out and redirect stdout")
        make_directory(path.parent)
        temporary = path.with_name(f"{TEMPORARY}{path.name}-{identity}")
        with disk_errors(path), open(temporary, "ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"{path}: another process is writing it; wait for it to end") from None
            yield cls(path, file, temporary)

    def kept(self) -> Iterator[dict[str, Any]]:
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            yield json.loads(line)
        self._file.truncate(whole)

    def write(self, line: str) -> None:
        self._file.write(encoded(line))
        self._file.flush()

    def complete(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._temporary, self._path)
        fsync_directory(self._path.parent)


def encoded(line: str) -> bytes:
    """The line in UTF-8. A lone surrogate, which UTF-8 cannot encode, becomes a JSON escape."""
    return f"{line}\n".encode("utf-8", "backslashreplace")
