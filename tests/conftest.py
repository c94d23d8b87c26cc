"""What holds for the whole suite."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# Nothing is timed: a busy machine must fail no property.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """The same bits are promised on CPUs: a machine's GPUs are for what is marked so (`make gpu`) alone."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


# A shell's background jobs ignore Ctrl-C, those of nohup SIGHUP, and so would all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
