"""Judges in vLLM among a stage's verifiers, for a stage that must tell them how much of a GPU they may take.

A judge opens its engine itself, when it is first asked, by the settings in its verifier's spec. So its share is written
into the spec. Called by stages that train on a GPU and ask verifiers meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from distill import engines
from distill.engines.options import VllmOptions
from distill.modelspec import Model
from distill.verifiers.compose import HOWS, Spec
from distill.verifiers.llm_judge import Judge, JudgeSettings
from pipeline.fingerprint import FileHashes, canonical

Written = Mapping[str, Any]
"""A judge's settings, as they are written in a spec."""


class VllmJudges:
    """The judges in vLLM among some verifiers. Equal ones are one, as in a pool."""

    def __init__(self, specs: Iterable[Spec | None], hashes: FileHashes) -> None:
        self.engines: dict[str, tuple[Model, VllmOptions]] = {}
        """By a name for messages."""
        self._names: dict[str, str] = {}
        self._hashes = hashes
        for spec in specs:
            _changed(spec, self._found)

    def with_shares(self, spec: Any, fitted: Mapping[str, VllmOptions]) -> Any:
        """A verifier's spec in which each of them takes the share that ``fitted`` has under its name."""

        def change(written: Written) -> Written:
            name = self._names.get(canonical(written))
            if name is None or (share := fitted[name].gpu_memory_utilization) == _share(self.engines[name][1]):
                return written
            engine = self.engines[name][1].model_dump(mode="json", exclude_unset=True)
            return {**written, "engine": {"kind": "vllm", **engine, "gpu_memory_utilization": share}}

        return _changed(spec, change)

    def lowered(self, specs: Iterable[Spec], fitted: Mapping[str, VllmOptions]) -> str | None:
        """The name of the first in these specs whose share ``fitted`` lowers; None if it lowers none."""
        names: list[str] = []

        def note(written: Written) -> Written:
            names.extend(name for name in [self._names.get(canonical(written))] if name)
            return written

        for spec in specs:
            _changed(spec, note)
        return next((name for name in names if _share(fitted[name]) < _share(self.engines[name][1])), None)

    def _found(self, written: Written) -> Written:
        settings = JudgeSettings.model_validate(written)
        if isinstance(settings.engine, VllmOptions) and canonical(written) not in self._names:
            name = f"judge {settings.model}"
            if name in self.engines:
                name += f" ({len(self.engines) + 1})"
            self._names[canonical(written)] = name
            self.engines[name] = engines.standing_model(settings.model, settings.engine, self._hashes), settings.engine
        return written


def _share(engine: VllmOptions) -> float:
    return engine.gpu_memory_utilization


def _changed(spec: Any, change: Callable[[Written], Written]) -> Any:
    """A spec (`distill.verifiers.compose`) in which the settings of each judge are changed."""
    if not isinstance(spec, Mapping):
        return spec
    ((name, inside),) = spec.items()
    if name == "weighted":
        return {name: [{**part, "of": _changed(part["of"], change)} for part in inside]}
    if name in HOWS:
        return {name: [_changed(part, change) for part in inside]}
    return {name: change(inside)} if name == Judge.name else spec
