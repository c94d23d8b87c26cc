"""Shared by the stages that train a student on the traces of a selection (sft, gkd): settings and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.prompting import Ask, Prompting
from distill.stages.common import store_of
from distill.stages.devices import threads
from distill.stages.student import WriterSettings
from distill.store.records import Row, kept, problem_of
from pipeline.errors import InputError
from pipeline.stage import Context, Input

if TYPE_CHECKING:
    from distill.training.batching import Example
    from distill.training.loop import TrainSettings

MUCH_DROPPED = 0.03
"""Above this share of over-long examples, a note warns: what is left out is the longest reasoning."""


class SupervisedSettings(WriterSettings):
    """Settings of the stages that train on the traces of a selection."""

    data: Annotated[str, Input(accepts=("selection",))]
    prompting: Prompting = None
    """How the student is prompted (`system`, `template`), now and in later use. Default: the plain problem, whatever
    the teacher's prompt was."""
    learning_rate: Annotated[float | None, Field(gt=0)] = None
    """Default: from the model's hidden size. At 2,000 it is 5e-5 for all weights, and ten times that for LoRA."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of steps spent warming up."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples per optimizer step."""
    epochs: Annotated[int, Field(ge=1)] = 1
    max_tokens: Annotated[int, Field(ge=1)] = 4096
    """Longer examples are dropped and counted, never truncated."""

    @model_validator(mode="after")
    def _answers_by_itself(self) -> SupervisedSettings:
        if self.prompting and (self.prompting.prefill or self.prompting.examples is not None):
            raise ValueError(
                "prompting: only `system` and `template` can be set here; a student learns to answer by itself"
            )
        return self

    def steps(self, expected: Mapping[str, Mapping[str, Any]]) -> int | None:
        """The number of optimizer steps; until the selection exists, as if all traces were kept."""
        data = expected.get(self.data, {})
        examples = data.get("kept", data.get("traces"))
        return None if examples is None else -(-examples // self.batch_size) * self.epochs

    def unteachable(self, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Why there is nothing to train on, by the figures of upstream stages; None if there is something."""
        if figures.get(self.data, {}).get("kept") != 0:
            return None
        return (
            f"{self.data} kept no trace to train on; `distill traces stats` shows the verdicts, and `rejected` in "
            "`distill status --json` the reasons"
        )


Lesson = tuple[Row, "Example"]
"""A selected trace with its problem, and the training example made of it."""


def supervised(settings: SupervisedSettings, rate: float) -> TrainSettings:
    """``rate`` is the learning rate, which the settings may leave open."""
    from distill.training.loop import TrainSettings
    from distill.training.optimizer import OptimizerSettings

    return TrainSettings(
        OptimizerSettings(
            rate,
            norm_learning_rate=settings.norm_learning_rate,
            schedule=settings.schedule,
            warmup=settings.warmup,
        ),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        micro_batch_tokens=settings.micro_batch_tokens,
        precision=settings.precision,
        seed=settings.seed,
        threads=threads(settings.threads),
        devices=settings.devices,
        parallel=settings.parallel,
    )


def learning_rate(context: Context, settings: SupervisedSettings, network: Any) -> tuple[float, dict[str, str]]:
    """The rate, and its entry in the card if the settings leave it open."""
    from distill.training.student import default_learning_rate

    if settings.learning_rate is not None:
        return settings.learning_rate, {}
    rate = default_learning_rate(network)
    what, width = "LoRA" if settings.lora else "all weights", network.config.get_text_config().hidden_size
    context.note(f"learning_rate {rate} for {what}, from the model's hidden size of {width}")
    return rate, {"learning_rate": f"{rate} (from the model's hidden size)"}


def lessons(
    context: Context, settings: SupervisedSettings, network: Any, tokenizer: Any, ask: Ask, thinking: bool = True
) -> tuple[list[Lesson], list[str]]:
    """The training examples, and the keys of the traces that are too long."""
    rows = kept(store_of(context), context.inputs[settings.data])
    every = [example_of(tokenizer, row, ask, thinking) for row in rows]
    dropped = [example.key for example in every if len(example) > settings.max_tokens]
    if len(dropped) == len(rows):
        raise InputError(
            f"stage {context.name}: all {len(rows)} examples are longer than {settings.max_tokens} tokens (the "
            f"shortest has {min(map(len, every))}); {_remedy(network, settings.max_tokens)}"
        )
    if dropped:
        share = len(dropped) / len(rows)
        remedy = _remedy(network, settings.max_tokens)
        warning = f"; the longest reasoning is not learned: {remedy}" if share > MUCH_DROPPED else ""
        context.note(
            f"dropped {len(dropped)} of {len(rows)} examples ({share:.1%}; the first is trace {dropped[0][:12]}): "
            f"longer than {settings.max_tokens} tokens{warning}"
        )
    found = [lesson for lesson in zip(rows, every, strict=True) if len(lesson[1]) <= settings.max_tokens]
    check_positions(context.name, network, [example for _, example in found])
    return found, dropped


def _remedy(network: Any, max_tokens: int) -> str:
    """What to do about examples that are too long. Raising `max_tokens` beyond the model's positions would not help."""
    from distill.engines.prefill import positions_limit

    limit = positions_limit(network)
    if limit is None or limit > max_tokens:
        return "raise max_tokens"
    return f"this student has only {limit} positions"


def example_of(tokenizer: Any, row: Row, ask: Ask, thinking: bool = True) -> Example:
    """A trace in the student's own template and tokens, whatever its teacher was."""
    from distill.training.conversations import conversation, from_messages

    thought = row["thinking"] if thinking else ""
    messages = conversation(ask(problem_of(row)).messages, thought, row["answer"])
    return from_messages(tokenizer, row["trace_key"], messages)


def check_positions(stage: str, network: Any, examples: Sequence[Example]) -> None:
    """Refuse examples with more tokens than the model has positions: beyond them, it returns noise or crashes."""
    from distill.engines.prefill import positions_limit

    limit = positions_limit(network)
    longest = max(examples, key=len)
    if limit is not None and len(longest) > limit:
        raise InputError(
            f"stage {stage}: trace {longest.key[:12]} has {len(longest)} tokens, but the student has only {limit} "
            f"positions (by its config.json); lower max_tokens to {limit}, which drops longer traces"
        )
