"""Rows of a Hugging Face data set: on the hub, streamed, or in a local directory.

A directory is in one of the forms that the ecosystem writes: `save_to_disk` of a data set or of a dictionary of
them, or a repository as it lies on the hub (Parquet, JSON Lines or CSV files, with or without a data set card).
What was read is known by its content where it is local, and by the commit where it is on the hub. Left out:
scripts that make data sets (the library has given them up too), and anything but rows of plain data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distill.tables import Row
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes

COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
PATIENCE = 10.0
"""Seconds that the hub may take to tell a commit."""

T = TypeVar("T")


def check_name(name: str) -> str:
    """``name``, if it can be a data set; for settings, so that a slip is told at once."""
    if Path(name).expanduser().is_dir():
        return name
    if Path(name).is_file():
        raise ValueError(f"{name} is a file; name it with `file:`")
    if name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(name):
        raise ValueError(f"{name}: no such directory, nor the name of a data set on the hub (org/name)")
    return name


@dataclass(frozen=True, slots=True)
class DataSet:
    """One split of one configuration of a data set. ``revision`` is a branch, tag or commit of the hub."""

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
        """The content of the directory, or the commit on the hub (asked of it, unless it is named)."""
        local = self.directory
        return hashes.of(local) if local else self.commit()

    def commit(self) -> str:
        if self.revision and COMMIT.fullmatch(self.revision):
            return self.revision
        return self._ask_hub()

    def _ask_hub(self) -> str:
        """The commit that the revision means now."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

        try:
            return str(HfApi().dataset_info(self.name, revision=self.revision, timeout=PATIENCE).sha)
        except RevisionNotFoundError:
            raise InputError(f"{self.label}: the hub has no revision {self.revision!r} of it") from None
        except RepositoryNotFoundError:
            raise InputError(f"{self.label}: the hub has none, or shows it only to others (HF_TOKEN)") from None
        except HfHubHTTPError as error:
            raise InputError(f"{self.label}: the hub says {_line(error)}") from None
        except Exception as error:  # no network, in one of the many ways of saying so
            raise InputError(
                f"{self.label}: the hub cannot be reached ({_line(error)}); without a network, name a directory: "
                f"`hf download --repo-type dataset {self.name} --local-dir DIRECTORY` makes one elsewhere"
            ) from None

    def rows(self) -> Iterator[Row]:
        """Row by row, in the order of the data set; nothing is kept."""
        rows = iter(self._told(self._open))
        place = Path(self.name, *[part for part in (self.config, self.split) if part])
        line = 0
        while True:
            values = self._told(lambda: next(rows, None))
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
        commit = self._ask_hub()  # which fails in a moment where the library would try for half a minute
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
        """Number of rows where a local directory tells it without being read."""
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

    def _told(self, action: Callable[[], T]) -> T:
        """The result; whatever the library raises becomes one line."""
        try:
            return action()
        except (InputError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise InputError(f"{self.label}: cannot be read: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:300] or type(error).__name__
