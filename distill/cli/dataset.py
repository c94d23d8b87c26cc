"""``distill traces export`` and ``import``, and ``distill card``: move traces out of a store and into one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from pydantic import ValidationError

from distill.cli import display
from distill.cli.open import load, software, store_at
from distill.dataset import card as cards
from distill.dataset import choice, facts, write
from distill.stages import import_traces
from distill.store import Store
from pipeline.document import parse_value
from pipeline.errors import InputError
from pipeline.files import write_atomic
from pipeline.lock import workspace_lock
from pipeline.mistakes import mistake
from pipeline.stopping import Stopper
from pipeline.workspace import StageContext, Workspace

LEFT_OUT = {"repeats": "repeats left out", "skipped": "rows skipped"}
"""What an import leaves out, by figure."""


def export(
    target: Path, pipeline: Path, workspace: Path | None, selection: str | None, asked: Mapping[str, Any],
    force: bool, as_json: bool,
) -> None:  # fmt: skip
    store = store_at(pipeline, workspace)
    found = choice.chosen_by(store.path.parent, selection, asked)
    rows = write.export(store, found, target, force, _text_of(pipeline, workspace))
    if as_json:
        print(json.dumps({"traces": rows, "target": str(target)}))
    else:
        print(f"wrote {rows:,} traces to {target}")


def card(
    pipeline: Path, workspace: Path | None, selection: str | None, asked: Mapping[str, Any], output: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    store = store_at(pipeline, workspace)
    with store.reading() as connection:
        found = choice.chosen_by(store.path.parent, selection, asked)
        if not write.choose(connection, found):
            raise InputError(f"{store.path}: holds no such trace; `distill traces stats` shows what it holds")
        described = facts.gather(connection, found, store.path.parent, _text_of(pipeline, workspace))
    text = json.dumps(described, default=str, ensure_ascii=False) + "\n" if as_json else cards.render(described)
    if output is None:
        print(text, end="")
    elif output.exists():
        raise InputError(f"{output}: exists already; name another file")
    else:
        write_atomic(output, text)


def _text_of(pipeline: Path, workspace: Path | None) -> Path | None:
    """The pipeline's file, if it belongs to the workspace. A workspace that was given directly may have nothing to do
    with the default pipeline."""
    if not pipeline.is_file():
        return None
    try:
        return pipeline if workspace is None or load(pipeline).workspace.resolve() == workspace.resolve() else None
    except InputError:
        return None


def import_file(
    file: Path, pipeline: Path, workspace: Path | None, asked: Mapping[str, Any], more: Sequence[str], as_json: bool
) -> None:
    space = workspace or load(pipeline).workspace
    if not file.exists():
        raise InputError(f"{file}: no such file (looked in {Path.cwd()})")
    where = "dataset" if file.is_dir() else "file"
    settings = _settings({where: str(file), **{k: v for k, v in asked.items() if v is not None}}, more)
    if why := import_traces.refuse(settings, {}):
        raise InputError(why)
    stopper = Stopper(None)
    listener = display.choose(as_json, stopper)
    with stopper.listening(), workspace_lock(space, wait=False, stopping=stopper, command=f"traces import {file}"):
        store = Store(space, lambda text: listener.note("store", text))
        store.mend()
        home = Workspace(space, software())
        context = StageContext(
            "import", "import", "", space, {}, space / "artifacts", space / "work", home.hashes,
            stopping=stopper, listener=listener,
        )  # fmt: skip
        try:
            figures = import_traces.run(context, settings).figures
        finally:
            store.ingest()
            listener.close()
    if as_json:
        print(json.dumps({"event": "done", "figures": dict(figures)}))
    else:
        shown = f"`distill traces list --workspace {quote(str(space))} --model {quote(f'imported:{settings.teacher}')}`"
        left = [f"{figures[name]:,} {what}" for name, what in LEFT_OUT.items() if figures.get(name)]
        aside = f" ({', '.join(left)})" if left else ""
        print(f"{figures['traces']:,} traces of {file} are in {space}{aside}: {shown}")


def _settings(asked: dict[str, Any], more: Sequence[str]) -> import_traces.ImportSettings:
    """The import stage's settings, from options and ``--set key=value``."""
    for text in more:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: expected key=value, with a key of the import stage (docs/yaml.md)")
        asked[key.strip()] = parse_value(value)
    if isinstance(reference := asked.get("reference"), str) and reference.lstrip().startswith("{"):
        asked["reference"] = parse_value(reference)
    try:
        return import_traces.ImportSettings.model_validate(asked)
    except ValidationError as error:
        where, what = mistake(error, import_traces.ImportSettings, asked)
        raise InputError(f"traces import: {'.'.join(map(str, where)) or 'options'}: {what}") from None
