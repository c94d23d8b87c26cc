"""prm: train a process reward model on labelled steps, test it on held-out problems, and publish it.

The body is any causal LM, such as the student or the teacher. A head is trained on top of it (`distill.prm.head`),
while the body is trained whole, with LoRA, or not at all. Labels come from one or several sources
(`distill.stages.prm_labels`) and are stored as rows. Training works as in `sft`: packed, and resumed to the last bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import modelspec, verification
from distill.cards import write_model_card, write_prm_card
from distill.lacking import lacking
from distill.modelspec import ModelName
from distill.pretrained import tokenizer_of
from distill.prm import files
from distill.prm.labels import Labelled
from distill.prm.measures import in_words
from distill.prm.scorer import Aggregate
from distill.prompting import Ask, Prompting, asking
from distill.stages.common import store_of
from distill.stages.devices import check_memory, foreseen, threads, too_large
from distill.stages.labelling import foresee, gather, label_rows
from distill.stages.prm_labels import LabelSource, RolloutLabels
from distill.stages.student import StudentSettings, exported, load_student
from distill.steps import Rule, Split, needs_tokens, splitter
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Output, Stage

if TYPE_CHECKING:
    from distill.prm.training import Lesson
    from distill.training.loop import TrainSettings

ABOUT = "The body of a process reward model: a causal LM whose last hidden states, and log-likelihoods, its head reads."
HEAD_STEP = 1.28
"""Roughly how far one update of a fresh head may move a logit; its learning rate is this divided by its width."""


class PrmSettings(StudentSettings):
    student: ModelName
    """The body to start from. A model that can solve the problems (a teacher) learns to judge them fastest."""
    labels: Annotated[list[LabelSource], Field(min_length=1)]
    """Where step labels come from: `{exact: STAGE}`, `{slips: STAGE}`, `{rollouts: STAGE, ...}`, `{groups: STAGE}`,
    `{file: PATH}`."""
    test: Annotated[list[LabelSource], Field(default_factory=list)]
    """Labels to test on, beside what is held out. They are never trained on; those of problems in the training labels
    are left out."""
    steps: Rule = "line"
    """What counts as a step: a `line`, a `paragraph`, a `numbered` step, or `tokens:N`."""
    body: Literal["trained", "frozen"] = "trained"
    """`frozen` trains only the head."""
    likelihood: bool = True
    """Include the body's log-likelihood of a step in its score. Turn it off if a right step can be worded in many
    ways."""
    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the problems, by structure, that is held out for the test."""
    noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of training labels to flip, to see what bad labels cost."""
    prompting: Prompting = None
    """How the problem is prompted before a response (`system`, `template`), also for the policy of `rollouts`. Default:
    the plain problem."""
    learning_rate: Annotated[float | None, Field(gt=0)] = None
    """Learning rate of the body. Default: from the model's hidden size, as in `sft`."""
    head_learning_rate: Annotated[float | None, Field(gt=0)] = None
    """Learning rate of the head. Default: 1.28 / its width."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of steps spent warming up."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Responses per optimizer step."""
    epochs: Annotated[int, Field(ge=1)] = 1
    max_tokens: Annotated[int, Field(ge=1)] = 4096
    """Longer responses, prompt included, are dropped and counted, never truncated."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """In the test, the probability from which a step is called right."""
    aggregate: Aggregate = "product"
    """In the test, how the scores of a response's steps are combined."""

    @model_validator(mode="after")
    def _check(self) -> PrmSettings:
        if self.prompting and (self.prompting.prefill or self.prompting.examples is not None):
            raise ValueError(
                "prompting: only `system` and `template` can be set here; a reward model reads whole responses"
            )
        if self.ranks() > 1 or self.parallel == "fsdp":
            raise ValueError("devices: a reward model can be trained on one device only")
        return self


