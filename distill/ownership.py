"""Are `pipeline`, `distill` and `rl` really ours?

Three top-level names are easily taken by another distribution; pip installs both without a word and
merges the files. Asked once at start, before anything of `pipeline` is used, and cheap; that is why
each of the three carries a marker of its own, and why nothing of ours is imported here.
"""

from __future__ import annotations

from importlib import import_module

PACKAGES = ("pipeline", "distill", "rl")


def clash() -> str | None:
    """What is wrong, in one line for the user, or None."""
    packages = {name: import_module(name) for name in PACKAGES}
    ours = getattr(packages["distill"], "__owner__", None)
    strangers = [
        f"{name} ({getattr(package, '__file__', None) or next(iter(package.__path__))})"
        for name, package in packages.items()
        if getattr(package, "__owner__", None) != ours
    ]
    if not strangers:
        return None
    return (
        f"another package shadows or has overwritten {', '.join(strangers)}; uninstall it and install distill again, "
        "or give distill an environment of its own"
    )
