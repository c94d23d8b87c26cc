"""sft: fine-tune a student on the selected traces, with LoRA or all weights.

Traces that are too long are dropped and reported, never truncated: without its answer and its end token, a trace would
teach endless thinking. Training can be measured on held-out problems (`heldout`), and then keeps the best weights. Each
trace's loss is stored. Before it is published, the student has to show that its answers end (`stop_test`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from distill import modelspec, verification
from distill.lacking import lacking
from distill.prompting import Ask, asking
from distill.randomness import held_out, permutation
from distill.stages.common import store_of
from distill.stages.devices import check_memory, foreseen, too_large
from distill.stages.student import exported, load_student, publish
from distill.stages.supervised import Lesson, SupervisedSettings, learning_rate, lessons, supervised
from distill.store.records import problem_of, record_losses
from distill.types import Problem, Sampling
from pipeline.errors import InputError, PipelineError
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Operational, Output, Settings, Stage, later

if TYPE_CHECKING:
    from distill.training.early_stopping import Heldout
    from distill.training.learner import Learner

ABOUT = "A student fine-tuned on a teacher's verified reasoning traces."
STOP_PROMPTS = 32
"""Training prompts that the stop test samples answers to."""


class HeldoutSettings(Settings):
    """Holds out the traces of some problems, to decide when to stop; the best weights are kept."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of problems held out. All traces of a problem, and problems of the same structure, stay on one side."""
    every: Annotated[int, Field(ge=1)] = 50
    """Optimizer steps between measurements. It is also measured before the first step and after the last."""
    patience: Annotated[int | None, Field(ge=1)] = 3
    """Stop after this many measurements without improvement; `null` never stops early. The best weights are kept. If
    every step made the student worse, these are the initial ones, and a note says so."""
    measure: Literal["loss", "pass_at_1"] = "loss"
    """What has to improve: the held-out traces' `loss`, or also by sampling `pass_at_1`: the share of held-out problems
    solved (greedily, by each problem's own verifier)."""


class SftSettings(SupervisedSettings):
    thinking: bool = True
    """`false` trains on the answers alone, without the reasoning, as a control."""
    heldout: HeldoutSettings | None = later()
    """Early stopping on held-out problems."""
    stop_test: Annotated[float | None, Operational(), Field(gt=0, le=1)] = 0.75
    """Minimum share of sampled answers to training prompts that must end by themselves, within the length of the
    longest training answer; otherwise the student is not published. `null` skips the test."""


