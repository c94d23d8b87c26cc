"""Which version of an optional library is there: it is part of a verifier's version, so that what could not be
judged for want of a library is judged once it is installed."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def installed(distribution: str) -> str:
    """Its version, or ``absent``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"
