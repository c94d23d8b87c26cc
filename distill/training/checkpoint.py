"""Checkpoints that are whole or absent: temporary directory, fsync, marker last, rename.

A checkpoint is one torch file of plain tensors and numbers plus ``COMPLETE``, a JSON marker that
names the run it belongs to. Whatever is torn (SIGKILL, full disk) is ignored and cleaned up later.
What is in it is the trainer's business.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from pipeline.errors import InputError

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
    with (temporary / _STATE).open("wb") as file:
        torch.save(state, file)
        _sync(file)
    with (temporary / _MARKER).open("w") as file:
        json.dump({"step": step, "run": run}, file)
        _sync(file)
    _sync_directory(temporary)
    temporary.rename(final)
    _sync_directory(directory)
    for old in _complete(directory)[:-KEEP]:
        shutil.rmtree(_path(directory, old), ignore_errors=True)


def latest(directory: Path, run: str, device: torch.device | str = "cpu") -> tuple[int, dict[str, Any]] | None:
    """(step, state) of the newest complete checkpoint, or None. One of another run is an InputError;
    one that a failing disk has damaged is passed over for the one before it."""
    for step in reversed(_complete(directory)):
        path = _path(directory, step)
        try:
            owner = json.loads((path / _MARKER).read_text())["run"]
            state = torch.load(path / _STATE, map_location=device, weights_only=True)
        except (ValueError, KeyError, EOFError, UnpicklingError):
            continue
        except RuntimeError as error:
            if "PytorchStreamReader" not in str(error):  # out of memory, say: not the file's fault
                raise
            continue
        if owner != run:
            raise InputError(f"{directory} holds checkpoints of another run: give each run a directory of its own")
        return step, state
    return None


def _path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def _complete(directory: Path) -> list[int]:
    return sorted(int(marker.parent.name.split("-")[1]) for marker in directory.glob(f"step-*/{_MARKER}"))


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
