"""A pipeline's run as a process group of its own, to be killed whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def start(directory: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "distill", "run", "--pipeline", f"{name}.yaml", "--json"],
        cwd=directory, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(directory: Path, name: str) -> str:
    """All that a run says, which ends well."""
    process = start(directory, name)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out + err


def kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
