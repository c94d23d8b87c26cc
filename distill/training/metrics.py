"""Training curves: from step metrics to rows in the store, figures on the display, and logs on request."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from distill.store import Store
from distill.training.logs import Logger, Logs
from pipeline.stage import Context

APPEND_SECONDS = 2.0
HIDDEN = {"step", "total"}


def figures(metrics: Any) -> dict[str, float]:
    """The numbers of a dataclass, and of the mappings in it, by name."""
    found = asdict(metrics)
    inner = [value for value in found.values() if isinstance(value, dict)]
    return {k: v for part in (found, *inner) for k, v in part.items() if isinstance(v, int | float)}


class Recorder:
    """Records every step, inside a ``with`` whose end brings everything into the store. A step that comes again
    after a resume has the same numbers, and the store keeps the first row of a key, so a resumed run has the same
    curves as an uninterrupted one."""

    def __init__(self, store: Store, context: Context, shown: tuple[str, ...], log_to: Sequence[Logger] = ()) -> None:
        self._store, self._context, self._shown = store, context, shown
        self._rows: list[dict[str, Any]] = []
        directory = context.workspace / "logs" / f"{context.name}-{context.fingerprint[:12]}"
        self._logs = Logs(log_to, directory, context.name, context.fingerprint)
        self._appended = time.monotonic()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._logs.close()
        self.flush()
        self._store.ingest()

    def __call__(self, metrics: Any) -> None:
        """``metrics`` is a dataclass of `figures`, with ``step`` (from 1; 0 is the start) and ``total``."""
        values = figures(metrics)
        step, total = int(values["step"]), int(values["total"])
        known = {k: float(v) for k, v in values.items() if k not in HIDDEN and not math.isnan(v)}
        finite = {k: v for k, v in known.items() if math.isfinite(v)}  # for logs and displays, which plot numbers
        run = self._context.fingerprint
        self._rows += [{"run": run, "step": step, "name": k, "value": v} for k, v in known.items()]
        self._logs.write(step, finite)
        self._context.progress(step, total, **{k: float(f"{finite[k]:.4g}") for k in self._shown if k in finite})
        if time.monotonic() - self._appended > APPEND_SECONDS:
            self.flush()

    def heldout(self, step: int, values: Mapping[str, float]) -> None:
        """Log what was measured on held-out problems after a step, or before the first. The store has it already."""
        self._logs.write(step, values, "heldout")

    def flush(self) -> None:
        self._store.append("metrics", self._rows)
        self._rows, self._appended = [], time.monotonic()

    def last(self, step: int | None = None) -> dict[str, float]:
        """The numbers of ``step``, or of the last step on record, whichever attempt made it; those on the display come
        first. Call it after the ``with``."""
        rows = self._store.rows(
            "SELECT name, value FROM metrics WHERE run = $run "
            "AND step = coalesce($step, (SELECT max(step) FROM metrics WHERE run = $run)) ORDER BY name",
            {"run": self._context.fingerprint, "step": step},
        )
        found = {row["name"]: row["value"] for row in rows if math.isfinite(row["value"])}
        return {name: found[name] for name in self._shown if name in found} | found
