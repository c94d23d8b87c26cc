"""Start the ranks of a training, or join those that torchrun started.

Ranks that the run started end with it, and it ends if one of them dies. Under torchrun, its agent kills the rest.
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

from distill.training.ranks import FOREVER, Ranks, rank_lost
from pipeline.errors import InputError, PipelineError
from pipeline.forking import ended, leave_to_parent, spawn

GRACE = 5.0
"""Seconds for the run to notice by itself that a rank is gone, before it is ended."""


def launched() -> int | None:
    """This process's rank if torchrun started it as one of several, else None."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_PORT" in os.environ
    return int(os.environ["RANK"]) if several else None


@cache
def joined() -> Ranks:
    """The ranks to which torchrun, or the rank 0 that started it, assigned this process."""
    store, rank, size = next(rendezvous("env://", timeout=FOREVER))
    return Ranks(store, rank, size, int(os.environ.get("LOCAL_RANK", "0")))


def serve() -> None:
    """Run a rank above 0 until rank 0 ends it or is gone. Rank 0 handles the signals."""
    from distill.pretrained import quiet_libraries
    from distill.tensors import give_back
    from distill.training.session import follow

    quiet_libraries()
    leave_to_parent()
    ranks = joined()
    while (opening := ranks.receive()) is not None:
        follow(ranks, **opening)
        give_back()  # what runs next on this GPU may be another process: vLLM
    ranks.close()


@contextmanager
def run_of_several() -> Iterator[bool]:
    """Wraps a command: True in the process that is to run it. Under torchrun, ranks above 0 `serve`, then get False."""
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
    """The ranks of one training: torchrun's; or this process and ``devices`` - 1 that it starts; or None for one."""
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
    """Torch has one default process group, and an open vLLM occupies it, even on a single device."""
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
    """End the run if a rank that it started is gone, even while a call waits for that rank."""
    code = child.wait()
    if not over.wait(GRACE):
        print(f"distill: {rank_lost(f'rank {rank} {ended(code)}')}", file=sys.stderr, flush=True)
        os._exit(1)


def _orphaned() -> None:
    """End this rank when the run that started it is gone: its stdin then closes."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    threading.Thread(target=_orphaned, daemon=True).start()
    with suppress(PipelineError):  # rank 0, or torchrun, reports which rank was lost
        serve()


if __name__ == "__main__":
    main()
