"""The models that a run holds beside its student, as a YAML names them: a teacher (a model and the engine that runs it)
and a process reward model. They are found, loaded, and checked against the student's tokenizer. grpo and opd use a
teacher that scores; gkd uses `loaded`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from distill import modelspec
from distill.engines.options import TransformersOptions, VllmOptions
from distill.modelspec import MODEL, Model, ModelName
from distill.prm import files
from distill.stages.devices import Held
from pipeline.fingerprint import FileHashes
from pipeline.stage import Context, Settings
from rl.stages.options import ProcessSettings

if TYPE_CHECKING:
    from rl.process import ProcessRewards
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


def process_rewards(context: Context, settings: ProcessSettings, tokenizer: Any) -> ProcessRewards:
    """Load the model. `InputError` if it is not a process reward model, or its tokens are not the student's."""
    from distill.prm.reading import load
    from rl.process import ProcessRewards

    directory = files.directory_of(settings.model, context.workspace, context.inputs)
    files.check_reads(directory, settings.model, tokenizer, "the student")
    return ProcessRewards(load(directory, settings.model, dtype=settings.dtype), tokenizer)


def reward_models(context: Context, settings: ProcessSettings | None) -> list[Held]:
    """The model that `process_rewards` will load on the student's device, if any."""
    if settings is None:
        return []
    directory = files.directory_of(settings.model, context.workspace, context.inputs)
    return [(Model(str(directory / MODEL), ""), settings.dtype)]


def process_dependency(settings: ProcessSettings | None, hashes: FileHashes) -> Mapping[str, str]:
    """What a stage depends on besides its inputs; a model made by a stage is already an input."""
    if settings is None or settings.model.startswith(files.PREFIX):
        return {}
    return {"process": files.identity_of(files.directory_of(settings.model), hashes)}
