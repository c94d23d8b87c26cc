"""Backend `unsafe`: limits on the process and nothing else. It must be requested by name.

A candidate can read and write what the user can, reach the network, and kill the verifier. It exists for machines that
are a sandbox themselves. It is refused for root, and recorded in every verdict.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from .first import be_first, leave_charge, supervise, take_charge
from .kernel import die_with_parent

fork = os.fork


def launch(job: dict[str, Any]) -> NoReturn:
    if os.geteuid() == 0:
        raise OSError("'unsafe' is refused for root: a candidate would own the machine")
    take_charge()
    launcher, box = os.getpid(), os.fork()
    if box:
        supervise(box)
    leave_charge()
    die_with_parent()
    if os.getppid() != launcher:
        os._exit(1)
    os.chdir("/tmp")
    be_first(job, None)