def run(context: Context, settings: SftSettings) -> Output:
    from distill.training.loop import train
    from distill.training.metrics import Recorder

    start = modelspec.find(settings.student, context.workspace, context.inputs, context.hashes)
    check_memory(context, settings, start)
    network, tokenizer = load_student(settings, start)
    rate, chosen = learning_rate(context, settings, network)
    ask = asking(settings.prompting, key=f"{context.name}.prompting")
    found, dropped = lessons(context, settings, network, tokenizer, ask, settings.thinking)
    taught, held = _split(context.name, settings, found)
    limit = max(example.supervised for _, example in taught)
    with (
        Recorder(store_of(context), context, ("loss", "heldout_loss", "learning_rate"), settings.log_to) as recorder,
        _heldout_measure(context, settings, network, tokenizer, held, ask, limit) as heldout,
    ):
        result = train(
            network, [example for _, example in taught], supervised(settings, rate),
            checkpoints=context.work / "checkpoints", stop=context.stopping, on_step=recorder,
            before_save=recorder.flush, heldout=heldout,
        )  # fmt: skip
    record_losses(store_of(context), context.fingerprint, result.losses)
    if result.best_step == 0:
        context.note(
            "nothing was learned: on held-out problems, every step was worse than the student that training began "
            "with, whose weights are kept; lower learning_rate, or check the training data"
        )
    elif result.steps < (planned := -(-len(taught) // settings.batch_size) * settings.epochs):
        context.note(
            f"stopped early, after step {result.steps} of {planned}: the held-out measure was best after step "
            f"{result.best_step}, whose weights are kept"
        )
    _stop_test(context, settings, network, tokenizer, taught, ask, limit)
    digest = publish(context, network, tokenizer, ABOUT, settings.student, settings, chosen)
    figures: dict[str, Any] = {"examples": len(taught), "dropped": len(dropped)}
    if dropped:
        figures |= {"dropped_share": round(len(dropped) / (len(found) + len(dropped)), 4)}
    figures |= {"learning_rate": rate, "steps": result.steps}
    of_kept = recorder.last(result.best_step)
    curves = ("loss", "heldout_pass_at_1", "heldout_loss")
    best = {"best_step": result.best_step} if held else {}
    figures |= best | {name: of_kept[name] for name in curves if name in of_kept}
    return Output(digest, figures | ({"heldout": len(held)} if held else {}))


def _split(stage: str, settings: SftSettings, lessons: list[Lesson]) -> tuple[list[Lesson], list[Lesson]]:
    """(training lessons, held-out lessons), split by problem: all that share a structure are on one side."""
    if settings.heldout is None:
        return lessons, []
    groups = [row["structure"] or row["prompt_key"] for row, _ in lessons]
    if len(set(groups)) < 2:
        raise InputError(
            f"stage {stage}: heldout: all examples answer one problem, so none can be held out; leave `heldout` out"
        )
    held = held_out(groups, settings.heldout.share, settings.seed, "heldout")
    sides: tuple[list[Lesson], list[Lesson]] = ([], [])
    for group, lesson in zip(groups, lessons, strict=True):
        sides[group in held].append(lesson)
    return sides


@contextmanager
def _heldout_measure(
    context: Context, settings: SftSettings, network: Any, tokenizer: Any, held: list[Lesson], ask: Ask, limit: int
) -> Iterator[Heldout | None]:  # fmt: skip
    """What training measures on the held-out lessons; None without ``heldout``."""
    from distill.training import trials
    from distill.training.early_stopping import Heldout, heldout_loss
    from distill.training.sampler import StudentSampler

    if settings.heldout is None:
        yield None
        return
    examples, every, patience = [e for _, e in held], settings.heldout.every, settings.heldout.patience

    def loss(learner: Learner) -> tuple[float, Mapping[str, float]]:
        value = heldout_loss(learner, examples)
        return value, {"heldout_loss": value}

    if settings.heldout.measure == "loss":
        yield Heldout(loss, every, patience)
        return
    problems = _problems(held)
    asked = trials.requests(problems, ask, Sampling(0.0, max_tokens=limit, seed=settings.seed))
    with (
        closing(StudentSampler(trials.open_engine(network, tokenizer))) as sampler,
        verification.pool_of(store_of(context), context) as pool,
    ):

        def solved(learner: Learner) -> tuple[float, Mapping[str, float]]:
            sampler.attach(learner)
            share = trials.pass_at_1(sampler, pool, problems, asked, context.stopping)
            return -share, {**loss(learner)[1], "heldout_pass_at_1": share}

        yield Heldout(solved, every, patience)


def _stop_test(
    context: Context, settings: SftSettings, network: Any, tokenizer: Any, taught: list[Lesson], ask: Ask, limit: int
) -> None:  # fmt: skip
    """Fail if the student does not end its answers to training prompts. It is left on disk, for people to try it."""
    from distill.training import trials

    if settings.stop_test is None:
        return
    there = list(_problems(taught).items())
    chosen = permutation(len(there), settings.seed, "stop test")[:STOP_PROMPTS]
    sampling = Sampling(max_tokens=limit, seed=settings.seed)
    asked = trials.requests(dict(there[i] for i in chosen), ask, sampling)
    cut = trials.count_unfinished(network, tokenizer, asked, context.stopping)
    if len(asked) - cut < settings.stop_test * len(asked):
        left = exported(context, network, tokenizer, settings, "unpublished") / modelspec.MODEL
        raise PipelineError(
            f"stage {context.name}: the student does not end {cut} of {len(asked)} answers to training prompts within "
            f"{limit} tokens, the longest of its training answers, and is not published; train it longer (epochs, "
            f"learning_rate), or more slowly if its loss rose, or lower stop_test ({settings.stop_test}; null turns it "
            f'off), which does not train again. To look at it: `distill ask "..." --model {quote(str(left))}`'
        )


def _problems(lessons: list[Lesson]) -> dict[str, Problem]:
    return {row["problem_key"]: problem_of(row) for row, _ in lessons}


def refuse(settings: SftSettings, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
    return settings.unteachable(figures) or lacking(settings) or too_large(settings)


def forecast(context: Context, settings: SftSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    steps = settings.steps(expected)
    return Forecast("steps") if steps is None else Forecast("steps", steps, 0, foreseen(settings))


def dependencies(settings: SftSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    found = dict(modelspec.dependency(settings.student, hashes))
    data = upstream[settings.data]
    if settings.heldout and settings.heldout.measure == "pass_at_1":  # judged by the problems of these verdicts
        found["verdicts"] = data.identity.inputs["verdicts"]
        if "verifiers" in data.figures:  # else nothing was kept
            found["verifiers"] = content_hash(verification.versions(None, data, hashes))
    return found


STAGE = Stage(
    kind="sft",
    about="fine-tune a student on the selected traces",
    settings=SftSettings,
    produces="student",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
    refuse=refuse,
)
