"""How many devices a training stage computes on; settings that every such stage has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.stage import Operational, Settings


class DeviceSettings(Settings):
    devices: Annotated[int, Operational(), Field(ge=1)] = 1
    """So many processes train, each on a GPU of its own (without any, on CPU cores). Under `torchrun` there are as
    many as it started."""
    parallel: Annotated[Literal["ddp", "fsdp"], Operational()] = "ddp"
    """With several devices each holds a copy of the model (`ddp`), or they share its weights out (`fsdp`)."""
