"""``distill list`` and ``distill init``: list what is available, and write a starter pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Any

from distill import catalog
from distill.cli.keys import REQUIRED, keys_of
from distill.cli.open import starters
from distill.cli.table import show
from distill.modelspec import EMBEDDED
from distill.sources import forms
from pipeline.errors import InputError
from pipeline.files import write_atomic
from pipeline.mistakes import nearest

UNCUT = 10_000
Rows = list[dict[str, Any]]


def list_names(kind: str | None, name: str | None, as_json: bool) -> None:
    kinds: dict[str, Callable[[], Rows]] = {
        "stages": _stages,
        "verifiers": lambda: _first_lines("verifiers"),
        "engines": lambda: _first_lines("engines"),
        "families": lambda: _first_lines("families"),
        "strategies": _strategies,
        "forms": _forms,
        "models": _models,
        "pipelines": _pipelines,
    }
    if kind is not None and kind not in kinds:
        raise InputError(f"there is no list {kind!r}{nearest(kind, kinds)}")
    if name is not None:
        if kind != "stages":
            raise InputError(f"{kind}: only the settings of stages can be listed, as in `distill list stages sft`")
        _settings(name, as_json)
        return
    for each in [kind] if kind else kinds:
        if not as_json and kind is None:
            print(f"\n{each}")
        show([{"kind": each, **row} if as_json else row for row in kinds[each]()], as_json, UNCUT)


def _settings(stage: str, as_json: bool) -> None:
    """Print every key of a stage with its meaning below it."""
    keys = list(keys_of(catalog.stage(stage).settings))
    if as_json:
        show([asdict(key) for key in keys], as_json)
        return
    wide = min(get_terminal_size().columns, 120)
    for key in keys:
        default = key.default if key.default == REQUIRED else f"default {key.default}"
        print(f"{key.name}: {key.type.replace('`', '')}, {default}")
        if key.what:
            what = key.what.replace("``", "`").replace("*speed*", "(Changes no result.)")
            print(fill(what, wide, initial_indent="    ", subsequent_indent="    "))


def _stages() -> Rows:
    return [
        {"name": name, "makes": catalog.stage(name).produces, "about": catalog.stage(name).about}
        for name in catalog.names("stages")
    ]


def _strategies() -> Rows:
    """Each strategy with the first line of its docstring and what it needs besides samples."""
    found = {name: catalog.resolve("strategies", name) for name in catalog.names("strategies")}
    return [
        {
            "name": name,
            "about": kind.__doc__.splitlines()[0],
            "needs": ", ".join(sorted(kind().needs)),
        }
        for name, kind in found.items()
    ]


def _first_lines(kind: str) -> Rows:
    """Each name with the first line of its module's docstring, read from the source without importing it."""
    return [{"name": name, "about": _docstring(where.partition(":")[0])} for name, where in catalog.names(kind).items()]


def _docstring(module: str) -> str:
    from importlib.util import find_spec

    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    text = Path(spec.origin).read_text(encoding="utf-8")
    return text.split('"""')[1].strip().splitlines()[0] if '"""' in text else ""


def _forms() -> Rows:
    """The published forms, with the main settings of each."""
    return [
        {"name": name, "for": kind, "about": form.about, "verifier": form.settings.get("verifier", ""),
         "licence": form.settings.get("licence", "")}
        for kind, table in forms.TABLES.items()
        for name, form in table.items()
    ]  # fmt: skip


def _models() -> Rows:
    rows = []
    for path in sorted(EMBEDDED.glob("*/config.json")):
        size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
        rows.append({"name": f"embedded:{path.parent.name}", "megabytes": round(size / 1e6, 2)})
    return rows


def _pipelines() -> Rows:
    return [
        {"name": name, "about": path.read_text().splitlines()[0].removeprefix("# ")}
        for name, path in starters().items()
    ]


def init(file: Path, template: str) -> None:
    known = starters()
    if template not in known:
        raise InputError(f"no starter pipeline is called {template!r}{nearest(template, known)}")
    if file.exists():
        raise InputError(f"{file}: exists already; name another file")
    write_atomic(file, known[template].read_text())
    print(f"wrote {file} (from {template}); next: distill plan --pipeline {file}")
