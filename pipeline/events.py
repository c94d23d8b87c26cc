"""The events that a run reports while it is going on. Displays implement this; the runner calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.manifest import Manifest
    from pipeline.plan import StagePlan


class Listener:
    """Ignores every event; displays override what they show."""

    def begin(self, stages: Sequence[str]) -> None:
        """The run's stages, in order."""

    def cached(self, stage: str, manifest: Manifest) -> None:
        """The stage is up to date and will not run."""

    def start(self, stage: str, plan: StagePlan) -> None:
        """The stage runs; ``plan.reasons`` say why."""

    def progress(self, stage: str, done: int, total: int | None, figures: Mapping[str, Any]) -> None:
        """``done`` of ``total`` units; ``figures`` are rates, losses, accuracies by name."""

    def note(self, stage: str, text: str) -> None:
        """One line for the user."""

    def finish(self, stage: str, manifest: Manifest) -> None:
        """The stage is complete and recorded."""

    def close(self) -> None:
        """The run is over, one way or another."""