def run(context: Context, settings: PrmSettings) -> Output:
    from distill.prm import head as heads
    from distill.prm.training import measured, split_heldout, with_noise
    from distill.training.loop import train
    from distill.training.metrics import Recorder
    from distill.training.student import default_learning_rate

    start = modelspec.find(settings.student, context.workspace, context.inputs, context.hashes)
    if settings.body == "trained":
        check_memory(context, settings, start)
    split = splitter(settings.steps, tokenizer_of(start) if needs_tokens(settings.steps) else None)
    labelled = _none_held_out(context, _labelled(context, settings, settings.labels, split))
    network, tokenizer = load_student(_loading_settings(settings), start)
    if settings.body == "frozen":
        network.requires_grad_(False)
    rate = settings.learning_rate or default_learning_rate(network)
    head = heads.attach(network, settings.likelihood)
    lessons = _lessons(context, settings, tokenizer, labelled)
    taught, held = split_heldout(lessons, settings.heldout, settings.seed)
    if not held:
        context.note("nothing is held out, as all labels are of one problem")
    tested = _lessons(context, settings, tokenizer, _labelled(context, settings, settings.test, split))
    tested = _of_unseen_problems(context, taught, tested)
    _store_labels(context, {"train": taught, "heldout": held, "test": tested})
    rows = [with_noise(lesson, settings.noise, settings.seed).row for lesson in taught]
    with Recorder(store_of(context), context, ("loss", "learning_rate"), settings.log_to) as recorder:
        result = train(
            network, rows, _train_settings(settings, rate, head.weight.numel()),
            checkpoints=context.work / "checkpoints", stop=context.stopping, on_step=recorder,
            before_save=recorder.flush, measure=heads.fitness,
        )  # fmt: skip
    test = partial(
        measured, network, micro_batch_tokens=settings.micro_batch_tokens, threshold=settings.threshold,
        how=settings.aggregate,
    )  # fmt: skip
    figures: dict[str, Any] = {
        "examples": len(rows),
        "learned_steps": sum(row.supervised for row in rows),
        "steps": result.steps,
        "sources": dict(Counter(lesson.labelled.source for lesson in lessons)),
        "noise": settings.noise,
        "heldout": test(held),
        **({"test": test(tested)} if tested else {}),
        "loss": recorder.last().get("loss"),
    }
    for part in ("heldout", "test"):
        if part in figures:
            context.note(f"{part}: {in_words(figures[part])}")
    return Output(_publish(context, settings, network, tokenizer, figures), figures)


def _loading_settings(settings: PrmSettings) -> PrmSettings:
    """The settings by which the body is loaded: a frozen one gets no adapter."""
    return settings if settings.body == "trained" else settings.model_copy(update={"lora": None, "quantize": None})


def _labelled(
    context: Context, settings: PrmSettings, sources: Sequence[LabelSource], split: Split
) -> list[Labelled]:  # fmt: skip
    found: list[Labelled] = []
    for source in sources:
        own = gather(context, source, split, settings.seed, _ask(context, settings))
        if not own:
            described = source.model_dump_json(exclude_defaults=True)
            raise InputError(f"stage {context.name}: labels: {described} labels no step; check it, or remove it")
        steps = sum(label is not None for one in own for label in one.labels)
        context.note(f"labels: {len(own):,} responses, {steps:,} steps ({own[0].source})")
        found += own
    return found


def _ask(context: Context, settings: PrmSettings) -> Ask:
    return asking(settings.prompting, key=f"{context.name}.prompting")


def _none_held_out(context: Context, labelled: list[Labelled]) -> list[Labelled]:
    """``labelled``, if none of it is held out: a reward model that was trained on held-out problems would look too
    good when it chooses among answers to them."""
    if held := sum(one.problem.split == "heldout" for one in labelled):
        raise InputError(
            f"stage {context.name}: labels: {held} of {len(labelled)} responses answer held-out problems, on which "
            "choices by reward models are measured; label training problems, and name these under `test`"
        )
    return labelled


def _of_unseen_problems(context: Context, taught: Sequence[Lesson], tested: Sequence[Lesson]) -> list[Lesson]:
    """The test labels of problems that are not trained on."""
    known = {lesson.labelled.structure for lesson in taught}
    found = [lesson for lesson in tested if lesson.labelled.structure not in known]
    if tested and not found:
        raise InputError(f"stage {context.name}: `test` labels only problems that are trained on; use others")
    if left := len(tested) - len(found):
        context.note(f"test: {left} of {len(tested)} responses left out, as their problems are trained on")
    return found


