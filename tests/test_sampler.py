"""Sampling on every rank of a training: two real processes complete a step's requests as one does."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

torch = pytest.importorskip("torch")

from test_opd import opd  # noqa: E402
from test_rl import grpo, policy, student  # noqa: E402
from tiny import chat_tokenizer, memory_for_samples, tiny, weights  # noqa: E402

from distill.engines.base import PromptTooLong  # noqa: E402
from distill.engines.transformers import TransformersEngine  # noqa: E402
from distill.prm import head  # noqa: E402
from distill.prm.reading import PrmScorer  # noqa: E402
from distill.randomness import generator  # noqa: E402
from distill.training import trials  # noqa: E402
from distill.training.batching import micro_batches  # noqa: E402
from distill.training.launch import joined, run_of_several  # noqa: E402
from distill.training.learner import Learner, LearnerSettings  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.training.sampler import StudentSampler  # noqa: E402
from distill.training.session import learning  # noqa: E402
from distill.types import Completion, Finish, Problem, Request, Sampling, ThinkingBudget  # noqa: E402
from distill.verifiers import VerifierPool  # noqa: E402
from pipeline.errors import PipelineError  # noqa: E402
from rl.process import ProcessRewards  # noqa: E402
from rl.step_credit import Mixture  # noqa: E402
from rl.teacher import TEACHER, TransformersTeacher  # noqa: E402

HERE = Path(__file__).parent
Together = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def together() -> Iterator[Together]:
    """In this context, trainings have two ranks: this process, and one that was started once for the file. Both are
    told so as torchrun tells them, under which trainings follow each other, too."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    started = os.environ | place | {"RANK": "1", "LOCAL_RANK": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    other = subprocess.Popen([sys.executable, "-m", "distill.training.launch"], env=started, stdin=subprocess.PIPE)

    @contextmanager
    def rank_0() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (place | {"RANK": "0", "LOCAL_RANK": "0"}).items():
                patch.setenv(name, value)
            yield

    yield rank_0
    with rank_0(), run_of_several():
        pass  # ends the other, as at the end of a command
    joined.cache_clear()
    other.kill()
    other.communicate()


class Counted(StudentSampler):
    """Counts the requests that rank 0 completes itself."""

    training: ref[Learner]

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.own, generate = 0, engine.generate

        def counted(requests: Any, stopping: Any) -> Any:
            share = list(requests)
            self.own += len(share)
            return generate(share, stopping)

        engine.generate = counted

    def attach(self, learner: Learner) -> None:
        super().attach(learner)
        self.training = ref(learner)


def test_two_ranks_sample_what_one_does(tmp_path: Path, together: Together) -> None:
    """From the first weights, and then from those that every rank has learned."""
    one, two = student(), student()
    sampler = Counted(policy(two))
    _, alone = grpo(one, tmp_path / "one", steps=1)
    with together():
        metrics, rollouts = grpo(two, tmp_path / "two", sampler, steps=3)
    sampled, shared = (
        [(c.token_ids, c.logprobs, c.text) for c in (r.completion for r in rows)] for rows in (alone, rollouts)
    )
    assert shared[: len(sampled)] == sampled
    assert max(m.logprob_gap for m in metrics) < 1e-4
    assert sampler.own == len(rollouts) // 2
    assert sampler.training() is None  # nor are the optimizer's moments kept, and one process can still sample
    assert len(list(sampler.generate(requests("a", "b"), lambda: False))) == 2


@contextmanager
def two_ranks(directory: Path) -> Iterator[tuple[StudentSampler, Learner]]:
    made = student()
    sampler = StudentSampler(policy(made))
    with learning(made, LearnerSettings(OptimizerSettings(1e-3), devices=2), 1, directory, "") as learner:
        sampler.attach(learner)
        sampler.refresh()
        yield sampler, learner


def requests(*prompts: str, tokens: int = 4) -> list[Request]:
    return [
        Request(str(i), [{"role": "user", "content": p}], Sampling(max_tokens=tokens)) for i, p in enumerate(prompts)
    ]


