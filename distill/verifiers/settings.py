"""Validate the settings of a verifier that are a pydantic model, and report a mistake in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import InputError
from pipeline.mistakes import mistake

Model = TypeVar("Model", bound=BaseModel)


def settings_of(verifier: str, model: type[Model], given: Mapping[str, Any]) -> Model:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        where, what = mistake(error, model, given)
        place = ".".join(map(str, where))
        raise InputError(f"verifier {verifier!r}: {place}{': ' if place else ''}{what}") from None
