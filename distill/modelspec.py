"""Resolve the name of a model, and compute its identity.

A model is named in one of four ways, the same in YAML and on the command line:

- ``embedded:teacher``, ``embedded:student-base``: shipped with the project;
- ``stage:sft``: the student made by that stage of the pipeline;
- ``path/to/directory``: a Hugging Face model directory, or a peft adapter that names its base model;
- ``org/name`` or ``org/name@revision``: from the hub (or its local cache).

The identity is a content hash of weights, configuration, tokenizer and chat template, for an adapter together with its
base's identity. For a hub model it is the name with its commit (`distill.hub`). It goes into every trace key. A model
card may change without any effect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from distill.hub import check_reachable, commit_of
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Input

EMBEDDED = Path(__file__).parent / "models"
CONTENT = {".safetensors", ".json", ".jinja", ".model", ".txt", ".bin"}
ADAPTER_CONFIG = "adapter_config.json"
HUB_NAME = r"[\w.-]+/[\w.-]+(@[\w./-]+)?"
STAGE = "stage:"
MODEL = "model"
"""The subdirectory of a student artifact that holds the complete model."""


def check_name(name: str) -> str:
    """Return ``name`` if it can be a model, otherwise raise ValueError. Settings use it, so that typos are found before
    anything is paid for."""
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
    """A resolved model: where to load it from (a directory or hub name) and its identity.

    ``adapter`` is the directory of a peft adapter to load on top of ``source``.
    """

    source: str
    identity: str
    revision: str | None = None
    adapter: str | None = None


NO_TEMPLATE = (
    "its tokenizer has no chat template, which a student needs; put one into the model's directory as "
    "chat_template.jinja (for example, that of a chat model of the same family)"
)


def has_template(directory: Path) -> bool:
    """Whether a model's directory holds a chat template; also True if only loading can show it."""
    if is_adapter(directory) or any((directory / f"chat_template.{form}").is_file() for form in ("jinja", "json")):
        return True
    try:
        return bool(json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return True


NO_END = (
    "its chat template ends turns without a special token and its tokenizer has no eos_token, so a student could not "
    'learn to stop; set one in its tokenizer_config.json ("eos_token")'
)
PLAIN_TOKENIZERS = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes whose end token is named in the files; other classes have a built-in one."""


def has_end(directory: Path) -> bool:
    """Whether a model's directory names a token that ends a turn; also True if only loading can show it."""
    try:
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        known = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        special = [token["content"] for token in known if token["special"]]
        if is_adapter(directory) or config.get("eos_token") or config.get("tokenizer_class") not in PLAIN_TOKENIZERS:
            return True
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return True
    named = ("special_tokens_map.json", "generation_config.json", "config.json")
    if any(re.search(r'"eos_token(_id)?":(?!\s*null)', text) for text in _texts(directory, named)):
        return True
    template = (
        f"{config.get('chat_template')} {' '.join(_texts(directory, ('chat_template.jinja', 'chat_template.json')))}"
    )
    return any(token in template for token in special)


def _texts(directory: Path, names: Iterable[str]) -> list[str]:
    return [path.read_text(encoding="utf-8") for name in names if (path := directory / name).is_file()]


def directory_of(name: str) -> Path | None:
    """The directory of an ``embedded:...`` name or a path; None for hub and stage names."""
    if name.startswith("embedded:"):
        return EMBEDDED / name.removeprefix("embedded:")
    path = Path(name).expanduser()
    return path if path.is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1 else None


def check_directory(path: Path, name: str) -> None:
    """Raise `InputError` if a model directory lacks something, before anything heavy is loaded."""
    if not path.is_dir():
        known = ", ".join(f"embedded:{p.name}" for p in sorted(EMBEDDED.glob("*")) if p.is_dir())
        raise InputError(f"model {name}: {path} is not a directory; shipped models: {known or 'none'}")
    if is_adapter(path):
        _check_adapter(path, name)
    else:
        _check_whole(path, name)


def _check_whole(path: Path, name: str) -> None:
    if not (path / "config.json").is_file():
        inside = f"; the model of a stage is in {path / MODEL}" if (path / MODEL / "config.json").is_file() else ""
        raise InputError(f"model {name}: {path} has no config.json: not a Hugging Face model directory{inside}")
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
    """Whether the directory holds a peft adapter and no complete model."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def base_of(path: Path, name: str) -> str:
    """The name of an adapter's base model.

    A relative path is resolved from the adapter's directory, then from the working directory. A bare name may be that
    of a shipped model. A path that no longer exists may have moved together with the adapter (`_moved`).
    """
    try:
        config = json.loads((path / ADAPTER_CONFIG).read_text())
        kind, base, revision = (config.get(k) for k in ("peft_type", "base_model_name_or_path", "revision"))
    except (ValueError, AttributeError):
        raise InputError(f"model {name}: {path / ADAPTER_CONFIG} is not valid JSON of an adapter") from None
    if kind != "LORA":
        raise InputError(f"model {name}: {path} is an adapter of type {kind}; only LORA ones can be loaded")
    if not isinstance(base, str) or not base:
        raise InputError(f"model {name}: {path / ADAPTER_CONFIG} names no base model (base_model_name_or_path)")
    for place in (path / base, Path(base).expanduser(), EMBEDDED / base, *_moved(path, Path(base))):
        if place.is_dir() and place != path:
            return str(place.absolute())
    if not re.fullmatch(HUB_NAME, base):
        raise InputError(f"model {name}: its base model {base}, named in {path / ADAPTER_CONFIG}, does not exist")
    return f"{base}@{revision}" if revision and "@" not in base else base


def _moved(adapter: Path, base: Path) -> Iterator[Path]:
    """Where an adapter's base may have moved to.

    It may be the student of another stage in the adapter's workspace, where artifacts are directories side by side,
    named by their content. Or it may be a shipped model in this installation.
    """
    if base.name == MODEL:
        yield adapter.resolve().parent.parent / base.parent.name / MODEL
    if base.parts[-3:-1] == EMBEDDED.parts[-2:]:
        yield EMBEDDED / base.name


def _check_adapter(path: Path, name: str) -> None:
    base = base_of(path, name)
    if not any((path / f"adapter_model{suffix}").is_file() for suffix in (".safetensors", ".bin")):
        raise InputError(f"model {name}: {path} is incomplete: it has no weights (adapter_model.safetensors)")
    if (directory := directory_of(base)) is not None:
        if is_adapter(directory):
            raise InputError(f"model {name}: its base model {base} is an adapter too; merge that one first")
        try:
            check_directory(directory, base)
        except InputError as error:
            raise InputError(f"model {name}: its base model cannot be used: {error}") from None


def check_at_hand(name: str, loaded: bool = True) -> None:
    """Raise `InputError` for a hub model, or an adapter's hub base, that is neither in the cache nor reachable.

    A model that may not need to be ``loaded`` passes if its commit is known: all its wanted samples may be in the store
    under that commit.
    """
    path = directory_of(name)
    if path is None:
        repository, revision = _hub_name(name)
        if loaded or commit_of(repository, revision) is None:
            _check_at_hub(repository, revision)
    elif is_adapter(path):
        check_at_hand(base_of(path, name), loaded)


@lru_cache(maxsize=256)
def _check_at_hub(repository: str, revision: str | None) -> None:
    """Cached, because a run checks before each of its stages: it must not fail because the hub is briefly unreachable
    while nothing is needed from it."""
    check_reachable(repository, commit_of(repository, revision) or revision)


def check_hub_name(name: str) -> None:
    if not re.fullmatch(HUB_NAME, name):
        raise InputError(f"model {name!r}: expected embedded:NAME, stage:NAME, a directory, or a hub name org/name")


def identity_of(name: str, hashes: FileHashes) -> str:
    """Identity of an ``embedded:``, path or hub model (for a stage's student, see `find`).

    That of a hub model contains its commit if it can be found out. May ask the hub.
    """
    path = directory_of(name)
    if path is None:
        repository, revision = _hub_name(name)
        known = commit_of(repository, revision) or revision
        return f"hub:{repository}@{known}" if known else f"hub:{repository}"
    check_directory(path, name)
    files = [p for p in sorted(path.iterdir()) if p.suffix in CONTENT and p.is_file()]
    content = [[p.name, value] for p, value in zip(files, hashes.each(files, f"model {name}"), strict=True)]
    return content_hash([*content, ["base", identity_of(base_of(path, name), hashes)]] if is_adapter(path) else content)


def _hub_name(name: str) -> tuple[str, str | None]:
    check_hub_name(name)
    repository, _, revision = name.partition("@")
    return repository, revision or None


def find(name: str, workspace: Path, inputs: Mapping[str, Manifest], hashes: FileHashes) -> Model:
    """Where to load a model from. ``inputs`` are the manifests of the upstream stages."""
    if name.startswith(STAGE):
        manifest = inputs[name.removeprefix(STAGE)]
        assert manifest.artifact is not None
        directory = workspace / manifest.artifact / MODEL
        return Model(str(directory), identity_of(str(directory.absolute()), hashes))
    identity, path = identity_of(name, hashes), directory_of(name)
    if path is None:
        repository, revision = _hub_name(name)
        return Model(repository, identity, commit_of(repository, revision) or revision)
    if is_adapter(path):
        return replace(find(base_of(path, name), workspace, inputs, hashes), identity=identity, adapter=str(path))
    return Model(str(path), identity)


def dependency(name: str, hashes: FileHashes) -> dict[str, str]:
    """What a stage that uses this model depends on besides its inputs."""
    return {} if name.startswith(STAGE) else {f"model {name}": identity_of(name, hashes)}
