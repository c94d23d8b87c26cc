"""Verifiers that misbehave on request, for the pool's tests; named there as "hostile_verifiers:Hostile". `QuickMath` runs
the quick part of `math` where the pool can end it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers import build
from distill.verifiers.run import judge_quickly


class Hostile:
    name = "hostile"
    version = "1"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        answer = trace.answer
        if answer == "spin":
            while True:
                pass
        if answer == "spin in C":
            return Verdict.correct(str(len(str(9 ** (9**9)))))
        if answer == "sleep":
            time.sleep(1e6)
        if answer.startswith("sleep after "):
            Path(answer.removeprefix("sleep after ")).touch()
            time.sleep(1e6)
        if answer.startswith("wait for "):
            while not Path(answer.removeprefix("wait for ")).exists():
                time.sleep(0.02)
        if answer == "memory":
            return Verdict.correct(str(len(b"x" * (1 << 42))))
        if answer == "grow":  # too slowly to reach the limit in the time that there is
            pages, began = list[bytes](), time.process_time()
            while True:
                pages.append(b"x" * (1 << 20))
                while time.process_time() < began + len(pages) / 100:
                    pass
        if answer == "hold":
            held = b"x" * (200 << 20)
            while held:
                pass
        if answer == "exit":
            os._exit(3)
        if answer == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if answer == "die namelessly":
            os.kill(os.getpid(), signal.SIGRTMIN + 6)
        if answer == "raise":
            raise ValueError("no")
        if answer == "print":
            print("noise")
            print("noise", file=sys.stderr)
            os.write(1, b"noise")
        if answer == "pid":
            return Verdict.correct(str(os.getpid()))
        if answer == "nonsense":
            return True  # type: ignore[return-value]
        if answer == "odd evidence":
            return Verdict.correct("odd", nan=float("nan"), huge=10**5000, set={1}, nested=({1: float("inf")},))
        return Verdict.correct("fine")


class QuickMath:
    name = "quick_math"
    version = "1"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        judge_quickly(build("math"), problem, trace)
        return Verdict.unverifiable("the quick part ended")
