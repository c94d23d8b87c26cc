"""Engines: everything that samples, behind one protocol (`distill.engines.base`). They are opened here, by options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import catalog, modelspec
from distill.engines.base import Engine, Stopping, never
from distill.engines.options import OpenAIOptions, TransformersOptions, VllmOptions
from distill.modelspec import Model
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, canonical
from pipeline.stage import Context, result_settings

if TYPE_CHECKING:
    from distill.spending import Spending

Options = TransformersOptions | VllmOptions | OpenAIOptions


def model_of(name: str, options: Options, context: Context) -> Model:
    """The model that a setting names, without loading it. At an endpoint, its identity is the base URL and its name."""
    if isinstance(options, OpenAIOptions):
        return _at_endpoint(name, options)
    return _with_options(modelspec.find(name, context.workspace, context.inputs, context.hashes), options)


def _with_options(model: Model, options: Options) -> Model:
    return replace(model, identity=model.identity + _identity_suffix(options))


def _identity_suffix(options: Options) -> str:
    """The options that change a model's samples, as a suffix of its identity: half precision samples differently
    from full precision. Empty for the embedded engine's defaults."""
    usual = result_settings(TransformersOptions())
    own = {key: value for key, value in result_settings(options).items() if value != usual.get(key)}
    return "".join(f"+{key}={_as_text(value)}" for key, value in sorted(own.items()))


def _as_text(value: Any) -> str:
    return canonical(value) if isinstance(value, Mapping) else str(value)


def standing_model(name: str, options: Options, hashes: FileHashes) -> Model:
    """As `model_of`, outside of a stage (for a judge): the model cannot be one that a stage of the pipeline makes."""
    if isinstance(options, OpenAIOptions):
        return _at_endpoint(name, options)
    if name.startswith(modelspec.STAGE):
        raise InputError(f"model {name}: a stage's output cannot be used here; name a directory or a hub id")
    return _with_options(modelspec.find(name, Path(), {}, hashes), options)


def _at_endpoint(name: str, options: OpenAIOptions) -> Model:
    if name.startswith(("embedded:", modelspec.STAGE)):
        raise InputError(f"model {name}: an openai engine needs the model's name at {options.base_url}")
    return Model(name, _endpoint_identity(name, options))


def _endpoint_identity(name: str, options: OpenAIOptions) -> str:
    extra = f"+extra_body={canonical(options.extra_body)}" if options.extra_body else ""
    return f"{options.known_as}#{name}{extra}"


def model_dependency(name: str, options: Options, hashes: FileHashes) -> Mapping[str, str]:
    if isinstance(options, OpenAIOptions):
        return {f"model {name}": _endpoint_identity(name, options)}
    return modelspec.dependency(name, hashes)


def open_engine(
    options: Options,
    model: Model,
    note: Callable[[str], None] = lambda text: None,
    spending: Spending | None = None,
    stopping: Stopping = never,
) -> Engine:
    """Load the model (slow). The caller closes the engine once the completions it got are durable. ``spending`` records
    and caps the calls to an endpoint across runs; without it, they are recorded in memory only. vLLM in processes of
    its own raises `Stopped` once ``stopping`` returns True; what loads in this process loads to the end."""
    if model.adapter and options.kind == "openai":
        raise InputError(f"model {model.adapter}: an endpoint cannot load an adapter's directory; give its name there")
    factory: Callable[..., Any] = catalog.resolve("engines", options.kind)
    if isinstance(options, OpenAIOptions):
        opened: Engine = factory(model, options, note, partial(spending.open, model.identity) if spending else None)
        return opened
    stops: dict[str, Any] = {"stopping": stopping} if isinstance(options, VllmOptions) else {}
    engine: Engine = factory(model, options, note, **stops)
    return engine
