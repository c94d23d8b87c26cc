"""Pin hub names to commits, so that a moving branch never changes a model under existing keys.

A name is pinned once: to the commit in the local cache, otherwise to the one that the hub reports, which is then
recorded in the cache where Hugging Face's own library records it. If neither is available (offline and never
downloaded), the commit is unknown; such a model cannot be loaded either. `distill.modelspec` calls this module for
plans too. It therefore does without the Hugging Face library, whose import takes longer than the request. That library
does the downloading, in `distill.pretrained`.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from functools import lru_cache
from pathlib import Path

from pipeline.errors import InputError
from pipeline.files import write_atomic

PATIENCE = 5.0
"""Seconds to wait for the hub."""
COMMIT = r"[0-9a-f]{40}"


def check_reachable(repository: str, revision: str | None) -> None:
    """Raise `InputError` for a model that is neither in the cache nor reachable on the hub.

    The library itself would retry for a minute and print an error for every file. ``revision`` is a commit if that is
    known.
    """
    folder = _folder(repository)
    if any((folder / "snapshots").glob(f"{_commit_in(folder, revision) or '*'}/config.json")):
        return
    name = repository + (f"@{revision}" if revision else "")
    if _offline():
        raise InputError(f"model {name}: is not in the cache ({cache()}), and HF_HUB_OFFLINE is set")
    if _at_hub(repository, revision) is None:
        raise InputError(
            f"model {name}: is not in the cache ({cache()}), and the hub cannot be reached; without a network, name "
            f"a directory that `hf download {repository} --local-dir DIRECTORY` made on another machine"
        )


def quiet() -> None:
    """Silence the logging of the hub's library. Our own error message reports what matters."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


@lru_cache(maxsize=256)
def commit_of(repository: str, revision: str | None) -> str | None:
    """The commit (40 hex digits) of ``revision`` (None: main), or None if it cannot be found out.

    Raises `InputError` if the hub has no such model or revision, or refuses access to it.
    """
    folder = _folder(repository)
    if (known := _commit_in(folder, revision)) or _offline():
        return known
    found = _at_hub(repository, revision)
    if found:
        try:
            note = folder / "refs" / (revision or "main")
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(note, found, durable=False)
        except (OSError, InputError):
            pass  # the cache is not writable; the hub is asked again next time
    return found


def _folder(repository: str) -> Path:
    return cache() / f"models--{repository.replace('/', '--')}"


def _commit_in(folder: Path, revision: str | None) -> str | None:
    """The commit of a revision according to the cache."""
    if revision and re.fullmatch(COMMIT, revision):
        return revision
    try:
        return _commit((folder / "refs" / (revision or "main")).read_text())
    except OSError:
        return None


def _offline() -> bool:
    return _is_set("HF_HUB_OFFLINE")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def cache() -> Path:
    """The download cache of Hugging Face's library, by the library's own environment variables."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")  # an older name, still read
    return Path(os.path.expandvars(named or _home() / "hub")).expanduser()


def _home() -> Path:
    named = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.path.expandvars(named))


def _token() -> str | None:
    """The access token, found as the library finds it: in the environment, or in the file of `hf auth login`."""
    if _is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token").expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _at_hub(repository: str, revision: str | None) -> str | None:
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    quoted = urllib.parse.quote(revision or "main", safe="")
    request = urllib.request.Request(f"{address.rstrip('/')}/api/models/{repository}/revision/{quoted}")
    if token := _token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return _commit(str(json.load(answer).get("sha")))
    except urllib.error.HTTPError as error:
        if why := _refusal(repository, revision, error.headers.get("X-Error-Code")):
            raise InputError(why) from None
    except (OSError, ValueError, AttributeError):
        pass  # no network, or the server is not a hub
    return None


def _refusal(repository: str, revision: str | None, code: str | None) -> str | None:
    reasons = {
        "RepoNotFound": f"the hub has no model {repository} (a private one needs HF_TOKEN, or `hf auth login`)",
        "RevisionNotFound": f"the hub has no revision {revision} of it",
        "GatedRepo": "it is gated; accept its terms on the hub, then set HF_TOKEN or run `hf auth login`",
    }
    name = repository + (f"@{revision}" if revision else "")
    return f"model {name}: {reasons[code]}" if code in reasons else None


def _commit(text: str) -> str | None:
    return text.strip() if re.fullmatch(COMMIT, text.strip()) else None
