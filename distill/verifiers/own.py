"""Load verifiers from a user's file or module, check their shape, and version them by the file's content.

Contract tests hold the registered verifiers to the protocol. User code is checked here instead, so that a mistake is
one error line before any work starts, not a reason in every verdict.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from distill import user_code
from distill.catalog import resolve
from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers.base import Verifier
from pipeline.errors import InputError


def make(name: str, settings: Mapping[str, Any]) -> Verifier:
    """The verifier called ``module:Class`` or ``file.py:Class``. Raises `InputError` if it cannot be used."""
    digest = ""
    if user_code.is_file(name):
        made, digest = user_code.load(name)
    else:
        made = resolve("verifiers", name)
    if not callable(made):
        raise InputError(f"verifier {name!r}: is {type(made).__name__}, not a class")
    try:
        verifier = made(**settings)
    except InputError as error:
        raise InputError(f"verifier {name!r}: {error}") from error
    except Exception as error:
        raise InputError(f"verifier {name!r}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    _check_shape(verifier, name)
    return FromFile(verifier, digest) if digest else verifier


def _check_shape(verifier: Any, name: str) -> None:
    for attribute in ("name", "version"):
        value = getattr(verifier, attribute, None)
        if not isinstance(value, str) or not value:
            raise InputError(f'verifier {name!r}: needs {attribute} = "some text", found {value!r}')
    verify = getattr(verifier, "verify", None)
    if not callable(verify):
        raise InputError(f"verifier {name!r}: has no method verify(self, problem, trace)")
    try:
        inspect.signature(verify).bind(None, None)
    except TypeError as error:
        raise InputError(f"verifier {name!r}: verify must take (self, problem, trace): {error}") from None
    except ValueError:  # implemented in C: there is no signature to check
        return


class FromFile:
    """A verifier from a file, unchanged except that its version covers the file's content."""

    def __init__(self, verifier: Verifier, digest: str) -> None:
        self._verifier = verifier
        self.name, self.version = verifier.name, f"{verifier.version}+{digest[:12]}"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        return self._verifier.verify(problem, trace)

    def __getattr__(self, attribute: str) -> Any:
        """Optional members (`distill.verifiers.base`) are those of the file's class."""
        return getattr(self._verifier, attribute)
