"""Dates in logs, because schedulers append many runs to one file.

`distill.cli.display` decides which lines on stdout have a date. Errors on stderr have one only if stdout and stderr go
to one log (``>> night.log 2>&1``); otherwise a person or a program reads them.
"""

from __future__ import annotations

import os
import sys
import time


def dated(text: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}"


def in_one_log() -> bool:
    """Whether stdout and stderr go to the same file, pipe or socket, and it is not a terminal."""
    try:
        out, err = sys.stdout.fileno(), sys.stderr.fileno()
        return os.path.sameopenfile(out, err) and not os.isatty(err)
    except (AttributeError, OSError, ValueError):  # a stream is missing or closed
        return False
