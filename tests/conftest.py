"""What holds for the whole suite."""

import gc
import os
import signal
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

# Nothing is timed: a busy machine must fail no property.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# `make test` has more processes than cores: of torch's threads in each, those that wait would spin in the way of others.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """The same bits are promised on CPUs: a machine's GPUs are for what is marked so (`make gpu`) alone."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with what is slow come first: at the end one core would wait for the other."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


gc.disable()


def pytest_collection_finish() -> None:
    """What has been imported stays. Otherwise each full collection of garbage would look through all of it."""
    gc.collect()
    gc.freeze()
    gc.enable()


# A shell's background jobs ignore Ctrl-C, those of nohup SIGHUP, and so would all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
