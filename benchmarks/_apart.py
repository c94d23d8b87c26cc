"""Run a measurement in a separate process, on a CPU or a GPU: seconds between marks, and peak memory.

On a CPU these are CPU-seconds of the process and its resident memory. On a GPU they are wall-clock seconds, taken after
the GPU has finished its work, and the memory that torch has allocated there.

On a CPU the process is forked from this one, which saves the imports. CUDA cannot be used in a forked child of a
process that has touched it, so for a GPU the process is spawned. Either way it begins with a small run that is not
measured.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

SECOND = {"cpu": "CPU-second", "cuda": "second"}


class NotMeasured(Exception):
    """The reason in one line."""


@dataclass(frozen=True)
class Place:
    """The device to measure on, and how its processes are started."""

    device: Literal["cpu", "cuda"]
    start: Literal["fork", "spawn"]


def find_place(asked: str | None, spawn: bool = False) -> Place:
    """``asked`` (cpu or cuda), by default CUDA if there is a GPU. Exits with 2 if the device asked for does not exist.

    Only the first of several GPUs is made visible, because transformers' Trainer would split a batch over all of them.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    cuda = asked != "cpu" and torch.cuda.is_available()
    if asked == "cuda" and not cuda:
        print(f"--device cuda: torch {torch.__version__} sees no GPU here; try --device cpu", file=sys.stderr)
        sys.exit(2)
    return Place("cuda" if cuda else "cpu", "spawn" if cuda or spawn else "fork")


def machine(place: Place) -> str:
    """The device's name and torch's version. Call it last, because it touches CUDA."""
    if place.device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU") + ", one thread"
    return f"{name}, torch {torch.__version__}"


class Clock:
    """Seconds between marks."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        self._marks = [self._now()]

    def __call__(self, *_: Any) -> None:
        self._marks.append(self._now())

    @property
    def steps(self) -> list[float]:
        return [after - before for before, after in zip(self._marks, self._marks[1:], strict=False)]

    def _now(self) -> float:
        if self._device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def apart(
    place: Place, run: Callable[..., list[float]], arguments: Sequence[Any], warm: Sequence[Any]
) -> tuple[list[float], float]:
    """The result of ``run(*arguments)`` in a separate process, and its peak memory above the starting level, in MB.

    The process first calls ``run(*warm)``, so that neither figure includes imports and first calls. Raises
    `NotMeasured` if the run fails or its process ends.
    """
    context = multiprocessing.get_context(place.start)
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, place.device, run, tuple(arguments), tuple(warm)))
    process.start()
    theirs.close()
    try:
        measured = ours.recv()
    except EOFError:
        process.join()
        raise NotMeasured(f"its process ended with exit code {process.exitcode}") from None
    process.join()
    if isinstance(measured, str):
        raise NotMeasured(measured)
    return measured


def _child(pipe: Any, device: str, run: Callable[..., list[float]], arguments: Any, warm: Any) -> None:
    torch.set_num_threads(1)
    try:
        run(*warm)
        before = _settled(device)
        found = run(*arguments)
        pipe.send((found, _peak(device) - before))
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def _settled(device: str) -> float:
    """The memory in use, in MB. Also resets the peak."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _resident("VmHWM")


def _resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
