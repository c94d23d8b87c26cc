"""Which model is meant, and what its identity is.

A model is named in one of four ways, the same in YAML and on the command line:

- ``embedded:teacher``, ``embedded:student-base``: shipped with the project;
- ``stage:sft``: the student made by that stage of the pipeline;
- ``path/to/directory``: a Hugging Face model directory, or one that holds a peft LoRA adapter, which names its base
  in its ``adapter_config.json``;
- ``org/name`` or ``org/name@revision``: from the hub (or its local cache).

The identity is a content hash of weights, configuration, tokenizer and chat template, or the hub
name with its revision; an adapter's covers its base. It goes into every trace key; a model card may change
without any effect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Input

EMBEDDED = Path(__file__).parent / "models"
CONTENT = {".safetensors", ".json", ".jinja", ".model", ".txt", ".bin"}
STAGE = "stage:"
ADAPTER = "adapter_config.json"
MODEL = "model"
"""The subdirectory of a student artifact that holds the whole model."""


def check_name(name: str) -> str:
    """``name``, if it can be a model; for settings, so that a slip is told before anything is paid for."""
    try:
        if not name.startswith(STAGE):
            path = directory_of(name)
            check_directory(path, name) if path else check_hub_name(name)
    except InputError as error:
        raise ValueError(str(error)) from None
    return name


StageOrName = Annotated[str, Input(accepts=("student", "model"), prefix=STAGE)]
ModelName = Annotated[StageOrName, AfterValidator(check_name)]


@dataclass(frozen=True, slots=True)
class Model:
    """A model found: where to load it from (a directory or hub name) and its identity.

    ``adapter`` is the directory of a LoRA adapter that goes on top of it.
    """

    source: str
    identity: str
    revision: str | None = None
    adapter: str | None = None


def directory_of(name: str) -> Path | None:
    """The directory meant by ``embedded:...`` or a path; None for hub and stage names."""
    if name.startswith("embedded:"):
        return EMBEDDED / name.removeprefix("embedded:")
    path = Path(name).expanduser()
    return path if path.is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1 else None


def check_directory(path: Path, name: str) -> None:
    """Say what a model directory lacks, before anything heavy is loaded."""
    if not path.is_dir():
        known = ", ".join(f"embedded:{p.name}" for p in sorted(EMBEDDED.glob("*")) if p.is_dir())
        raise InputError(f"model {name}: {path} is not a directory; shipped models: {known or 'none'}")
    if is_adapter(path):
        base = base_of(path, name)
        if (below := directory_of(base)) is not None:
            check_directory(below, base)
        return
    if not (path / "config.json").is_file():
        raise InputError(f"model {name}: {path} has no config.json: not a Hugging Face model directory")
    try:
        json.loads((path / "config.json").read_text())
    except ValueError:
        raise InputError(f"model {name}: {path / 'config.json'} is not valid JSON") from None
    index = path / "model.safetensors.index.json"
    try:
        parts = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else []
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"model {name}: {index} is not an index of weights") from None
    if missing := [part for part in parts if not (path / part).is_file()]:
        raise InputError(f"model {name}: {path} is incomplete: {missing[0]} is missing")
    if not parts and not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise InputError(f"model {name}: {path} is incomplete: it has no weights (*.safetensors)")
    if not (path / "tokenizer_config.json").is_file() and not (path / "tokenizer.json").is_file():
        raise InputError(f"model {name}: {path} is incomplete: it has no tokenizer")


def is_adapter(path: Path) -> bool:
    """Whether a directory holds a peft adapter and no model of its own."""
    return (path / ADAPTER).is_file() and not (path / "config.json").is_file()


def base_of(path: Path, name: str) -> str:
    """The base model that the adapter in ``path`` is for, as a model's name. A relative path is looked for
    from here, then from the adapter."""
    try:
        config = json.loads((path / ADAPTER).read_text())
        kind, base, revision = config.get("peft_type"), config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, AttributeError):
        raise InputError(f"model {name}: {path / ADAPTER} is not valid JSON") from None
    if kind != "LORA":
        raise InputError(f"model {name}: {path} holds an adapter of the type {kind}; only LoRA can be used")
    if not any(path.glob("adapter_model.*")):
        raise InputError(f"model {name}: {path} is incomplete: it has no weights (adapter_model.safetensors)")
    if not isinstance(base, str) or not base:
        raise InputError(f"model {name}: {path / ADAPTER} names no base model (base_model_name_or_path)")
    below = next((at for at in (Path(base).expanduser(), path / base) if at.is_dir()), None)
    if below is None and (directory_of(base) is not None or base.count("/") != 1):
        raise InputError(
            f"model {name}: its base model {base} is not there; put the right directory or hub id into "
            f"base_model_name_or_path of {path / ADAPTER}"
        )
    if below is not None and is_adapter(below):
        raise InputError(f"model {name}: its base model {base} is an adapter too; merge that one into its base first")
    if below is not None:
        return str(below.absolute())
    return f"{base}@{revision}" if revision else base


def check_hub_name(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name):
        raise InputError(f"model {name!r}: expected embedded:NAME, stage:NAME, a directory, or a hub name org/name")


def identity_of(name: str, hashes: FileHashes) -> str:
    """Identity of an ``embedded:``, path or hub model (a stage's student has its artifact's)."""
    path = directory_of(name)
    if path is None:
        check_hub_name(name)
        return f"hub:{name}"
    check_directory(path, name)
    files = [[p.name, hashes.of(p)] for p in sorted(path.iterdir()) if p.suffix in CONTENT]
    return content_hash(["adapter", identity_of(base_of(path, name), hashes), files] if is_adapter(path) else files)


def find(name: str, workspace: Path, inputs: Mapping[str, Manifest], hashes: FileHashes) -> Model:
    """Where to load a model from. ``inputs`` are the manifests of the upstream stages."""
    if name.startswith(STAGE):
        manifest = inputs[name.removeprefix(STAGE)]
        assert manifest.artifact is not None
        directory = workspace / manifest.artifact / MODEL
        return Model(str(directory), identity_of(str(directory.absolute()), hashes))
    path = directory_of(name)
    if path is not None and is_adapter(path):
        base = find(base_of(path, name), workspace, inputs, hashes)
        return Model(base.source, identity_of(name, hashes), base.revision, str(path))
    if path is not None:
        return Model(str(path), identity_of(name, hashes))
    hub, _, revision = name.partition("@")
    return Model(hub, identity_of(name, hashes), revision or None)


def dependency(name: str, hashes: FileHashes) -> dict[str, str]:
    """What a stage using this model depends on besides its inputs."""
    return {} if name.startswith(STAGE) else {f"model {name}": identity_of(name, hashes)}
