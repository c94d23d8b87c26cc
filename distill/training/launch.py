"""Who the ranks of a training are: processes that torchrun started, or that the run itself starts.

Those that the run started are watched, and end with it, as it does with them; under torchrun its agent kills the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from distill.training.ranks import FOREVER, Ranks, gone
from pipeline.errors import InputError, PipelineError
from pipeline.forking import leave_to_parent, spawn

GRACE = 5.0
"""Seconds in which the run is to notice by itself that a rank is gone; then it is ended."""


def launched() -> int | None:
    """This process's rank, if torchrun started it as one of several."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_PORT" in os.environ
    return int(os.environ["RANK"]) if several else None


@cache
def joined() -> Ranks:
    """The ranks that torchrun, or another rank 0, made this process one of."""
    store, rank, size = next(rendezvous("env://", timeout=FOREVER))
    return Ranks(store, rank, size, int(os.environ.get("LOCAL_RANK", "0")))


def serve() -> None:
    """The life of a rank above 0, until rank 0 ends it or is gone. Signals are for rank 0 to heed."""
    from distill.pretrained import hush
    from distill.training.session import follow

    hush()
    leave_to_parent()
    ranks = joined()
    while (opening := ranks.told()) is not None:
        follow(ranks, **opening)
    ranks.close()


@contextmanager
def run_of_several() -> Iterator[bool]:
    """Around a command under torchrun: whether this process is to do what it says. The others serve."""
    if launched():
        serve()
        yield False
        return
    if launched() is None:
        yield True
        return
    try:
        yield True
    finally:
        joined().dismiss()
        joined().close()


@contextmanager
def assembled(devices: int) -> Iterator[Ranks | None]:
    """The ranks of one training: torchrun's, or as many processes as there are to be ``devices``, or none."""
    if launched() is not None:
        if not joined.cache_info().currsize:
            _check_alone()
        yield joined()
        return
    visible = torch.cuda.device_count()
    if visible and devices > visible:
        raise InputError(f"devices: {devices} asked for, but {visible} GPU(s) can be seen here")
    if devices < 2:
        yield None
        return
    _check_alone()
    store = dist.TCPStore("127.0.0.1", 0, devices, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    children = [_child(rank, devices, store.port) for rank in range(1, devices)]
    over = threading.Event()
    for rank, child in enumerate(children, start=1):
        threading.Thread(target=_watch, args=(rank, child, over), daemon=True).start()
    ranks = Ranks(store, 0, devices, 0)
    try:
        yield ranks
        over.set()
        ranks.dismiss()
    finally:
        over.set()
        ranks.close()
        for child in children:
            child.kill()
            child.communicate()


def _check_alone() -> None:
    """torch has one default group a process, and vLLM makes it its own while it is open, on a single device too."""
    if dist.is_initialized():
        raise InputError(
            "several devices cannot train beside a vllm in the same process, which has torch's process group: set "
            "data_parallel: 1 of that engine, which gives it a process of its own"
        )


def _child(rank: int, size: int, port: int) -> subprocess.Popen[bytes]:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    environment = os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return spawn("distill.training.launch", (), environment, stdin=subprocess.PIPE)


def _watch(rank: int, child: subprocess.Popen[bytes], over: threading.Event) -> None:
    """End the run when a rank that it started is gone, be it inside a call that waits for it."""
    code = child.wait()
    if not over.wait(GRACE):
        print(f"distill: {gone(f'rank {rank} ended with exit code {code}')}", file=sys.stderr, flush=True)
        os._exit(1)


def _orphaned() -> None:
    """End this rank when the run that started it is gone: then its stdin ends."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    threading.Thread(target=_orphaned, daemon=True).start()
    with suppress(PipelineError):  # it is for rank 0, or torchrun, to say who was lost
        serve()


if __name__ == "__main__":
    main()
