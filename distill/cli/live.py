"""The live display: one table for the whole run, redrawn in place (rich)."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console, RenderableType
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distill.cli.display import Rate, Steady, duration, phrase
from pipeline.events import Listener

if TYPE_CHECKING:
    from pipeline.manifest import Manifest
    from pipeline.plan import StagePlan
    from pipeline.stopping import Stopper


@dataclass
class _Row:
    state: str = "waiting"
    done: int = 0
    total: int | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    began: float = 0.0
    seconds: float | None = None
    left: float | None = None
    rate: Rate = field(default_factory=Rate)


WIDE = 100
"""The width of a terminal, in columns, from which the bars are long. In a narrower one the figures need the space."""
STOPPING = "Ctrl-C again: at once"
"""Shown from a request to stop until the run ends: what is being computed is finished first."""
STYLES = {"waiting": "dim", "cached": "cyan", "running": "bold", "done": "green", "stopped": "yellow"}


class Live(Listener):
    """One row per stage: state, bar, time, ETA, and the figures so far."""

    def __init__(self, stopper: Stopper) -> None:
        self._stopper = stopper
        self._console = Console(file=cast(TextIO, Steady(sys.stdout)), highlight=False)
        self._rows: dict[str, _Row] = {}
        self._live = RichLive(console=self._console, refresh_per_second=4, get_renderable=self._table)

    def begin(self, stages: Sequence[str]) -> None:
        self._rows = {stage: _Row() for stage in stages}
        self._live.start()

    def close(self) -> None:
        for row in self._rows.values():
            if row.state == "running":
                row.state, row.left = "stopped", None
        self._live.stop()

    def cached(self, stage: str, manifest: Manifest) -> None:
        row = self._rows[stage]
        row.state, row.seconds, row.figures = "cached", manifest.seconds, manifest.figures

    def start(self, stage: str, plan: StagePlan) -> None:
        row = self._rows[stage]
        row.state, row.began = "running", time.monotonic()

    def progress(self, stage: str, done: int, total: int | None, figures: Mapping[str, Any]) -> None:
        row = self._rows[stage]
        row.done, row.total, row.figures = done, total, dict(figures)
        row.left = row.rate.left(done, total)

    def note(self, stage: str, text: str) -> None:
        self._live.console.print(Text(f"{stage}: {text}", style="dim"))
        self._live.refresh()

    def finish(self, stage: str, manifest: Manifest) -> None:
        row = self._rows[stage]
        row.state, row.seconds, row.figures, row.left = "done", manifest.seconds, manifest.figures, None

    def _table(self) -> RenderableType:
        bar = 20 if self._console.width >= WIDE else 10
        # The terminal echoes Ctrl-C as ^C after the last row: where that broke the line, a row would stay behind.
        table = Table(box=None, pad_edge=False, width=self._console.width - len("^C"))
        for name, options in (
            ("stage", {"no_wrap": True}), ("", {"no_wrap": True}), ("progress", {"width": bar + 2}),
            ("time", {"justify": "right", "no_wrap": True}), ("left", {"justify": "right", "no_wrap": True}),
            ("so far", {"ratio": 1, "no_wrap": True, "overflow": "ellipsis"}),
        ):  # fmt: skip
            table.add_column(name, **options, header_style="dim")
        for name, row in self._rows.items():
            running = row.state == "running"
            stopping = running and self._stopper.reason is not None
            spent = time.monotonic() - row.began if running else row.seconds
            table.add_row(
                Text(name, style=STYLES[row.state]),
                Text("stopping" if stopping else row.state, style=STYLES[row.state]),
                ProgressBar(total=row.total, completed=row.done, width=bar, pulse=row.total is None) if running else "",
                duration(spent) if spent is not None else "",
                duration(row.left) if row.left is not None else "",
                Text(STOPPING if stopping else phrase(row.figures), style="dim" if not running else ""),
            )
        return table
