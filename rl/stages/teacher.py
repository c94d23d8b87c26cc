"""Teachers as a YAML names them: a model and the engine that runs it. grpo and opd use one that scores; gkd uses
`loaded`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from distill import modelspec
from distill.engines.options import TransformersOptions, VllmOptions
from distill.modelspec import Model, ModelName
from distill.stages.devices import Held
from pipeline.stage import Context, Settings

if TYPE_CHECKING:
    from rl.step_credit import Score

ScoringEngine = Annotated[
    Annotated[TransformersOptions | VllmOptions, Field(discriminator="kind")],
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]


class TeacherSettings(Settings):
    """A model that shares the student's tokenizer, and scores each token that the student sampled."""

    model: ModelName
    engine: ScoringEngine = TransformersOptions()
    """What runs the teacher: `transformers`, or `vllm` (at temperature 1)."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of its log-ratio in a token's advantage, beside the reward's."""


def check_teacher(teacher: TeacherSettings, temperature: float) -> None:
    """ValueError for settings that cannot work."""
    if isinstance(teacher.engine, VllmOptions) and temperature != 1:
        raise ValueError("a teacher in vllm scores at temperature 1: set sampling.temperature 1, or use transformers")
    if isinstance(teacher.engine, VllmOptions) and teacher.engine.speculative:
        raise ValueError("teacher: vllm tells no log-probabilities of prompts with `speculative`; leave it out")


def teachers(context: Context, teacher: TeacherSettings | None) -> list[Held]:
    """The teacher if it is loaded beside the student. One in vLLM takes the memory it is given (`in_vllm`)."""
    if teacher is None or isinstance(teacher.engine, VllmOptions):
        return []
    return [(modelspec.find(teacher.model, context.workspace, context.inputs, context.hashes), teacher.engine.dtype)]


def in_vllm(context: Context, teacher: TeacherSettings | None) -> dict[str, tuple[Model, VllmOptions]]:
    """The teacher if it runs in vLLM."""
    if teacher is None or not isinstance(teacher.engine, VllmOptions):
        return {}
    model = modelspec.find(teacher.model, context.workspace, context.inputs, context.hashes)
    return {"teacher": (model, teacher.engine)}


@contextmanager
def scoring(
    context: Context, teacher: TeacherSettings, tokenizer: Any, temperature: float, micro_batch_tokens: int
) -> Iterator[Score]:
    """Load the teacher. `InputError` if its tokenizer is not the student's."""
    from rl.teacher import TransformersTeacher, VllmTeacher, check_same_tokenizer

    model = modelspec.find(teacher.model, context.workspace, context.inputs, context.hashes)
    if isinstance(teacher.engine, VllmOptions):
        from distill.engines import vllm

        with closing(vllm.open(model, teacher.engine, context.note, stopping=context.stopping)) as engine:
            check_same_tokenizer(tokenizer, engine.tokenizer, teacher.model)
            yield VllmTeacher(engine)
    else:
        network = loaded(model, teacher.engine, tokenizer, teacher.model)
        yield TransformersTeacher(network, temperature, micro_batch_tokens)


def loaded(found: Model, engine: TransformersOptions, tokenizer: Any, name: str) -> Any:
    """Load a teacher's network. `InputError` if its tokenizer is not the student's."""
    from distill import pretrained
    from rl.teacher import check_same_tokenizer

    network, theirs = pretrained.load(found, engine.dtype, engine.device)
    check_same_tokenizer(tokenizer, theirs, name)
    return network
