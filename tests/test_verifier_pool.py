"""The pool: what a verifier does costs at most one verdict, and the order or number of workers nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distill.types import Outcome, Problem, Verdict
from distill.verifiers import VerifierPool, build, judge
from distill.verifiers.worker import Limits
from pipeline.errors import InputError, PipelineError

HOSTILE = "hostile_verifiers:Hostile"
PROBLEM = Problem("p", "?", "42", "math", "test")


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=2, limits=Limits(cpu_seconds=0.5, wall_seconds=3.0)) as pool:
        yield pool


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("spin", "0.5 s of CPU time"),
        ("spin in C", "0.5 s of CPU time"),
        ("sleep", "wall time"),
        ("memory", "out of memory"),
        ("exit", "status 3"),
        ("die", "SIGSEGV"),
        ("raise", "ValueError: no"),
    ],
)
def test_misbehaviour_costs_one_verdict(pool: VerifierPool, act: str, reason: str) -> None:
    items = [(i, HOSTILE, PROBLEM, act if i == 5 else "fine") for i in range(12)]
    verdicts = dict(pool.verify_many(items))
    assert verdicts.keys() == set(range(12))
    lost = verdicts.pop(5)
    assert lost.outcome is Outcome.UNVERIFIABLE and reason in lost.reason and lost.score is None
    assert (lost.verifier, lost.version) == ("hostile", "1")
    assert all(verdict.outcome is Outcome.CORRECT for verdict in verdicts.values())


def test_nothing_but_misbehaviour(pool: VerifierPool) -> None:
    items = [(i, HOSTILE, PROBLEM, act) for i, act in enumerate(["exit", "die", "raise", "memory"] * 5)]
    verdicts = dict(pool.verify_many(items))
    assert len(verdicts) == 20 and {v.outcome for v in verdicts.values()} == {Outcome.UNVERIFIABLE}


def mixed() -> list[tuple[int, str, Problem, str]]:
    references = ["42", r"\sqrt{12}", "1/3", r"\text{red}", "", "x+1"]
    answers = ["42", r"\boxed{2\sqrt{3}}", "0.33", "red", r"\boxed{\frac{1}{3}}", "1+x"]
    pairs = [(r, a) for r in references for a in answers]
    return [(i, "math", replace(PROBLEM, reference=r), a) for i, (r, a) in enumerate(pairs)]


def unhurried(verdict: Verdict) -> Verdict:
    return replace(verdict, seconds=0.0)


def test_verdicts_depend_neither_on_order_nor_on_the_workers(pool: VerifierPool) -> None:
    pytest.importorskip("math_verify")
    items = mixed()
    alone = {key: unhurried(judge(build(spec), problem, answer)) for key, spec, problem, answer in items}
    with VerifierPool(workers=1) as single:
        ones = {key: unhurried(verdict) for key, verdict in single.verify_many(items)}
    with VerifierPool(workers=2) as double:
        twos = {key: unhurried(verdict) for key, verdict in double.verify_many(reversed(items))}
    assert ones == twos == alone


def test_items_are_not_read_far_ahead() -> None:
    read = 0

    def items() -> Iterator[tuple[int, str, Problem, str]]:
        nonlocal read
        for read in range(1, 5001):
            yield read, HOSTILE, PROBLEM, "fine"

    with VerifierPool(workers=1) as pool:
        verdicts = pool.verify_many(items())
        next(verdicts)
        assert read <= 200
        assert 1 + sum(1 for _ in verdicts) == 5000


def test_several_threads_share_a_pool(pool: VerifierPool) -> None:
    counts: list[int] = []

    def work(name: int) -> None:
        keys = [key for key, _ in pool.verify_many(((name, i), HOSTILE, PROBLEM, "fine") for i in range(50))]
        counts.append(len({key for key in keys if key[0] == name}))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [50] * 4


def test_a_caller_may_stop_early(pool: VerifierPool) -> None:
    verdicts = pool.verify_many((i, HOSTILE, PROBLEM, "fine") for i in range(1000))
    next(verdicts)
    verdicts.close()
    assert pool.verify(HOSTILE, PROBLEM, "fine").outcome is Outcome.CORRECT


def test_a_wrong_name_is_an_input_error(pool: VerifierPool) -> None:
    with pytest.raises(InputError, match="did you mean 'math'"):
        pool.verify("maths", PROBLEM, "42")


def test_a_closed_pool_says_so() -> None:
    pool = VerifierPool(workers=1)
    pool.verify(HOSTILE, PROBLEM, "fine")
    pool.close()
    with pytest.raises(PipelineError, match="closed"):
        pool.verify(HOSTILE, PROBLEM, "fine")


def test_what_a_verifier_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    with VerifierPool(workers=1) as pool:
        pool.verify(HOSTILE, PROBLEM, "print")
    assert capfd.readouterr() == ("", "")


ORPHANS = """
import sys
from distill.types import Problem
from distill.verifiers import VerifierPool
pool = VerifierPool(workers=1)
problem = Problem("p", "?", "42", "math", "test")
print(pool.verify("hostile_verifiers:Hostile", problem, "pid").reason, flush=True)
pool.verify("hostile_verifiers:Hostile", problem, "sleep")
"""


def start_and_hang() -> tuple[subprocess.Popen[str], int]:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), str(here)])
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout
    return parent, int(parent.stdout.readline())


def gone(pid: int) -> bool:
    """Has a process ended? Waits for it, through a descriptor of its own."""
    import select

    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 30.0)[0])
    finally:
        os.close(descriptor)


def test_workers_die_with_a_killed_parent() -> None:
    parent, worker = start_and_hang()
    parent.kill()
    parent.communicate()
    assert gone(worker)


def test_ctrl_c_leaves_one_traceback_and_no_worker() -> None:
    parent, worker = start_and_hang()
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=30)
    assert errors.count("Traceback") == 1 and gone(worker)
