"""The date before a line of a run, for logs: a scheduler appends many runs to one file.

Lines on stdout that have one: `distill.cli.display`. What failed, on stderr, is for a program or a person who watches,
and has none, unless both are one log (``>> night.log 2>&1``).
"""

from __future__ import annotations

import os
import sys
import time


def dated(text: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}"


def in_one_log() -> bool:
    """Whether stdout and stderr go to one file, pipe or socket, which is no terminal."""
    try:
        out, err = sys.stdout.fileno(), sys.stderr.fileno()
        return os.path.sameopenfile(out, err) and not os.isatty(err)
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed
        return False
