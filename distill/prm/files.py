"""The files of a process reward model, and how one is named.

    model/            the body: a causal LM in Hugging Face's format, with its tokenizer and a card
    adapter/          the LoRA adapter that was merged into the body, if there was one
    head.safetensors  the head (`distill.prm.head`)
    prm.json          what the parts must match (rule for steps, width, tokenizer), and the figures of its test

A name is ``prm:STAGE`` (that stage of the pipeline) or the path of such a directory. If the body or the tokenizer in
the directory was replaced, loading fails with an error instead of giving wrong scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from distill.modelspec import MODEL
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest

if TYPE_CHECKING:
    from distill.prm.head import StepHead

PREFIX = "prm:"
HEAD, ABOUT = "head.safetensors", "prm.json"
FORMAT = 1
PROBE = "Let x = 3.14: 12 + 7*x <= 40?\n\n<think>\nfirst, naïve – 你好\n</think>\n\n\\boxed{\\frac{1}{2}}"


class About(BaseModel):
    """The content of `prm.json`. ``tokenizer`` is the `tokenizer_identity` of the tokenizer used in training.
    ``prompting`` holds the settings of the prompts used in training, if problems were not asked as they are."""

    model_config = ConfigDict(extra="ignore")

    format: int
    rule: str
    width: int
    likelihood: bool
    tokenizer: str
    start: str
    prompting: dict[str, Any] | None = None
    figures: dict[str, Any] = {}


def tokenizer_identity(tokenizer: Any) -> str:
    """Equal for tokenizers that split text in the same way, whichever version of a library wrote their files."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return content_hash([vocabulary, tokenizer.encode(PROBE, add_special_tokens=False), tokenizer.eos_token_id])


def write(directory: Path, head: StepHead, about: About) -> None:
    """Write the head and `prm.json` beside an existing ``model``."""
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}, directory / HEAD)
    (directory / ABOUT).write_text(json.dumps(about.model_dump(), indent=1, ensure_ascii=False) + "\n", "utf-8")


def directory_of(name: str, workspace: Path = Path(), inputs: Mapping[str, Manifest] | None = None) -> Path:
    """The directory of a reward model. ``inputs`` are the manifests of upstream stages, by name."""
    if not name.startswith(PREFIX):
        return checked(Path(name).expanduser(), name)
    manifest = (inputs or {}).get(name.removeprefix(PREFIX))
    if manifest is None or manifest.artifact is None:
        raise InputError(f"prm {name}: a stage cannot be named here; name the directory that it made")
    return checked(workspace / manifest.artifact, name)


def checked(directory: Path, name: str) -> Path:
    """Return ``directory`` if it holds a reward model, otherwise raise `InputError`. Loads nothing heavy."""
    if not directory.is_dir():
        raise InputError(f"prm {name}: {directory} is not a directory; expected {PREFIX}STAGE or that of a prm stage")
    if missing := [part for part in (ABOUT, HEAD, MODEL) if not (directory / part).exists()]:
        raise InputError(f"prm {name}: {directory} has no {missing[0]}: not a process reward model of a prm stage")
    about(directory, name)
    return directory


def about(directory: Path, name: str) -> About:
    try:
        found = About.model_validate_json((directory / ABOUT).read_text("utf-8"))
    except (OSError, ValueError, ValidationError):
        raise InputError(f"prm {name}: {directory / ABOUT} cannot be read; run its stage again") from None
    if found.format > FORMAT:
        raise InputError(f"prm {name}: written by a newer distill (format {found.format}); upgrade distill to read it")
    return found


def identity_of(directory: Path, hashes: FileHashes) -> str:
    """Content hash of everything that a score depends on, which excludes the figures and the card."""
    from distill.modelspec import CONTENT

    files = [directory / HEAD, *sorted(p for p in (directory / MODEL).iterdir() if p.suffix in CONTENT)]
    known = about(directory, str(directory)).model_dump(exclude={"figures", "start"}, exclude_none=True)
    read = zip(files, hashes.each(files, f"prm {directory}"), strict=True)
    return content_hash([known, *([path.name, value] for path, value in read)])


def check_reads(directory: Path, name: str, tokenizer: Any, whose: str) -> None:
    """Raise `InputError` unless the reward model in ``directory`` has the same tokenizer as ``whose`` model, so that it
    can read prompts rendered for that one."""
    if tokenizer_identity(tokenizer) != about(directory, name).tokenizer:
        raise InputError(
            f"prm {name}: its tokenizer is not that of {whose}, so it cannot read the same prompts; use a reward model "
            "of the same family of models, or train one on it (stage prm)"
        )
