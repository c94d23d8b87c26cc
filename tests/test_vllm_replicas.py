"""vLLM in several processes: where each runs, and, with vLLM installed, two real ones on a CPU."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from vllm_models import SMALL, TEACHER, needs_teacher, needs_vllm, requests

from distill import pretrained
from distill.engines import vllm
from distill.engines.base import PromptTooLong, Stopping
from distill.engines.options import VllmOptions
from distill.engines.transformers import TransformersEngine
from distill.engines.vllm_replicas import Place, VllmReplicas, _Replica, places
from distill.engines.vllm_worker import DROPPED, END, NOW, Opening, serve
from distill.lacking import lacking
from distill.machine import cores
from distill.modelspec import Model
from distill.training.student import add_lora
from distill.types import Completion, Request
from pipeline.errors import InputError, PipelineError, Stopped
from rl.vllm_policy import VllmPolicy

MODEL = Model(str(TEACHER), "teacher")
ROOT = Path(__file__).parents[1]


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("options", "visible", "expected"),
    [
        ({"data_parallel": 2}, None, [("0",), ("1",)]),
        ({"data_parallel": 2, "tensor_parallel": 2}, None, [("0", "1"), ("2", "3")]),
        ({"data_parallel": 2, "engine_args": {"pipeline_parallel_size": 2}}, None, [("0", "1"), ("2", "3")]),
        ({"data_parallel": 2, "first_gpu": 2}, None, [("2",), ("3",)]),
        ({"first_gpu": 3}, None, [("3",)]),
        ({"data_parallel": 2}, "5,7,GPU-8a,9", [("5",), ("7",)]),
        ({"data_parallel": 2, "first_gpu": 2}, "5,7,GPU-8a,9", [("GPU-8a",), ("9",)]),
        ({"data_parallel": 4}, "3, 2,1 ,0,-1,7", [("3",), ("2",), ("1",), ("0",)]),
    ],
)
def test_each_replica_has_gpus_of_its_own(
    options: dict[str, Any], visible: str | None, expected: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 4, visible)
    assert [place.gpus for place in places(VllmOptions.model_validate(options))] == expected


def test_each_replica_can_have_a_slice_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which CUDA shows only one to a process."""
    gpus(monkeypatch, 1, "MIG-8a,MIG-9b")
    assert [place.gpus for place in places(VllmOptions(data_parallel=2))] == [("MIG-8a",), ("MIG-9b",)]


def test_too_few_gpus_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2, "0,1,-1,2,3")  # CUDA heeds none behind -1
    with pytest.raises(
        InputError, match=r"3 x 1 \(data_parallel x tensor_parallel\) needs 3 GPU\(s\), and 2 can be seen"
    ):
        places(VllmOptions(data_parallel=3))
    gpus(monkeypatch, 4)
    with pytest.raises(
        InputError, match=r"2 x 2 \(data_parallel x tensor_parallel\) from GPU 1 on needs 5 GPU\(s\), and 4"
    ):
        places(VllmOptions(data_parallel=2, tensor_parallel=2, first_gpu=1))


def test_without_a_gpu_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    there = cores()
    found = places(VllmOptions(data_parallel=there))
    assert [place.threads for place in found] == [1] * there
    taken = [core for place in found for core in place.cores]
    assert len(set(taken)) == len(taken)
    assert places(VllmOptions())[0].threads == there


def test_more_replicas_than_cores_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.lacking.find_spec", lambda name: name)
    assert "data_parallel: 1000 processes" in str(lacking(VllmOptions(data_parallel=1000)))
    assert lacking(VllmOptions(data_parallel=1)) is None


class Refusing:
    """An engine that has read the end of what it is asked when it refuses a request: they came together."""

    ahead = 8

    def generate(self, asked: Iterable[Request | None], stopping: Stopping) -> Iterator[Completion]:
        list(takewhile(lambda request: request is not None, asked))
        raise InputError("refused")
        yield

    def close(self) -> None:
        pass


