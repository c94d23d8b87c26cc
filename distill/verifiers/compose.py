"""Build verifiers from data: names, settings and compositions, as they are written in YAML.

    math                                            a name
    {format: {boxed: true}}                         a name with settings
    ./my_verifier.py:MyVerifier                     the user's own (distill.verifiers.own)
    {all: [math, format]}                           correct if all are
    {any: [math, exact]}                            correct if one is
    {weighted: [{of: math, weight: 0.9}, {of: format, weight: 0.1}]}

`all` is incorrect as soon as one part is, and `any` is correct as soon as one part is. Otherwise one `unverifiable`
part makes the whole `unverifiable`. The score of `weighted` is the weighted mean of the scores. It is correct if every
part with a weight above 0 is, and `unverifiable` if any such part is.

Parts that must be opened (a judge) are asked last, and only if they can still change the outcome.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.catalog import resolve
from distill.thinking import Response
from distill.types import Outcome, Problem, Verdict
from distill.verifiers import own
from distill.verifiers.base import Verifier
from distill.verifiers.run import judge, judge_quickly, prepare, reads_thinking
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes

Spec = str | Mapping[str, Any]
HOWS = ("all", "any", "weighted")


def get(name: str, settings: Mapping[str, Any] | None = None, hashes: FileHashes | None = None) -> Verifier:
    """The verifier registered as ``name``. Raises `InputError` for an unknown name or setting."""
    if settings is not None and not isinstance(settings, Mapping):
        raise InputError(f"verifier {name!r}: its settings must be a mapping, not {str(settings)[:80]!r}")
    if ":" in name:
        return own.make(name, settings or {})
    make = resolve("verifiers", name)
    files = {"hashes": hashes or FileHashes()} if getattr(make, "reads_files", False) else {}
    try:
        verifier: Verifier = make(**(settings or {}), **files)
    except TypeError as error:
        raise InputError(f"verifier {name!r}: {_unknown_setting(make, settings or {}) or error}") from error
    return verifier


def _unknown_setting(make: Any, settings: Mapping[str, Any]) -> str:
    """Which setting does not exist, and which ones do; empty if all exist."""
    parameters = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ""  # it checks its settings itself
    known = [key for key in parameters if key != "hashes"]
    wrong = next((key for key in settings if key not in known), None)
    if wrong is None:
        return ""
    return f"has no setting {str(wrong)[:40]!r}; {'it has: ' + ', '.join(known) if known else 'it has none'}"


def build(spec: Spec, hashes: FileHashes | None = None) -> Verifier:
    """The verifier that a spec (above) describes. ``hashes`` caches the hashes of files that it reads."""
    name, inside = _name_and_inside(spec)
    if name not in HOWS:
        return get(name, inside, hashes)
    specs = [part["of"] for part in inside] if name == "weighted" else list(inside)
    weights = [part["weight"] for part in inside] if name == "weighted" else [1.0] * len(specs)
    return Composed(name, tuple(specs), tuple(build(part, hashes) for part in specs), tuple(map(float, weights)))


def settled(spec: Spec) -> Spec:
    """The spec without the settings that change no verdict. Specs for which this is equal share their verdicts."""
    name, inside = _name_and_inside(spec)
    if name == "weighted":
        return {name: [{**part, "of": settled(part["of"])} for part in inside]}
    if name in HOWS:
        return {name: [settled(part) for part in inside]}
    counting = getattr(get(name, inside), "settled", None)
    return spec if counting is None else {name: counting}


def _name_and_inside(spec: Spec) -> tuple[str, Any]:
    """A spec's name, and its settings or checked parts."""
    if isinstance(spec, str):
        return spec, None
    if not isinstance(spec, Mapping) or len(spec) != 1 or not all(isinstance(key, str) for key in spec):
        raise InputError(f"a verifier must be a name, or one name with its settings, not {str(spec)[:80]!r}")
    ((name, inside),) = spec.items()
    if name not in HOWS:
        return name, inside
    if not isinstance(inside, Sequence) or isinstance(inside, str) or not inside:
        raise InputError(f"verifier {name!r}: needs a list of verifiers")
    if name == "weighted" and sum(map(_weight, inside)) <= 0:
        raise InputError("verifier 'weighted': at least one weight must be above 0")
    return name, inside


