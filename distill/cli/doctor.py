"""``distill doctor``: check the installation. Prints one line per finding; exits with 2 if something is broken."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from typing import NamedTuple

from distill import modelspec, ownership
from distill.cli.open import installed
from distill.machine import cores
from distill.modelspec import EMBEDDED
from pipeline.errors import InputError

NEEDED = ("torch", "transformers", "peft", "datasets", "duckdb", "pyarrow", "typer", "pydantic")
OPTIONAL = {
    "math-verify": "algebra in the math verifier (extra: verify)",
    "z3-solver": "the logic verifier (extra: verify)",
    "reasoning-gym": "puzzles and their scorers (extra: reasoning-gym)",
    "vllm": "the vllm engine (extra: vllm)",
    "bitsandbytes": "QLoRA (extra: qlora)",
}


class Finding(NamedTuple):
    state: str  # ok, note or broken
    what: str
    detail: str


def doctor(as_json: bool) -> None:
    findings = [finding for check in CHECKS for finding in check()]
    for finding in findings:
        print(json.dumps(finding._asdict()) if as_json else f"{finding.state:<7} {finding.what:<21} {finding.detail}")
    broken = [finding.what for finding in findings if finding.state == "broken"]
    if broken:
        raise InputError(f"{len(broken)} check(s) failed: {', '.join(broken)}")


def _python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{sys.version.split()[0]} at {sys.executable}")


def _packages() -> Iterator[Finding]:
    for name in NEEDED:
        there = installed(name)
        missing = "not installed; `make quickstart` or `pip install -e .` installs it"
        yield Finding("ok" if there else "broken", name, there or missing)
    for name, use in OPTIONAL.items():
        there = installed(name) or installed(f"{name}-cpu")
        yield Finding("ok" if there else "note", name, there or f"not installed; needed for {use}")


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding("ok", f"cuda:{index}", torch.cuda.get_device_name(index))
    else:
        yield Finding("note", "device", f"no GPU; {cores()} CPU cores")


def _models() -> Iterator[Finding]:
    for name in ("teacher", "student-base"):
        try:
            modelspec.check_directory(EMBEDDED / name, f"embedded:{name}")
            yield Finding("ok", f"embedded:{name}", "complete")
        except InputError as error:
            yield Finding("broken", f"embedded:{name}", str(error))


def _names() -> Iterator[Finding]:
    """Other distributions may own the script called ``distill`` or ship packages with our names."""
    if wrong := ownership.clash():
        yield Finding("broken", "packages", wrong)
    owners = sorted(
        {
            str(d.metadata["Name"])
            for d in distributions()
            for point in d.entry_points
            if point.group == "console_scripts" and point.name == "distill"
        }
    )
    if owners == ["distill-reasoning"]:
        missing = "installed, but its directory is not on PATH; use python -m distill"
        yield Finding("ok", "distill script", shutil.which("distill") or missing)
    elif owners:
        yield Finding("note", "distill script", f"{', '.join(owners)} install it too; use python -m distill")
    else:
        yield Finding("note", "distill script", "not installed (running from a checkout); use python -m distill")


def _sandboxes() -> Iterator[Finding]:
    """The sandboxes for model-written code. Each self-test tries to break out; one sandbox that holds is enough."""
    from distill.verifiers import sandbox

    found = sandbox.survey()
    for name, fault in found.items():
        state = "note" if fault else "ok"
        yield Finding(state, f"sandbox:{name}", fault or "holds: its self-test could not break out")
    if all(found.values()):
        yield Finding("note", "sandbox", "none holds, so the code verifier refuses to run; see the lines above")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _packages, _devices, _models, _names, _sandboxes)
