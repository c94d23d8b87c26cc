"""pretrain: train a small model from scratch on solutions by problem families' authors (the embedded models).

A randomly initialised Qwen3 of a few hundred thousand parameters is trained on an endless corpus that is a function
of the step, so there is no data file, and only the state of training has to be resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distill import catalog, pretraining
from distill.cards import FROM_NOTHING
from distill.families.base import code_of
from distill.stages.common import store_of
from distill.stages.devices import threads
from distill.stages.student import publish
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Operational, Output, Settings, Stage

if TYPE_CHECKING:
    from distill.training.batching import Example
    from distill.training.loop import TrainSettings

ABOUT = "A small reasoning model pretrained from scratch on the working of procedural authors."
Share = Annotated[float, Field(ge=0, le=1)]


class AuthorsSettings(Settings):
    """The authors of the corpus: the shares of problems that they work out, hurry through, or only guess."""

    worked: Share = 1.0
    """Share of problems worked out in full."""
    hasty: Share = 0.0
    """Share broken off after some lines and then guessed."""
    bare: Share = 0.0
    """Share guessed without any working."""
    slips: Share = 0.0
    """Probability of a mistake in a line of working."""


class ShapeSettings(Settings):
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 384


class PretrainSettings(Settings):
    families: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]
    """Problem families and their relative frequencies."""
    authors: AuthorsSettings = AuthorsSettings()
    shape: ShapeSettings = ShapeSettings()
    vocabulary: Annotated[int, Field(ge=261)] = 512
    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """AdamW's learning rate, for embeddings and norms."""
    muon_learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    """Muon's learning rate, for the inner matrices."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.025
    """Share of steps spent warming up."""
    threads: Annotated[int, Operational(), Field(ge=0)] = 0
    """0 uses all cores."""
    seed: int = 0


def run(context: Context, settings: PretrainSettings) -> Output:
    from distill.training.conversations import from_messages
    from distill.training.loop import train
    from distill.training.metrics import Recorder

    families = {name: catalog.resolve("families", name)() for name in settings.families}
    tokenizer = pretraining.tokenizer_of(families, settings.vocabulary)
    network = pretraining.network_of(tokenizer, settings.shape.model_dump(), settings.seed)
    authors = pretraining.Authors(**settings.authors.model_dump())

    def batch(step: int) -> Sequence[Example]:
        first = step * settings.batch_size
        return [example(index) for index in range(first, first + settings.batch_size)]

    def example(index: int) -> Example:
        prompt, response = pretraining.page(settings.families, families, authors, settings.seed, index)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return from_messages(tokenizer, str(index), turns)

    with Recorder(store_of(context), context, ("loss", "learning_rate")) as recorder:
        train(
            network, batch, _train_settings(settings), checkpoints=context.work / "checkpoints",
            stop=context.stopping, on_step=recorder, before_save=recorder.flush,
        )  # fmt: skip
    digest = publish(context, network, tokenizer, ABOUT, FROM_NOTHING, settings)
    parameters = sum(p.numel() for p in network.parameters())
    return Output(digest, {"parameters": parameters, "steps": settings.steps, **recorder.last()})


def _train_settings(settings: PretrainSettings) -> TrainSettings:
    from distill.training.loop import TrainSettings
    from distill.training.optimizer import OptimizerSettings

    optimizer = OptimizerSettings(
        settings.learning_rate, settings.muon_learning_rate, warmup=settings.warmup, final=0.0
    )  # fmt: skip
    return TrainSettings(
        optimizer,
        batch_size=settings.batch_size,
        steps=settings.steps,
        seed=settings.seed,
        threads=threads(settings.threads),
    )


def forecast(context: Context, settings: PretrainSettings, _: Mapping[str, Any]) -> Forecast:
    return Forecast("steps", settings.steps)


def dependencies(settings: PretrainSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    """The families' code writes the corpus: a changed author makes another model."""
    authors = hashes.of(str(pretraining.__file__))
    return {"corpus": content_hash([code_of(sorted(settings.families), hashes), authors])}


STAGE = Stage(
    kind="pretrain",
    about="pretrain a small model from scratch on procedurally written solutions",
    settings=PretrainSettings,
    produces="model",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
)
