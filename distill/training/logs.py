"""Training curves in common loggers: TensorBoard, trackio, Weights & Biases. Each library is imported only if its log
is asked for.

The store holds the curves (`distill.training.metrics`); a log is a copy of them to look at. A killed run continues
in the same log: the last logged step is kept beside it, and steps up to that one are not logged again. (A kill
between the two logs at most one step twice, with the same numbers; TensorBoard drops such a step by itself.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.errors import InputError
from pipeline.files import make_directory, write_atomic

Logger = Literal["tensorboard", "trackio", "wandb"]

Open = Callable[[Path, str, str, int], "Log"]
"""(directory, name of the stage, fingerprint of the run, the last logged step or 0) -> a log."""


class Log(Protocol):
    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Logs:
    """The logs of one run, in ``directory``. Steps that a log already has are not written again."""

    def __init__(self, names: Sequence[Logger], directory: Path, stage: str, run: str) -> None:
        self._directory = directory
        self._logs = {name: _open(name, directory, stage, run, _last(directory, name)) for name in dict.fromkeys(names)}
        self._written: dict[str, int] = {}

    def write(self, step: int, values: Mapping[str, float], kind: str = "") -> None:
        """Write the values of a step. ``kind`` names values that come after the step's metrics: each kind is written
        once per step, also for the start (step 0)."""
        for name, log in self._logs.items():
            marker = f"{name}.{kind}" if kind else name
            if step > self._written.setdefault(marker, _last(self._directory, marker, -1 if kind else 0)):
                log.write(step, values)
                self._written[marker] = step
                write_atomic(_marker(self._directory, marker), str(step), durable=False)

    def close(self) -> None:
        for log in self._logs.values():
            log.close()


def _marker(directory: Path, name: str) -> Path:
    return directory / f"{name}.step"


def _last(directory: Path, name: str, none: int = 0) -> int:
    with suppress(OSError, ValueError):
        return int(_marker(directory, name).read_text())
    return none


def missing(name: Logger) -> str | None:
    """The message about a library that is not installed, or None if it is. Does not import it."""
    return None if find_spec(name) else _missing(name, "no such package")


def _missing(name: Logger, why: object) -> str:
    return f"log_to: {name} is not installed ({why}); pip install 'distill-reasoning[{name}]', or leave it out"


def _open(name: Logger, directory: Path, stage: str, run: str, last: int) -> Log:
    make_directory(directory)
    try:
        return OPEN[name](directory, stage, run, last)
    except ImportError as error:
        raise InputError(_missing(name, error)) from None


class _TensorBoard:
    def __init__(self, directory: Path, stage: str, run: str, last: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=last + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Run:
    """A run of wandb, or of trackio, which has the same interface."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with _prints_aside():
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        with _prints_aside():
            self._run.finish()


def _prints_aside() -> redirect_stdout[Any]:
    """What a library prints goes to stderr: on stdout are the run's own lines, with `--json` for a program to read."""
    return redirect_stdout(sys.stderr)


def _trackio(directory: Path, stage: str, run: str, last: int) -> Log:
    import trackio

    with _prints_aside():
        trackio.init(project="distill", name=f"{stage}-{run[:12]}", resume="allow")
    return _Run(trackio)


def _wandb(directory: Path, stage: str, run: str, last: int) -> Log:
    import wandb

    return _Run(
        wandb.init(project="distill", name=stage, id=run[:12], resume="allow", dir=str(directory), reinit="create_new")
    )


OPEN: Mapping[Logger, Open] = {"tensorboard": _TensorBoard, "trackio": _trackio, "wandb": _wandb}
