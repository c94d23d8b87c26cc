"""Check that the packages `pipeline`, `distill` and `rl` are really ours.

Another distribution may well ship one of these top-level names; pip then installs both without a warning and merges
the files. The check runs once at start, before anything of `pipeline` is used, and is cheap. That is why each of the
three packages carries its own marker, and why nothing of ours is imported here.
"""

from __future__ import annotations

from importlib import import_module

PACKAGES = ("pipeline", "distill", "rl")


def clash() -> str | None:
    """The error message for the user, in one line, or None if all is well."""
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
        "or install distill in an environment without it"
    )
