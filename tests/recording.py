"""A listener that notes which stages ran."""

from __future__ import annotations

from typing import Any

from pipeline.events import Listener


class RecordingListener(Listener):
    def __init__(self) -> None:
        self.ran: list[str] = []

    def start(self, stage: str, plan: Any) -> None:
        self.ran.append(stage)
