"""The installed version of an optional library. It is part of a verifier's version, so that answers which could not be
judged without the library are judged once it is installed."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def installed(distribution: str) -> str:
    """The version of a distribution, or ``absent``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"
