"""Load the user's own code by file: ``./my_verifier.py:MyVerifier``, relative to the working directory.

Decides how such a file becomes an object. Its identity is the hash of its content, so an edited file is a different
one. An error in it is reported in one line with file and line number. Left out: what the file itself imports (its
directory is not put on the path, and its imports are not hashed). For more than one file, make a package and name it
``package.module:MyVerifier``.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pipeline.errors import InputError
from pipeline.fingerprint import LENGTH


class Loaded(NamedTuple):
    attribute: Any
    digest: str
    """Hash of the file's content when the code was run."""


def is_file(name: str) -> bool:
    """Whether ``name`` is a ``path/to/file.py:Name`` and not the name of a module."""
    return name.rpartition(":")[0].endswith(".py")


def load(name: str) -> Loaded:
    """Run the file, once per content and process, and return its attribute ``Name``."""
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser()
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{file}: no such file (looked in {Path.cwd()})") from None
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from None
    digest = hashlib.sha256(source).hexdigest()[:LENGTH]
    module = _module(path, source, digest)
    if not hasattr(module, attribute):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        from pipeline.mistakes import nearest  # loads pydantic

        raise InputError(f"{file}: defines no {attribute!r}{nearest(attribute, own)}")
    return Loaded(getattr(module, attribute), digest)


def _module(path: Path, source: bytes, digest: str) -> ModuleType:
    where = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    name = f"distill_user_{path.stem}_{where[:8]}_{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up while the file is still being run
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise InputError(_one_line(path, error)) from error
    return module


def _one_line(path: Path, error: BaseException) -> str:
    """``./my_verifier.py:3: ModuleNotFoundError: ...``, with the last line of the file that was running."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
