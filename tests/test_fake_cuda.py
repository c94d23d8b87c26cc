"""The tests for a GPU, run on machines without one as far as that is possible: see `fake_cuda`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

HERE = Path(__file__).parent
# Not NF4, as bitsandbytes bypasses torch, and not several devices.
ONE_DEVICE = "(cuda or fake_cuda_checks) and not nf4"


@pytest.mark.slow
@pytest.mark.skipif(
    torch.version.cuda is not None, reason="this torch has a CUDA of its own, which no fake one can replace"
)
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here, which fake_cuda needs")
def test_the_tests_for_a_gpu_run_on_a_fake_one() -> None:
    command = [
        sys.executable, "-m", "pytest", "-p", "fake_cuda", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", ONE_DEVICE,
        HERE / "test_gpu.py", HERE / "fake_cuda_checks.py",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=HERE.parent, env=os.environ | {"PYTHONPATH": str(HERE)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
