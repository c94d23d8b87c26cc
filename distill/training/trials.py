"""Try out a student under training: whether its answers end, and how many are right.

Samples come from the embedded engine on the live weights, keyed by problem, so they depend only on the weights.
The sft stage uses this for the stop test after training and for pass@1 on held-out problems during it. Stages that
learn from their student's own samples open their engine here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch

from distill.engines.base import response_of
from distill.engines.transformers import TransformersEngine, workers_for
from distill.prompting import Ask
from distill.tensors import free_of_gpu
from distill.types import Finish, Outcome, Problem, Request, Sampling
from distill.verifiers import VerifierPool
from pipeline.errors import InputError
from pipeline.stage import stop_check

if TYPE_CHECKING:
    from distill.training.sampler import StudentSampler


def open_engine(
    model: Any, tokenizer: Any, identity: str = "student", workers: int = 0, sharers: int = 1
) -> TransformersEngine:
    """An engine that samples from ``model``, a student under training, as it was at the last `refresh`. ``workers`` 0
    chooses the number of processes."""
    processes = workers_for(model, workers)
    return TransformersEngine(model, tokenizer, model_identity=identity, workers=processes, sharers=sharers)


def requests(problems: Mapping[str, Problem], ask: Ask, sampling: Sampling) -> list[Request]:
    """One request per problem, under its key."""
    return [Request(key, ask(problem).messages, sampling) for key, problem in problems.items()]


def where_sampling_is_fast(model: Any) -> Any:
    """``model``, on a GPU if possible. A model that was sharded over several GPUs for training lies in main memory,
    where an answer takes minutes; it moves to a GPU that has room for it and for the engine's copy."""
    twice = 2 * sum(weight.nbytes for weight in model.parameters())
    if model.device.type == "cpu" and torch.cuda.is_available() and twice < free_of_gpu():
        return model.to("cuda")
    return model


def count_unfinished(model: Any, tokenizer: Any, asked: Sequence[Request], stopping: Callable[[], bool]) -> int:
    """How many of ``asked`` are not answered within their limit: a student that has not learned, or was never
    shown, the end token goes on until it is cut off. Raises `Stopped` once ``stopping()`` is true."""
    with closing(open_engine(where_sampling_is_fast(model), tokenizer)) as engine:
        cut = sum(completion.finish is Finish.LENGTH for completion in engine.generate(asked, stopping))
    stop_check(stopping)
    return cut


def pass_at_1(
    sampler: StudentSampler,
    pool: VerifierPool,
    problems: Mapping[str, Problem],
    asked: Sequence[Request],
    stopping: Callable[[], bool],
) -> float:
    """The share of ``problems`` that the current weights answer correctly, by their own verifiers, without those that
    cannot be verified. Raises `Stopped` once ``stopping()`` is true, and `InputError` if none can be verified."""
    sampler.refresh()
    with closing(sampler.generate(asked, stopping)) as completions:  # if judging fails, the other ranks stop, too
        items = (
            (completion.key, problems[completion.key].verifier, problems[completion.key], response_of(completion))
            for completion in completions
        )
        verdicts = [verdict for _, verdict in pool.verify_many(items, stopping)]
    stop_check(stopping)
    judged = [verdict.outcome for verdict in verdicts if verdict.outcome is not Outcome.UNVERIFIABLE]
    if not judged:
        raise InputError(
            f"none of {len(verdicts)} held-out answers can be judged (the first: {verdicts[0].reason}), so there is no "
            "pass@1 to stop by; use `measure: loss`"
        )
    return judged.count(Outcome.CORRECT) / len(judged)