def _weight(part: Any) -> float:
    if not isinstance(part, Mapping) or part.keys() != {"of", "weight"}:
        raise InputError(f"verifier 'weighted': a part must be {{of: ..., weight: ...}}, not {str(part)[:80]!r}")
    if not isinstance(part["weight"], int | float) or not part["weight"] >= 0:
        raise InputError(f"verifier 'weighted': a weight must be a number of at least 0, not {part['weight']!r}")
    return float(part["weight"])


@dataclass(frozen=True)
class Composed:
    """Several verifiers as one. The evidence holds the verdicts of the parts, in order."""

    how: str
    specs: tuple[Spec, ...]
    parts: tuple[Verifier, ...]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.how}({','.join(part.name for part in self.parts)})"

    @property
    def version(self) -> str:
        return f"1({','.join(part.version for part in self.parts)})"

    @property
    def reads_thinking(self) -> bool:
        return any(reads_thinking(part) for part in self.parts)

    @property
    def most(self) -> Mapping[str, float]:
        total: Counter[str] = Counter()
        for part in self.parts:
            total.update(getattr(part, "most", {}))
        return total

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        verdict = self.combined([judge(part, problem, trace) for part in self.parts])
        assert verdict is not None
        return verdict

    def quick(self, problem: Problem, trace: Response) -> Verdict | None:
        verdicts = [judge_quickly(part, problem, trace) for part in self.parts]
        known = [verdict for verdict in verdicts if verdict is not None]
        return self.combined(known) if len(known) == len(verdicts) else None

    def prepare(self) -> None:
        for part in self.parts:
            prepare(part)

    def combined(self, verdicts: Sequence[Verdict | None]) -> Verdict | None:
        """The composition's verdict from those of its parts; None if a missing one could still change the outcome."""
        outcomes = [v and v.outcome for v, weight in zip(verdicts, self.weights, strict=True) if weight]
        deciding = {"all": Outcome.INCORRECT, "any": Outcome.CORRECT, "weighted": Outcome.UNVERIFIABLE}[self.how]
        if deciding in outcomes:
            return self._decided_by(deciding, verdicts)
        if None in outcomes:
            return None
        if self.how == "weighted":
            return self._mean(verdicts)
        otherwise = Outcome.CORRECT if self.how == "all" else Outcome.INCORRECT
        return self._decided_by(Outcome.UNVERIFIABLE if Outcome.UNVERIFIABLE in outcomes else otherwise, verdicts)

    def _mean(self, verdicts: Sequence[Verdict | None]) -> Verdict:
        counting = [(v, weight) for v, weight in zip(verdicts, self.weights, strict=True) if v and weight]
        score = sum(weight * (v.score or 0.0) for v, weight in counting) / sum(self.weights)
        right = all(v.outcome is Outcome.CORRECT for v, _ in counting)
        outcome = Outcome.CORRECT if right else Outcome.INCORRECT
        return Verdict(outcome, score, f"weighted score {score:.3g}", {"parts": list(self._evidence(verdicts))})

    def _decided_by(self, outcome: Outcome, verdicts: Sequence[Verdict | None]) -> Verdict:
        first = next(
            v for v, weight in zip(verdicts, self.weights, strict=True) if v and weight and v.outcome is outcome
        )
        score = {Outcome.CORRECT: 1.0, Outcome.INCORRECT: 0.0, Outcome.UNVERIFIABLE: None}[outcome]
        reason = f"{first.verifier}: {first.reason}"
        # A part that failed may give a verdict when it is tried again, so the whole failed too and did not abstain.
        failed = next((v.failure for v in verdicts if v and v.outcome is outcome and v.failure), None)
        why: dict[str, Any] = {"failure": str(failed)} if failed else {}
        return Verdict(outcome, score, reason, {**why, "parts": list(self._evidence(verdicts))})

    def _evidence(self, verdicts: Sequence[Verdict | None]) -> Iterator[dict[str, Any]]:
        for part, verdict in zip(self.parts, verdicts, strict=True):
            if verdict is None:
                yield {"verifier": part.name, "outcome": "not asked", "reason": "it could change nothing"}
            else:
                yield {
                    "verifier": verdict.verifier,
                    "outcome": str(verdict.outcome),
                    "reason": verdict.reason,
                    "evidence": dict(verdict.evidence),
                }
