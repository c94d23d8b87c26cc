"""From data to verifiers: names, settings, and compositions of them, as they stand in YAML.

    math                                            a name
    {format: {boxed: true}}                         a name with settings
    {all: [math, format]}                           correct where all are
    {any: [math, exact]}                            correct where one is
    {weighted: [{of: math, weight: 0.9}, {of: format, weight: 0.1}]}

`all` is wrong as soon as one part is wrong, and `any` right as soon as one is right; short of that, one
`unverifiable` part makes the whole `unverifiable`. `weighted` is the weighted mean of the scores; it is
correct where every part that has weight is, and `unverifiable` where any such part is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.catalog import resolve
from distill.thinking import Response
from distill.types import Outcome, Problem, Verdict
from distill.verifiers.base import Verifier
from distill.verifiers.run import judge, judge_quickly, prepare, reads_thinking
from pipeline.errors import InputError

Spec = str | Mapping[str, Any]


def get(name: str, settings: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier registered as ``name``; `InputError` names a wrong name or setting."""
    make = resolve("verifiers", name)
    try:
        verifier: Verifier = make(**(settings or {}))
    except TypeError as error:
        raise InputError(f"verifier {name!r}: {error}") from error
    return verifier


def build(spec: Spec) -> Verifier:
    """The verifier that a spec (above) describes."""
    if isinstance(spec, str):
        return get(spec)
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise InputError(f"a verifier is a name or one name with its settings, not {str(spec)[:80]!r}")
    ((name, inside),) = spec.items()
    if name not in ("all", "any", "weighted"):
        return get(name, inside)
    if not isinstance(inside, Sequence) or isinstance(inside, str) or not inside:
        raise InputError(f"{name!r} wants a list of verifiers")
    if name != "weighted":
        return Composed(name, tuple(build(part) for part in inside), (1.0,) * len(inside))
    weights = tuple(_weight(part) for part in inside)
    if sum(weights) <= 0:
        raise InputError("the weights of 'weighted' add up to nothing")
    return Composed(name, tuple(build(part["of"]) for part in inside), weights)


def _weight(part: Any) -> float:
    if not isinstance(part, Mapping) or part.keys() != {"of", "weight"}:
        raise InputError(f"a part of 'weighted' is {{of: ..., weight: ...}}, not {str(part)[:80]!r}")
    if not isinstance(part["weight"], int | float) or not part["weight"] >= 0:
        raise InputError(f"a weight is a number from 0 up, not {part['weight']!r}")
    return float(part["weight"])


@dataclass(frozen=True)
class Composed:
    """Several verifiers as one. The parts' verdicts lie in the evidence, in their order."""

    how: str
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

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        return self._combined([judge(part, problem, trace) for part in self.parts])

    def quick(self, problem: Problem, trace: Response) -> Verdict | None:
        verdicts = [judge_quickly(part, problem, trace) for part in self.parts]
        known = [verdict for verdict in verdicts if verdict is not None]
        return self._combined(known) if len(known) == len(verdicts) else None

    def prepare(self) -> None:
        for part in self.parts:
            prepare(part)

    def _combined(self, verdicts: list[Verdict]) -> Verdict:
        outcomes = [verdict.outcome for verdict, weight in zip(verdicts, self.weights, strict=True) if weight]
        evidence = [
            {"verifier": v.verifier, "outcome": str(v.outcome), "reason": v.reason, "evidence": dict(v.evidence)}
            for v in verdicts
        ]
        if self.how == "weighted" and Outcome.UNVERIFIABLE not in outcomes:
            total = sum(weight * (v.score or 0.0) for weight, v in zip(self.weights, verdicts, strict=True) if weight)
            right = all(outcome is Outcome.CORRECT for outcome in outcomes)
            outcome = Outcome.CORRECT if right else Outcome.INCORRECT
            score = total / sum(self.weights)
            return Verdict(outcome, score, f"weighted score {score:.3g}", {"parts": evidence})
        deciding = {"all": Outcome.INCORRECT, "any": Outcome.CORRECT, "weighted": Outcome.UNVERIFIABLE}[self.how]
        otherwise = Outcome.CORRECT if self.how == "all" else Outcome.INCORRECT
        for wanted in (deciding, Outcome.UNVERIFIABLE):
            if wanted in outcomes:
                return self._because(wanted, verdicts, evidence)
        return self._because(otherwise, verdicts, evidence)

    def _because(self, outcome: Outcome, verdicts: list[Verdict], evidence: list[dict[str, Any]]) -> Verdict:
        first = next(v for v in verdicts if v.outcome is outcome)
        score = {Outcome.CORRECT: 1.0, Outcome.INCORRECT: 0.0, Outcome.UNVERIFIABLE: None}[outcome]
        # A part that failed may judge another time, so the whole may too: it is no abstention.
        failed = next((v.failure for v in verdicts if v.outcome is outcome and v.failure), None)
        why: dict[str, Any] = {"failure": str(failed)} if failed else {}
        return Verdict(outcome, score, f"{first.verifier}: {first.reason}", {**why, "parts": evidence})
