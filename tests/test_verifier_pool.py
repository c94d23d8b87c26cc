"""The pool: a misbehaving verifier costs one verdict at most, and verdicts do not depend on order or workers."""

from __future__ import annotations

import _thread
import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.types import Outcome, Problem, Verdict
from distill.verifiers import VerifierPool, build, check, judge
from distill.verifiers.order import WINDOW, in_order
from distill.verifiers.worker import Limits
from pipeline.errors import InputError, PipelineError

HOSTILE = "hostile_verifiers:Hostile"
PROBLEM = Problem("p", "?", "42", "math", "test")


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=2, limits=Limits(cpu_seconds=0.5, wall_seconds=3.0)) as pool:
        yield pool


@pytest.mark.parametrize(
    ("act", "failure", "reason"),
    [
        ("spin", "timeout", "0.5 s of CPU time"),
        ("spin in C", "timeout", "0.5 s of CPU time"),
        ("sleep", "timeout", "wall time"),
        ("memory", "memory", "out of memory"),
        ("exit", "crash", "status 3"),
        ("die", "crash", "SIGSEGV"),
        ("die namelessly", "crash", "signal 40"),
        ("raise", "error", "ValueError: no"),
        ("nonsense", "error", "it returned bool, not a Verdict"),
    ],
)
def test_misbehaviour_costs_one_verdict(pool: VerifierPool, act: str, failure: str, reason: str) -> None:
    items = [(i, HOSTILE, PROBLEM, act if i == 5 else "fine") for i in range(12)]
    verdicts = dict(pool.verify_many(items))
    assert verdicts.keys() == set(range(12))
    lost = verdicts.pop(5)
    assert lost.outcome is Outcome.UNVERIFIABLE and reason in lost.reason and lost.score is None
    assert (lost.verifier, lost.version) == ("hostile", "1")
    assert lost.failure == lost.evidence["failure"] == failure
    assert lost.evidence["judged"] == "the text after thinking" and lost.seconds > 0
    assert all(verdict.outcome is Outcome.CORRECT for verdict in verdicts.values())


def test_a_timeout_while_memory_grows_is_reported_as_memory() -> None:
    """Unless the memory is only held all the while, which takes no time."""
    with VerifierPool(workers=2, limits=Limits(cpu_seconds=2.0, memory_bytes=1 << 29)) as pool:
        verdicts = dict(pool.verify_many((act, HOSTILE, PROBLEM, act) for act in ("grow", "hold")))
    grows, holds = verdicts["grow"], verdicts["hold"]
    assert (grows.failure, grows.reason) == ("memory", "more than 0.125 GiB of memory, and of 2 s of CPU time")
    assert (holds.failure, holds.reason) == ("timeout", "more than 2 s of CPU time")


def test_a_batch_of_misbehaving_verdicts_only_is_unverifiable(pool: VerifierPool) -> None:
    items = [(i, HOSTILE, PROBLEM, act) for i, act in enumerate(["exit", "die", "raise", "memory"] * 5)]
    verdicts = dict(pool.verify_many(items))
    assert len(verdicts) == 20 and {v.outcome for v in verdicts.values()} == {Outcome.UNVERIFIABLE}


def test_each_kind_of_failure_is_reported_once() -> None:
    notes: list[str] = []
    with VerifierPool(workers=1, note=notes.append) as pool:
        items = [(i, HOSTILE, PROBLEM, act) for i, act in enumerate(["raise", "fine", "raise", "exit", "raise"])]
        assert len(dict(pool.verify_many(items))) == 5
    raised, ended = sorted(notes)
    assert "ValueError: no (hostile_verifiers.py:" in raised and "status 3" in ended


def test_an_abstention_is_not_a_failure(pool: VerifierPool) -> None:
    verdict = pool.verify("math", "}{", "42")
    assert verdict.outcome is Outcome.UNVERIFIABLE and verdict.failure is None


def test_a_composition_fails_only_where_its_deciding_part_fails(pool: VerifierPool) -> None:
    assert pool.verify({"all": ["exact", HOSTILE]}, "raise", "raise").failure == "error"
    assert pool.verify({"any": ["exact", HOSTILE]}, "raise", "raise").failure is None