def _lessons(context: Context, settings: PrmSettings, tokenizer: Any, labelled: Sequence[Labelled]) -> list[Lesson]:
    from distill.prm.training import lessons

    ask = _ask(context, settings)
    found, dropped = lessons(
        labelled, tokenizer, settings.steps, lambda one: ask(one.problem).messages, settings.max_tokens
    )
    if labelled and not found:
        raise InputError(
            f"stage {context.name}: none of {len(labelled)} responses has a labelled step within "
            f"{settings.max_tokens} tokens; raise max_tokens"
        )
    if dropped:
        context.note(f"dropped {dropped} of {len(labelled)} responses: longer than {settings.max_tokens} tokens")
    return found


def _store_labels(context: Context, parts: Mapping[str, Sequence[Lesson]]) -> None:
    """Store the labels as rows; a repeated run gives the same rows."""
    store = store_of(context)
    for part, lessons in parts.items():
        store.append("step_labels", label_rows(context.fingerprint, [lesson.labelled for lesson in lessons], part))
    store.ingest()


def _train_settings(settings: PrmSettings, rate: float, width: int) -> TrainSettings:
    from distill.prm.head import NAME
    from distill.training.loop import TrainSettings
    from distill.training.optimizer import OptimizerSettings

    head_rate = settings.head_learning_rate or HEAD_STEP / width
    return TrainSettings(
        OptimizerSettings(
            rate, schedule=settings.schedule, warmup=settings.warmup, own_rates=((NAME, head_rate),)
        ),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        micro_batch_tokens=settings.micro_batch_tokens,
        precision=settings.precision,
        seed=settings.seed,
        threads=threads(settings.threads),
    )  # fmt: skip


def _publish(
    context: Context, settings: PrmSettings, network: Any, tokenizer: Any, figures: Mapping[str, Any]
) -> str:  # fmt: skip
    """Publish the directory that `distill.prm.files` describes; returns its content hash."""
    from distill.prm import head as heads

    head = heads.detach(network)
    built = exported(context, network, tokenizer, settings, "artifact")
    write_model_card(built / modelspec.MODEL, context, ABOUT, settings.student, settings.model_dump(mode="json"))
    about = files.About(
        format=files.FORMAT,
        rule=settings.steps,
        width=head.weight.numel(),
        likelihood=head.likelihood is not None,
        tokenizer=files.tokenizer_identity(tokenizer),
        start=settings.student,
        prompting=settings.prompting.model_dump(mode="json", exclude_defaults=True) if settings.prompting else None,
        figures=dict(figures),
    )
    files.write(built, head, about)
    write_prm_card(built, context, settings.student, figures)
    return context.publish(built)


def forecast(context: Context, settings: PrmSettings, _: Mapping[str, Mapping[str, Any]]) -> Forecast:
    """Forecasts the roll-outs, at most as many as are asked for: they take longer than training, and may cost money."""
    figures = foresee(context, [*settings.labels, *settings.test], settings.steps)
    return Forecast("roll-outs", figures.pop("total", None), figures={**figures, **foreseen(settings)})


def dependencies(settings: PrmSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    found = dict(modelspec.dependency(settings.student, hashes))
    for source in [*settings.labels, *settings.test]:
        if isinstance(source, RolloutLabels):
            found |= modelspec.dependency(source.policy, hashes)
            if source.verifier is not None:
                versions = verification.versions(source.verifier, upstream[source.rollouts], hashes)
                found |= {f"verifier {name}": version for name, version in versions.items()}
    return found


STAGE = Stage(
    kind="prm",
    version=5,
    about="train a process reward model on labelled steps",
    settings=PrmSettings,
    produces="prm",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
    refuse=lambda settings, _: lacking(settings) or (too_large(settings) if settings.body == "trained" else None),
)
