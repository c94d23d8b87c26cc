"""The command line as a process group of its own, to be read from and to be killed whole.

Half of what a short run takes is importing torch, transformers, peft and our own stages. So each process is forked
from one that has done that (`forked`), once for all of a test process. A test of how a command starts, what it imports
or what libraries read of the environment while they are imported starts ``python -m distill`` itself.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import Pipe, forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
PATH = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["forked"])


def forked(target: Callable[..., object], *arguments: object) -> Any:
    """A process that calls ``target``, begun, with all that `forked` has imported."""
    with patch.dict(os.environ, PYTHONPATH=PATH):
        forkserver.ensure_running()
    process = FORKS.Process(target=target, args=arguments)
    process.start()
    return process


class Command:
    """``distill ARGUMENTS`` in a directory, begun: as `subprocess.Popen` has it, whose names these are. ``first`` is
    called there before: a function of a module, or an instance of a class of one."""

    def __init__(self, directory: Path, *arguments: str, first: Callable[[], object] | None = None) -> None:
        reader, writer = Pipe(duplex=False)
        led, leads = Pipe(duplex=False)
        self._errors = tempfile.NamedTemporaryFile("r")  # noqa: SIM115 - for as long as the process
        environment = os.environ | {"PYTHONPATH": PATH}
        self._process = forked(_run, str(directory), arguments, environment, leads, writer, self._errors.name, first)
        leads.close()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()
        led.recv()

    @property
    def pid(self) -> int:
        assert self._process.pid
        return self._process.pid

    @property
    def returncode(self) -> int:
        assert self._process.exitcode is not None
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def communicate(self) -> tuple[str, str]:
        """What it said on stdout and stderr, when it has ended."""
        with self.stdout:
            out = self.stdout.read()
        self._process.join()
        with self._errors:
            return out, self._errors.read()

    def ended(self, code: int = 0) -> tuple[str, str]:
        """What it said, when it has ended with this exit code."""
        out, err = self.communicate()
        assert self.returncode == code, out + err
        assert "Traceback" not in err
        return out, err

    def kill(self) -> None:
        """It and all that it has started."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self.communicate()


def _run(
    directory: str,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    leads: Connection,
    out: Connection,
    err: str,
    first: Callable[[], object] | None,
) -> None:
    os.setsid()
    leads.send("a process group")
    leads.close()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    os.dup2(out.fileno(), 1)
    out.close()
    os.dup2(os.open(err, os.O_WRONLY | os.O_APPEND), 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.argv = ["distill", *arguments]
    from distill.__main__ import main

    if first is not None:
        first()
    main()
