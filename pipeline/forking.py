"""Child processes that compute for this one: how they handle signals, and how they die with their parent.

Ctrl-C and a closing terminal reach every process of the terminal's group, and timeout, Slurm or systemd send SIGTERM to
every process of a job. The parent handles these signals and stops cleanly, for which it needs its children. So the
children ignore the signals, and are killed when the parent is done with them or ends.

If the parent dies suddenly (SIGKILL, out of memory), the kernel kills the forked children, because one that computes or
hangs in a library looks at no pipe. Each has a pipe whose other end the parent holds, and asks for a SIGKILL when that
end closes (fcntl(2), F_SETSIG; Linux). PR_SET_PDEATHSIG will not do: it fires when the *thread* that forked ends, and a
judge's engine is opened in a separate thread. Nor will a thread that waits for the parent: it could not run while a
library holds the interpreter's lock. A child forked later also holds the ends of those before it, and dies first.
Two that held each other's would both live on, so only one thread forks at a time.

Some kernels and sandboxes refuse F_SETSIG (a seccomp profile, a kernel that is not Linux itself). A child then watches
the pipe with a thread after all: it needs nothing but the pipe, whichever thread forked, and misses only a child that
hangs with the interpreter's lock held.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from pipeline.errors import PipelineError
from pipeline.stopping import STOP_SIGNALS

_forking = threading.Lock()


@contextmanager
def held_back() -> Iterator[None]:
    """Block the signals in `STOP_SIGNALS` for a process that is started here, until it has set its own handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent(offspring: bool = False) -> None:
    """For a child, forked or spawned: ignore `STOP_SIGNALS`, which the parent handles. With ``offspring`` they also
    stay blocked, which the child's own children inherit: these then get none, even if they set handlers."""
    if offspring:
        resource_tracker.ensure_running()  # it unblocks some signals when it starts, with the first shared memory
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK if offspring else signal.SIG_UNBLOCK, STOP_SIGNALS)


def fork(work: Callable[..., None], arguments: Sequence[Any]) -> BaseProcess:
    """Start a child that runs ``work(*arguments)`` and dies with this process, however that ends."""
    with _forking:
        theirs, ours = os.pipe()
        given = (theirs, ours, work, *arguments)
        child = multiprocessing.get_context("fork").Process(target=_child, args=given, daemon=True)
        try:
            with held_back():  # else the parent's handlers could run in the child
                child.start()
        except BaseException:  # no process or memory is left
            os.close(ours)
            raise
        finally:
            os.close(theirs)
    weakref.finalize(child, os.close, ours)
    Finalize(None, _kill, (weakref.ref(child),), exitpriority=0)  # else the interpreter's end would wait for it
    return child


def _kill(reference: weakref.ReferenceType[BaseProcess]) -> None:
    child = reference()
    if child is not None:
        child.kill()


def _child(parent: int, parents_end: int, work: Callable[..., None], *arguments: Any) -> None:
    _forking.release()  # the copy of a lock that the parent's thread holds
    os.close(parents_end)
    leave_to_parent()
    _end_with(parent)
    work(*arguments)


def _end_with(pipe: int) -> None:
    """Have this process killed when the other end of a pipe is closed; end now if it is already."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError:
        threading.Thread(target=_watch, args=(pipe,), daemon=True).start()
    look = select.poll()
    look.register(pipe)
    if look.poll(0):
        os._exit(0)


def _watch(pipe: int) -> None:
    os.read(pipe, 1)  # nobody writes, so it returns at the end of the pipe
    os.kill(os.getpid(), signal.SIGKILL)


class ForkedWorker:
    """A forked process that answers over a pipe. ``work`` gets the other end of ``pipe``, and runs until the parent is
    gone or closes this. Errors name the process, and say what to do (``advice``)."""

    def __init__(
        self, name: str, advice: str, work: Callable[[Connection], None], others: Sequence[ForkedWorker]
    ) -> None:
        self._name, self._advice = name, advice
        self.pipe, theirs = multiprocessing.Pipe()
        inherited = [self.pipe, *(other.pipe for other in others)]
        self._process = fork(_serve, (name, work, theirs, inherited))
        theirs.close()

    def send(self, message: Any) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            raise self._died() from None

    def receive(self) -> Any:
        """The next message; raises the error that ended the process, if it did."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(message, PipelineError):
            raise message
        return message

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()

    def _died(self) -> PipelineError:
        self._process.join(1)
        return PipelineError(f"{self._name} {ended(self._process.exitcode)}; {self._advice}")


def _serve(name: str, work: Callable[[Connection], None], pipe: Connection, inherited: Sequence[Connection]) -> None:
    """A worker's life, from fork to exit."""
    for other in inherited:  # else this process would keep its siblings' pipes open when the parent dies
        other.close()
    try:
        work(pipe)
    except EOFError:
        pass  # the parent is gone
    except Exception as error:
        with suppress(OSError):
            pipe.send(PipelineError(f"{name} failed: {type(error).__name__}: {error}"))
    finally:
        os._exit(0)


def spawn(module: str, arguments: Iterable[str], environment: Mapping[str, str], **how: Any) -> subprocess.Popen[bytes]:
    """Start a child that runs ``python -m module`` and can import what this process can. It imports nothing from the
    working directory unless this process would (``-P``). It must `leave_to_parent`."""
    paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with held_back():  # it imports for seconds before it can set its signal handlers
        return subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], env={**environment, **paths}, **how)


def ended(code: int | None) -> str:
    """How a child ended, by its exit code: "was killed by SIGKILL (out of memory?)"."""
    if not code or code > 0:
        return f"ended with exit code {code}"
    why = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{why}"