def test_a_refusal_after_the_drop_does_not_wait_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parent and replica waited for each other for ever."""
    monkeypatch.setattr(vllm, "load", lambda *_: Refusing())
    inbox, outbox = SimpleQueue[Any](), SimpleQueue[Any]()
    for message in (("open", Opening(MODEL, VllmOptions(), 0, 1)), ("generate", requests(1)), ("drop", None), END):
        inbox.put(message)
    serve(inbox, outbox)
    assert [str(outbox.get()) for _ in range(outbox.qsize())] == ["8", "refused", DROPPED]


@pytest.mark.parametrize(("how", "code"), [(END, 0), (NOW, 1)])
def test_a_replica_ends_as_it_is_told(how: tuple[str, None], code: int) -> None:
    """Not by a signal: vLLM's own workers would outlive it."""
    replica = _Replica(Place())
    VllmReplicas([replica], MODEL).close(how)
    assert replica._process.returncode == code


def test_a_load_ends_when_it_is_to_stop() -> None:
    """Before the replica has even imported vLLM."""
    with pytest.raises(Stopped):
        vllm.open(MODEL, VllmOptions(data_parallel=1), print, stopping=lambda: True)


def test_an_error_of_another_process_is_the_same_here() -> None:
    error = pickle.loads(pickle.dumps(PromptTooLong.of("k1", 300, 256)))
    assert (error.key, str(error)) == ("k1", str(PromptTooLong.of("k1", 300, 256)))


@pytest.fixture(scope="module")
def replicas() -> Iterator[VllmReplicas]:
    patch = pytest.MonkeyPatch()
    for name, value in SMALL.items():
        patch.setenv(name, value)
    options = VllmOptions(dtype="float32", max_model_len=256, data_parallel=2)
    with closing(vllm.open(MODEL, options, print, lora_rank=4)) as opened:
        assert isinstance(opened, VllmReplicas) and opened.copies == 2
        yield opened
    patch.undo()


def samples(count: int, each: int, **sampling: Any) -> list[Request]:
    return [
        Request(f"{request.key}/{index}", request.messages, request.sampling)
        for request in requests(count, **sampling)
        for index in range(each)
    ]


@needs_vllm
@needs_teacher
def test_replicas_give_what_one_model_gives(replicas: VllmReplicas) -> None:
    network, tokenizer = pretrained.load(MODEL, device="cpu")
    ours = TransformersEngine(network, tokenizer, model_identity="teacher")
    wanted = requests(12, temperature=0.0, max_tokens=24)
    assert {c.key: c.text for c in replicas.generate(wanted)} == {c.key: c.text for c in ours.generate(wanted)}


@needs_vllm
@needs_teacher
def test_samples_are_the_same_after_others_were_dropped(replicas: VllmReplicas) -> None:
    """Whoever stops in the middle finds the replicas as if nothing had been asked."""
    wanted = samples(6, 8, temperature=1.0, max_tokens=24)
    whole = {c.key: c.text for c in replicas.generate(wanted)}
    assert len(whole) == 48 and len(set(whole.values())) > 6
    some = replicas.generate(reversed(wanted))
    first = next(some)
    some.close()  # type: ignore[attr-defined]
    assert whole[first.key] == first.text
    left = replicas.generate(reversed(wanted))
    next(left)
    assert len(replicas.score([[1, 2, 3]] * 3)) == 3
    begun = replicas.generate(wanted)
    next(begun)
    left.close()  # type: ignore[attr-defined]
    assert len(list(begun)) == 47
    asked = iter([False, False, True])
    stopped = list(replicas.generate(wanted, lambda: next(asked)))
    assert len(stopped) < 48
    assert {c.key: c.text for c in replicas.generate(wanted)} == whole


@needs_vllm
@needs_teacher
def test_what_is_wanted_may_depend_on_what_was_answered(replicas: VllmReplicas) -> None:
    chain, answered = samples(1, 5, temperature=1.0, max_tokens=8), [0]

    def one_by_one() -> Iterator[Request | None]:
        for index, request in enumerate(chain):
            while answered[0] < index:
                yield None
            yield request

    for _ in replicas.generate(one_by_one()):
        answered[0] += 1
    assert answered == [5]


@needs_vllm
@needs_teacher
def test_a_prompt_without_room_is_named_and_the_rest_can_be_asked_again(replicas: VllmReplicas) -> None:
    long = Request("long", ({"role": "user", "content": "7 + " * 300},), requests(1)[0].sampling)
    rest = samples(4, 4, temperature=1.0, max_tokens=8)
    with pytest.raises(PromptTooLong) as caught:
        list(replicas.generate([*rest, long, *rest]))
    assert caught.value.key == "long"
    assert len(list(replicas.generate(rest))) == 16


