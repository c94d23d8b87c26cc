"""The clips of the published losses. Kept apart from `rl.loss`, so that settings are checked without loading torch."""

from __future__ import annotations

from collections.abc import Mapping

CLIPS: Mapping[str, tuple[float, float]] = {
    "grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "dr_grpo": (0.2, 0.2),
    "bnpo": (0.2, 0.2),
    "gspo": (3e-4, 4e-4),
    "cispo": (0.0, 5.0),
}
"""By loss, how far a ratio may be below and above 1; for cispo, (0, the largest weight). Sources: `rl.loss.RECIPES`."""
