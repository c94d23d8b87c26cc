"""Read the rows of a Hugging Face dataset, streamed from the hub or from a local directory.

A directory may have any form that the ecosystem writes: the result of `save_to_disk` for a dataset or a dictionary of
datasets, or a repository as on the hub (Parquet, JSON Lines or CSV files, with or without a dataset card). A local
dataset is identified by its content, one on the hub by its commit. Left out: dataset scripts (the library has dropped
them too) and anything but rows of plain data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distill.sources.tables import Row
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
PATIENCE = 10.0
"""Seconds to wait for the hub to report a commit."""

T = TypeVar("T")


def check_name(name: str) -> str:
    """Return ``name`` if it can be a dataset, otherwise raise ValueError. Settings use it, so that typos are found
    early."""
    if Path(name).expanduser().is_dir():
        return name
    if Path(name).is_file():
        raise ValueError(f"{name} is a file; name it with `file:`")
    if name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(name):
        raise ValueError(f"{name}: no such directory, and not the name of a data set on the hub (org/name)")
    return name


@dataclass(frozen=True, slots=True)
class DataSet:
    """One split of one configuration of a dataset. ``revision`` is a branch, tag or commit on the hub."""

    name: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None

    @property
    def directory(self) -> Path | None:
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    @property
    def label(self) -> str:
        return f"data set {self.name}"

    def identity(self, hashes: FileHashes) -> str:
        """The content hash of the directory, or the commit on the hub, which is asked unless ``revision`` is one."""
        local = self.directory
        return hashes.of(local) if local else self.commit()

    def commit(self) -> str:
        if self.revision and COMMIT.fullmatch(self.revision):
            return self.revision
        return self._ask_hub()

    def _ask_hub(self) -> str:
        """The current commit of the revision."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

        try:
            return str(HfApi().dataset_info(self.name, revision=self.revision, timeout=PATIENCE).sha)
        except RevisionNotFoundError:
            raise InputError(f"{self.label}: the hub has no revision {self.revision!r} of it") from None
        except RepositoryNotFoundError:
            raise InputError(f"{self.label}: is not on the hub, or is private (set HF_TOKEN)") from None
        except HfHubHTTPError as error:
            raise InputError(f"{self.label}: the hub answered {_line(error)}") from None
        except Exception as error:  # no network, which is raised as many types of errors
            raise InputError(
                f"{self.label}: the hub cannot be reached ({_line(error)}); without a network, name a directory that "
                f"`hf download --repo-type dataset {self.name} --local-dir DIRECTORY` made on another machine"
            ) from None

    def rows(self) -> Iterator[Row]:
        """Yield the rows in the order of the dataset, without holding them."""
        rows = iter(self._guarded(self._open))
        place = Path(self.name, *[part for part in (self.config, self.split) if part])
        line = 0
        while True:
            values = self._guarded(lambda: next(rows, None))
            if values is None:
                return
            line += 1
            yield Row(place, line, values, name=Path(self.name).name)

    def _open(self) -> Any:
        import datasets

        local = self.directory
        if local and ((local / "dataset_dict.json").is_file() or (local / "state.json").is_file()):
            return self._saved(datasets.load_from_disk(str(local)))
        if local:
            return datasets.load_dataset(str(local), name=self.config, split=self.split, streaming=True)
        commit = self._ask_hub()  # fails at once, where the library would retry for half a minute
        return datasets.load_dataset(self.name, name=self.config, split=self.split, revision=commit, streaming=True)

    def _saved(self, found: Any) -> Any:
        if self.config is not None:
            raise InputError(f"{self.label}: was saved with save_to_disk, and has no configuration {self.config!r}")
        if not isinstance(found, dict):
            return found
        if self.split not in found:
            raise InputError(f"{self.label}: has no split {self.split!r}; it has {', '.join(map(str, found))}")
        return found[self.split]

    def count(self) -> int | None:
        """The number of rows, if the metadata of a local directory holds it; otherwise None."""
        local = self.directory
        if local is None:
            return None
        saved = local / self.split if (local / "dataset_dict.json").is_file() else local
        try:
            if (saved / "state.json").is_file():
                splits = json.loads((saved / "dataset_info.json").read_text())["splits"]
                return int(sum(split["num_examples"] for split in splits.values()))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None

    def _guarded(self, action: Callable[[], T]) -> T:
        """Call ``action``, and turn whatever the library raises into an `InputError` of one line."""
        try:
            return action()
        except (InputError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise InputError(f"{self.label}: cannot be read: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:300] or type(error).__name__
