"""Checkpoints that are either whole or absent: temporary directory, fsync, marker last, rename.

A checkpoint is one torch file of plain tensors and numbers plus ``COMPLETE``, a JSON marker with the run
that it belongs to and the hash of that file. A torn (SIGKILL, full disk) or damaged checkpoint (a failing
disk, down to one flipped bit) counts as absent: it is deleted, and the one before it is used.
The trainer decides what a checkpoint holds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.files import disk_errors, publish_directory

KEEP = 2
_MARKER = "COMPLETE"
_STATE = "state.pt"


def save(directory: Path, step: int, run: str, state: dict[str, Any]) -> None:
    """Write the state after ``step`` updates of the run called ``run``; keep the last two."""
    directory.mkdir(parents=True, exist_ok=True)
    final = _path(directory, step)
    if (final / _MARKER).exists():
        return
    temporary = directory / f".writing-{step}"
    for leftover in (temporary, final):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    with disk_errors(directory), (temporary / _STATE).open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch hides a full disk behind its own error; the cause is its context
            met = error.__context__
            raise OSError(met.errno, met.strerror, file.name) if isinstance(met, OSError) else error from None
    with (temporary / _MARKER).open("w") as file:
        json.dump({"step": step, "run": run, "sha256": _digest(temporary / _STATE)}, file)
    publish_directory(temporary, final)
    for old in _complete(directory)[:-KEEP]:
        shutil.rmtree(_path(directory, old), ignore_errors=True)


def latest(directory: Path, run: str) -> tuple[int, dict[str, Any]] | None:
    """(step, state) of the newest whole checkpoint, or None. `InputError` if it belongs to another run.

    All tensors are on the CPU, wherever they were saved from: those of the model then go to its device, and those
    beside it stay on the CPU."""
    for step in reversed(_complete(directory)):
        path = _path(directory, step)
        if (owner := _owner(path)) is None:
            shutil.rmtree(path, ignore_errors=True)
            continue
        if owner != run:
            raise InputError(
                f"{directory} holds checkpoints of another run (other settings, or another version of distill): "
                "finish it with those, or start over with another seed or directory"
            )
        return step, torch.load(path / _STATE, map_location="cpu", weights_only=True)
    return None


def _owner(path: Path) -> str | None:
    """The run that a checkpoint belongs to, or None if the checkpoint is not whole."""
    try:
        marker = json.loads((path / _MARKER).read_text())
        return str(marker["run"]) if marker["sha256"] == _digest(path / _STATE) else None
    except (ValueError, TypeError, KeyError, FileNotFoundError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def _complete(directory: Path) -> list[int]:
    return sorted(int(marker.parent.name.split("-")[1]) for marker in directory.glob(f"step-*/{_MARKER}"))
