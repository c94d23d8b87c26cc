"""The process reward model of a grpo stage: find it, load it, and check it against the student's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill.modelspec import MODEL, Model
from distill.prm import files
from distill.stages.devices import Held
from pipeline.fingerprint import FileHashes
from pipeline.stage import Context
from rl.stages.options import ProcessSettings

if TYPE_CHECKING:
    from rl.process import ProcessRewards


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