def test_a_stop_and_an_error_reach_every_rank(tmp_path: Path, together: Together) -> None:
    """An error of any ends the sampling of all: what rank 0 is to sample beside it would take hours."""
    teacher, apart = TransformersTeacher(tiny()), TransformersTeacher(tiny())
    with torch.no_grad():
        teacher.network.get_input_embeddings().weight[5] = math.nan
    whole, broken = (Completion("k", "", prompt, "", (2,), (0.0,), Finish.STOP) for prompt in ((1,), (5,)))
    with together(), two_ranks(tmp_path) as (sampler, learner):
        long = requests("a", "b", tokens=100_000)
        assert list(sampler.generate(long, lambda: True)) == []
        assert len(list(sampler.generate(requests("a", "b"), lambda: False))) == 2
        one, other = learner.everywhere(memory_for_samples, [()] * 2)
        assert other < 0.75 * one  # both take a part of one machine's free memory: half of it, and half of a half
        too_long = replace(requests("b" * 100_000)[0], key="1")
        with pytest.raises(PromptTooLong) as raised:
            list(sampler.generate([endless("a"), too_long], lambda: False))
        assert raised.value.key == "1"
        assert len(list(sampler.generate(requests("a", "b"), lambda: False))) == 2
        teacher.attach(learner)
        with pytest.raises(PipelineError, match="its weights are broken"):
            teacher([whole, broken])
        assert len(teacher([whole, whole])) == 2
        apart.network.to("meta")
        apart.attach(learner)  # stays on the device that it was put on
        assert learner.beside[TEACHER] is teacher.network


def test_completions_of_every_rank_come_as_they_are_made(tmp_path: Path, together: Together) -> None:
    """A run that is killed while it samples then keeps them, and they are judged meanwhile."""
    with together(), two_ranks(tmp_path) as (sampler, _):
        one, two, three = requests("a", "b", "c")
        asked = [one, two, three, endless("d", "3")]  # rank 1 has the last two
        arriving = sampler.generate(asked, lambda: False)
        assert {next(arriving).key for _ in range(3)} == {"0", "1", "2"}
        arriving.close()  # given up: the others end, too
        assert len(list(sampler.generate(requests("a", "b"), lambda: False))) == 2
        with VerifierPool(workers=1) as pool:
            pass
        problems = {request.key: Problem(request.key, "?", "x", "regex", "test") for request in asked}
        with pytest.raises(PipelineError, match="pool is closed") as failed:  # holds on to what failed
            trials.pass_at_1(sampler, pool, problems, asked, lambda: False)
        assert len(list(sampler.generate(requests("a", "b"), lambda: False))) == 2, failed


def endless(prompt: str, key: str = "0") -> Request:
    """A request whose response is continued whenever it could end, for more tokens than any test waits for."""
    most = 10_000_000
    budget = ThinkingBudget(least=most, extension="a", extensions=most)
    return replace(requests(prompt, tokens=most)[0], key=key, budget=budget)


def test_worker_processes_sample_what_a_training_process_does_itself(tmp_path: Path) -> None:
    """They are forked before training replaces functions of the library by its own, which round in another way."""
    made, logprobs = [student(), student()], []
    for network, workers in zip(made, (1, 2), strict=True):
        engine = TransformersEngine(network, chat_tokenizer(), model_identity="tiny", slots=8, workers=workers)
        with closing(engine):
            _, rollouts = grpo(network, tmp_path / str(workers), engine, steps=2)
        logprobs.append([rollout.completion.logprobs for rollout in rollouts])
    assert logprobs[0] == logprobs[1] and torch.equal(weights(made[0]), weights(made[1]))


def test_two_ranks_score_what_a_teacher_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: Together
) -> None:
    scored: list[int] = []

    def counted(rows: Any, max_tokens: int) -> Any:
        scored.append(len(rows))
        return micro_batches(rows, max_tokens)

    monkeypatch.setattr("distill.training.passes.micro_batches", counted)
    found = [opd(student(), tmp_path / "one", steps=1, group=4)[1]]
    with together():
        found += [opd(student(), tmp_path / "two", steps=1, group=4)[1]]
    one, two = ([value for rollout in rollouts for value in rollout.teacher] for rollouts in found)
    assert two == pytest.approx(one, abs=1e-5) and len(set(one)) > len(found[0])
    assert scored == [len(found[0]), len(found[1]) // 2]


def test_two_ranks_score_what_a_process_reward_model_does(tmp_path: Path, together: Together) -> None:
    """A teacher beside it is another network, which scores what it would alone."""
    network, tokenizer = tiny(), chat_tokenizer()
    with torch.no_grad():
        head.attach(network, likelihood=False).weight.copy_(torch.from_numpy(generator("head").normal(0, 1, 32)))
    scorer = PrmScorer(network, tokenizer, "line")
    mix = Mixture(0.0, TransformersTeacher(tiny()), steps=ProcessRewards(scorer, tokenizer))
    found = [grpo(student(), tmp_path / "one", steps=1, mix=mix)[1]]
    with together():
        found += [grpo(student(), tmp_path / "two", steps=1, mix=mix)[1]]
    for of in (lambda rollout: rollout.steps, lambda rollout: rollout.teacher):
        one, two = ([value for rollout in rollouts for value in of(rollout)] for rollouts in found)
        assert two == pytest.approx(one, abs=1e-5) and len(set(one)) > 8
