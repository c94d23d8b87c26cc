"""Are `pipeline`, `distill` and `rl` really ours?

Three top-level names are easily taken by another distribution; pip installs both without a word and
merges the files. Checked once at start, cheaply; a clash is one clear error.
"""

from __future__ import annotations

import importlib

from pipeline.errors import InputError

PACKAGES = ("pipeline", "distill", "rl")


def check() -> None:
    owners = {name: getattr(importlib.import_module(name), "__owner__", None) for name in PACKAGES}
    if len(set(owners.values())) == 1:
        return
    strangers = [
        f"{name} ({importlib.import_module(name).__file__})"
        for name, owner in owners.items()
        if owner != owners["distill"]
    ]
    raise InputError(
        f"another package shadows {', '.join(strangers)}; uninstall it, or install distill in an environment of its own"
    )