def test_evidence_that_is_not_plain_data_becomes_text(pool: VerifierPool) -> None:
    verdict = pool.verify(HOSTILE, PROBLEM, "odd evidence")
    assert json.loads(json.dumps(verdict.evidence, allow_nan=False)) == {
        "judged": "the text after thinking",
        "nan": "nan",
        "huge": "an integer of 16610 bits",
        "set": "{1}",
        "nested": [{"1": "inf"}],
    }


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


def test_a_hanging_verdict_does_not_delay_others() -> None:
    """It is cancelled at the end. If anything waited for it, this test would take until the wall limit."""
    with VerifierPool(workers=2, limits=Limits(wall_seconds=600.0)) as pool:
        list(pool.verify_many((i, HOSTILE, PROBLEM, "fine") for i in range(50)))  # quick: batches are large now
        futures = [pool.submit(HOSTILE, PROBLEM, "sleep" if i == 20 else "fine") for i in range(100)]
        hanging = futures.pop(20)
        assert {future.result().outcome for future in futures} == {Outcome.CORRECT}
        assert not hanging.done() and hanging.cancel()


def test_a_cancelled_verdict_frees_its_worker(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with VerifierPool(workers=1, limits=Limits(wall_seconds=600.0)) as pool:
        hanging = [pool.submit(HOSTILE, PROBLEM, act) for act in (f"sleep after {begun}", "sleep", "sleep")]
        while not begun.exists():
            time.sleep(0.01)
        for future in hanging:
            future.cancel()
        assert pool.verify(HOSTILE, PROBLEM, "fine").outcome is Outcome.CORRECT
        assert pool.restarts == 1


def test_asyncio_can_await_many_verdicts_at_once(pool: VerifierPool) -> None:
    async def run() -> list[Verdict]:
        asked = (pool.averify(HOSTILE, PROBLEM, act) for act in [*["raise", "fine"] * 100, "exit", "exit"])
        return await asyncio.gather(*asked)

    failures = [verdict.failure for verdict in asyncio.run(run())]
    assert failures == [*["error", None] * 100, "crash", "crash"]


def test_cancelled_tasks_leave_no_worker_stuck(tmp_path: Path) -> None:
    async def run(pool: VerifierPool) -> Verdict:
        acts = [f"sleep after {tmp_path / str(i)}" for i in range(20)]
        hanging = [asyncio.ensure_future(pool.averify(HOSTILE, PROBLEM, act)) for act in acts]
        while len(list(tmp_path.iterdir())) < 2:  # both workers hang
            await asyncio.sleep(0.01)
        for task in hanging:
            task.cancel()
        ended = await asyncio.gather(*hanging, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        return await pool.averify(HOSTILE, PROBLEM, "fine")

    with VerifierPool(workers=2, limits=Limits(wall_seconds=600.0)) as pool:
        assert asyncio.run(run(pool)).outcome is Outcome.CORRECT


def test_opened_verifiers_can_be_asked_from_asyncio(pool: VerifierPool) -> None:
    async def run() -> list[Verdict]:
        answers = [json.dumps({"o": outcome}) for outcome in ("correct", "incorrect")]
        spec = {"asked_verifiers:Oracle": {"of": "o"}}
        return await asyncio.gather(*(pool.averify(spec, "x", answer) for answer in answers))

    assert [verdict.outcome for verdict in asyncio.run(run())] == ["correct", "incorrect"]


def test_a_closed_event_loop_does_not_harm_the_pool(pool: VerifierPool) -> None:
    async def run() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(pool.averify(HOSTILE, PROBLEM, "sleep"), timeout=0.01)

    asyncio.run(run())
    assert pool.verify(HOSTILE, PROBLEM, "fine").outcome is Outcome.CORRECT


@settings(max_examples=20, deadline=None)
@given(done_first=st.permutations(range(12)), seen=st.integers(0, 12))
def test_in_order_yields_verdicts_in_the_order_of_submission(done_first: list[int], seen: int) -> None:
    futures = [Future[Verdict]() for _ in range(12)]
    for index in done_first[:seen]:
        futures[index].set_result(Verdict.correct(str(index)))
    timers = [threading.Timer(0.001, futures[i].set_result, [Verdict.correct(str(i))]) for i in done_first[seen:]]
    for timer in timers:
        timer.start()
    assert [(k, v.reason) for k, v in in_order(enumerate(futures))] == [(i, str(i)) for i in range(12)]


def test_a_slow_verdict_holds_back_a_bounded_number_of_others(pool: VerifierPool) -> None:
    read = 0
    slow = pool.submit(HOSTILE, PROBLEM, "sleep")

    def asked() -> Iterator[tuple[int, Future[Verdict]]]:
        nonlocal read
        for read in range(3 * WINDOW):
            yield read, slow if read == 0 else pool.submit("exact", "a", "a")

    verdicts = in_order(asked())
    assert next(verdicts)[1].failure == "timeout"
    assert read < WINDOW
    assert [key for key, _ in verdicts] == list(range(1, 3 * WINDOW))


def test_a_caller_may_stop_early(pool: VerifierPool) -> None:
    verdicts = pool.verify_many((i, HOSTILE, PROBLEM, "fine") for i in range(1000))
    next(verdicts)
    verdicts.close()
    assert pool.verify(HOSTILE, PROBLEM, "fine").outcome is Outcome.CORRECT


def test_a_wrong_name_is_an_input_error(pool: VerifierPool) -> None:
    with pytest.raises(InputError, match="did you mean 'math'"):
        pool.verify("maths", PROBLEM, "42")


@pytest.mark.parametrize(("reference", "response"), [(None, "1"), (42, "42"), ("42", None), ("42", 42)])
def test_a_wrong_type_of_problem_or_response_is_refused_at_once(
    pool: VerifierPool, reference: Any, response: Any
) -> None:
    with pytest.raises(InputError, match=r"as text|must be text"):
        pool.verify("math", reference, response)


def test_an_unknown_setting_is_reported_with_the_known_ones(pool: VerifierPool) -> None:
    with pytest.raises(InputError, match="'format': has no setting 'boxd'; it has: boxed, "):
        pool.verify({"format": {"boxd": True}}, "42", "42")


def test_check_judges_in_one_call_and_survives_a_crash() -> None:
    assert check("math", reference="42", response=r"<think>41?</think> So \boxed{42}").outcome is Outcome.CORRECT
    assert check("math", "42", r"\boxed{43}").outcome is Outcome.INCORRECT
    assert check(HOSTILE, PROBLEM, "exit").failure == "crash"


FORKED = """
import os
from distill.verifiers import check
check("hostile_verifiers:Hostile", "", "fine")
child = os.fork()
print(check("hostile_verifiers:Hostile", "", "fine").outcome, flush=True)
if child:
    os.waitpid(child, 0)
"""


def test_check_works_on_both_sides_of_a_fork() -> None:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parent), str(here)])
    done = subprocess.run(
        [sys.executable, "-c", FORKED], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["correct", "correct"], done.stderr


def test_a_closed_pool_refuses_to_judge() -> None:
    pool = VerifierPool(workers=1)
    pool.verify(HOSTILE, PROBLEM, "fine")
    pool.close()
    with pytest.raises(PipelineError, match="closed"):
        pool.verify(HOSTILE, PROBLEM, "fine")


def test_output_of_a_verifier_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
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
    """Whether a process has ended, waiting up to 30 seconds for it."""
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


def test_an_interrupt_without_a_wakeup_is_noticed_while_waiting_for_a_verdict() -> None:
    """Like one that arrives between the last check for signals and the wait: `interrupt_main` wakes no wait either."""
    with VerifierPool(workers=1, limits=Limits(wall_seconds=600.0)) as pool:
        pool.verify(HOSTILE, PROBLEM, "fine")
        threading.Timer(0.3, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            pool.verify(HOSTILE, PROBLEM, "sleep")


def test_stopping_does_not_wait_for_a_hanging_verifier() -> None:
    done: list[int] = []
    with VerifierPool(workers=1, limits=Limits(wall_seconds=100.0)) as pool:
        items = [(n, HOSTILE, PROBLEM, "sleep" if n else "fine") for n in range(2)]
        for key, _ in pool.verify_many(items, lambda: bool(done)):
            done.append(key)
    assert done == [0]
