"""Pipelines that are run to be killed, and those that are left alone beside them."""

from __future__ import annotations

from pathlib import Path

from command import Command


def start(directory: Path, name: str) -> Command:
    return Command(directory, "run", "--pipeline", f"{name}.yaml", "--json")


def finish(directory: Path, name: str) -> str:
    """All that a run says, which ends well."""
    return "".join(start(directory, name).ended())
