"""A training that is killed at random moments, beside one that is left alone, both `forked`."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command import forked

Work = Callable[[Path], tuple[int, Any]]
"""A training in a directory: the step from which it went on, and the weights that it ended with."""


def killed_and_straight(root: Path, work: Work, kills: int, latest: float) -> tuple[Any, Any]:
    """What ``work``, a function of a module, came to in the end, and what it comes to if nobody kills it. ``latest``:
    the share of its time after which it is killed at the latest."""
    import torch

    forked(_kill, root, work, kills, latest).join()
    return torch.load(root / "killed.pt"), torch.load(root / "straight.pt")


def _kill(root: Path, work: Work, kills: int, latest: float) -> None:
    started = time.monotonic()
    _child(root / "straight", work)
    whole = time.monotonic() - started
    for kill in range(kills):
        _child(root / "killed", work, whole * random.Random(kill).uniform(0.1, latest))
    _child(root / "killed", work)


def _child(place: Path, work: Work, seconds: float | None = None) -> None:
    import torch

    process = os.fork()
    if process == 0:
        try:
            torch.save(work(place), place.with_suffix(".pt"))
        finally:
            os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
