"""Which commit a hub name means, so that a branch that moves never changes a model under our keys.

A name is pinned once: to the commit in the local cache, else to the one the hub names, which the cache
then remembers. Only where neither can be had (offline, never downloaded) is it not known; such a model
cannot be loaded either. Asked by `distill.modelspec`; loading is `distill.pretrained`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pipeline.errors import InputError

PATIENCE = 5.0
"""Seconds to wait for the hub when asked for a commit."""
PROBE = "config.json"


@lru_cache(maxsize=256)
def commit_of(repository: str, revision: str | None) -> str | None:
    """The commit (40 hex digits) that ``revision`` (None: main) is, or None where it cannot be told.

    Raises `InputError` where the hub has no such model or revision, or does not let us have it.
    """
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return _cached(repository, revision) or _at_hub(repository, revision)


def _cached(repository: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, PROBE, revision=revision)
    return _commit_in(found) if isinstance(found, str) else None


def _at_hub(repository: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi, errors, hf_hub_download

    name = repository + (f"@{revision}" if revision else "")
    try:
        HfApi().model_info(repository, revision=revision, timeout=PATIENCE)  # fails at once; the download tries again
        return _commit_in(hf_hub_download(repository, PROBE, revision=revision))  # the cache remembers it
    except errors.GatedRepoError:
        raise InputError(f"model {name}: the hub lets only those have it who have asked for it; set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise InputError(f"model {name}: the hub has no revision {revision} of {repository}") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"model {name}: the hub has no model {repository} (a private one needs HF_TOKEN)") from None
    except Exception:  # no network, or a hub in trouble, in the words of whatever client is installed
        return None


def _commit_in(path: str) -> str | None:
    found = re.search(r"snapshots[/\\]([0-9a-f]{40})[/\\]", path)
    return found[1] if found else None
