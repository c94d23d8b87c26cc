"""Contamination: which of a stage's problems the measured model was trained on (`distill.evaluation.exposure`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from distill import modelspec
from distill.evaluation import exposure
from distill.evaluation.exposure import Exposure
from distill.stages.common import store_of
from distill.types import Problem
from pipeline.stage import Context, Settings


class ContaminationSettings(Settings):
    """Looks for the prompts of the measured problems among those that the student was trained on."""

    ngram: Annotated[int, Field(ge=2, le=50)] = 13
    """Number of consecutive words that count as an overlap, as in `curate`. A shorter prompt must match whole."""
    share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Minimum share of a problem's n-grams that must be found. At 0, one is enough."""


def exposure_of(
    context: Context, how: ContaminationSettings | None, model: str, label: str, tasks: Sequence[tuple[str, Problem]]
) -> Exposure | None:
    """What ``model`` saw of ``tasks``, also stored under ``label``. None if the check is off, or if nothing is known of
    its training problems, as for a model that no stage made."""
    made = context.inputs.get(model.removeprefix(modelspec.STAGE)) if model.startswith(modelspec.STAGE) else None
    if made is None or how is None:
        return None
    store = store_of(context)
    seen = exposure.of_student(store, context.workspace, made, tasks, how.ngram, how.share)
    if not seen.taught:
        return None
    store.append("exposure", exposure.evidence(context.fingerprint, label, seen))
    return seen


def figures_of(seen: Exposure, tasks: Sequence[tuple[str, Problem]]) -> dict[str, Any]:
    return {
        "trained_by": list(seen.stages),
        **({"unrecorded": list(seen.unrecorded)} if seen.unrecorded else {}),
        "trained_on": seen.taught,
        "problems": len(seen.found),
        "share": round(len(seen.found) / len(tasks), 4),
    }
