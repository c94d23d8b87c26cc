"""In the box: run an answer as a whole program, from its standard input to its standard output.

It shuts down like an interpreter (waits for threads, runs exit functions, flushes output), but without tearing down
every module, which in a forked process costs more than most programs.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import sys
from contextlib import suppress

from .calls import RESULTS, load
from .data import described, read_all, send


def main() -> None:
    code = json.loads(read_all(3))["code"]
    os.close(3)
    random.seed(0)  # the same verdict each time for a program that uses random numbers
    status, message = 0, None
    try:
        load(code, "__main__")
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException as error:
        status, message = 1, described(error)
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        status, message = status or 1, message or described(error)
    if message is not None:
        with suppress(OSError):
            send(RESULTS, {"error": message})
    os._exit(status & 0xFF)
