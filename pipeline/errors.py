"""Exit codes, and the exceptions that carry them to the command line.

One code per outcome, so that cron, Slurm and Kubernetes can act on it. Nothing else in the project
calls `sys.exit`.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    DONE = 0
    FAILED = 1  # a stage failed
    INPUT = 2  # the input is wrong: the message says what, where and what to do
    CAP = 3  # a cap on money or tokens was reached; what was made is kept
    AGAIN = 75  # stopped on request (SIGTERM, Ctrl-C, --max-time) or workspace in use: run the same command again


class PipelineError(Exception):
    """A failure whose message is one clear line for the user, with no traceback."""

    exit_code: Exit = Exit.FAILED


class InputError(PipelineError):
    """The user's input is wrong. Say what is wrong, where (file, line, key) and what to do."""

    exit_code = Exit.INPUT


class CapReached(PipelineError):
    exit_code = Exit.CAP


class Busy(PipelineError):
    """Another process uses what this one needs; running again later works."""

    exit_code = Exit.AGAIN


class Stopped(PipelineError):
    """The run was asked to stop and did so cleanly; running again continues from here."""

    exit_code = Exit.AGAIN