@needs_vllm
@needs_teacher
def test_an_adapter_that_reaches_only_one_replica_is_noticed(
    replicas: VllmReplicas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tokenizer = pretrained.load(MODEL, device="cpu")
    network = add_lora(network, rank=4, alpha=8, seed=0)
    policy = VllmPolicy(network, replicas, tmp_path / "adapter", tokenizer.encode("22 * 2 = 44\n44 + 15 = 59"))
    policy.refresh()
    for reached in (0, 1):
        torch.manual_seed(reached)
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(0, 0.3)
        with monkeypatch.context() as patch:
            alone = VllmReplicas(replicas._replicas[reached : reached + 1], MODEL)
            patch.setattr(replicas, "adopt", alone.adopt)
            with pytest.raises(PipelineError, match=r"other weights than the trainer's|did not arrive"):
                policy.refresh()
        policy.refresh()


@needs_vllm
@needs_teacher
def test_a_killed_replica_is_one_line_and_a_killed_run_leaves_none_behind() -> None:
    script = """if True:
        import multiprocessing, os, signal, sys, time
        from vllm_models import TEACHER, requests
        from distill.engines import vllm
        from distill.engines.options import VllmOptions
        from distill.modelspec import Model
        from pipeline.errors import PipelineError
        options = VllmOptions(dtype="float32", max_model_len=256, data_parallel=2)
        pipe = multiprocessing.Pipe
        def held():  # by a process that is forked just then
            ours, theirs = pipe()
            os.dup(theirs.fileno())
            return ours, theirs
        multiprocessing.Pipe = held
        engine = vllm.open(Model(str(TEACHER), "teacher"), options, print)
        first, second = [replica._process.pid for replica in engine._replicas]
        sampling = engine.generate(requests(8, temperature=1.0, max_tokens=200))
        next(sampling)
        os.kill(first, signal.SIGKILL)
        try:
            print(list(sampling))
        except PipelineError as error:
            print(error)
        engine._replicas[1].send("generate", requests(400, temperature=1.0, max_tokens=200))
        print(second, flush=True)
        time.sleep(1000)
    """
    environment = {**os.environ, **SMALL, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        _loading, said, other = (run.stdout.readline().strip() for _ in range(3))
        run.kill()
    assert said.startswith("a vllm replica was killed by SIGKILL (out of memory?); run the same command again")
    assert gone(int(other))


HANGING = """if True:
    import os, time
    def load():
        with open(os.environ["HUNG"], "w") as told:
            print(os.getpid(), file=told, flush=True)
        time.sleep(1000)
"""


@needs_vllm
@needs_teacher
def test_replicas_that_hang_while_they_load_end_at_the_first_ctrl_c(tmp_path: Path) -> None:
    """A plugin of vLLM hangs in each. The whole job gets the signal, as from a terminal."""
    (tmp_path / "hanging.py").write_text(HANGING)
    (tmp_path / "hanging-0.dist-info").mkdir()
    (tmp_path / "hanging-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: hanging\nVersion: 0\n")
    entry = "[vllm.general_plugins]\nhanging = hanging:load\n"
    (tmp_path / "hanging-0.dist-info" / "entry_points.txt").write_text(entry)
    (tmp_path / "p.yaml").write_text(
        "name: hanging\nstages:\n"
        "  problems: {sources: [{family: calc, train: 4}]}\n"
        "  generate: {problems: problems, teacher: 'embedded:teacher', engine: {kind: vllm, data_parallel: 2}}\n"
    )
    hung = tmp_path / "hung"
    os.mkfifo(hung)
    path = os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])
    environment = {**os.environ, **SMALL, "PYTHONPATH": path, "HUNG": str(hung)}
    command = [sys.executable, "-m", "distill", "run", "--pipeline", "p.yaml", "--workspace", "run"]
    with (
        os.fdopen(os.open(hung, os.O_RDWR)) as told,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as run,
    ):
        try:
            loading = [int(told.readline()) for _ in range(2)]
            os.killpg(run.pid, signal.SIGINT)
            _, said = run.communicate(timeout=300)
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    assert run.returncode == 75 and "stopped cleanly; run the same command again to continue (SIGINT)" in said
    assert all(gone(pid) for pid in loading)


def gone(pid: int) -> bool:
    """Whether the process ends within a minute."""
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
