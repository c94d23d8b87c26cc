"""The components of a rollout's reward, named and weighted, as they are written in YAML.

    {verifier: math}                             the score of a verifier, 0 or 1, or `values: [-1, 1]`
    {verifier: null}                             the same by each problem's own verifier
    {length: cosine, right: [1, 0.5]}            a value that depends on length and correctness
    {repetition: 3, weight: 0.5}                 a punishment of repeated n-grams

Pure functions of one problem's samples. The reward is the weighted sum. A sample that a component cannot
judge has no reward: the others of its group would be compared with a sum that lacks a term. If a component is
`optional`, the group's mean replaces its missing value, so that it neither lifts nor lowers the sample within
its group. A component of weight 0 is only monitored: neither its values nor missing ones change the reward. (The one
exception: if no verifier has a weight, the first still decides what is right for `length`.)

`rl.ledger` calls the verifiers. DAPO's punishment of overlong responses is `rl.credit.soft_overlong`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Discriminator, Field, Tag, model_validator

from distill.stages.common import RewardModel, VerifierSpec
from pipeline.stage import Settings

Scores = Mapping[str, float | None]
"""The verifiers' scores of one rollout, in [0, 1], by component name; None if unverifiable."""

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class Sampled(NamedTuple):
    """One response to a problem, as components see it."""

    token_ids: Sequence[int]
    scores: Scores


class Mixed(NamedTuple):
    """A reward and its components before weighting; None where something could not be judged."""

    reward: float | None
    components: Mapping[str, float | None] = {}


Right = Sequence[float | None]
"""How right each sample of a group is, in [0, 1], by the mixture's judge (`judge_of`)."""


class Verified(Settings):
    """A verifier's score."""

    verifier: Annotated[VerifierSpec | None, RewardModel]
    """Any verifier, with its settings; `null` means each problem's own."""
    values: Annotated[Pair, Field(default_factory=lambda: [0.0, 1.0])]
    """Rewards for a score of 0 and a score of 1. `[-1, 1]` punishes wrong answers."""
    weight: float = 1.0
    optional: bool = False
    """If the verifier cannot judge a sample: with `true` the other components decide, otherwise there is no reward."""
    name: str = ""
    """Name in the metrics. Default: the verifier's."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.values[0] < self.values[1]:
            raise ValueError("values: right must be worth more than wrong; a weight may be negative")
        return self

    @property
    def label(self) -> str:
        spec = self.verifier
        return self.name or ("verifier" if spec is None else spec if isinstance(spec, str) else next(iter(spec)))

    def of(self, group: Sequence[Sampled], longest: int, right: Right) -> list[float | None]:
        low, high = self.values
        scores = [sample.scores[self.label] for sample in group]
        return [None if score is None else low + (high - low) * score for score in scores]


class Length(Settings):
    """A value by the number of response tokens, thinking included."""

    length: Literal["cosine", "linear", "relative", "target"]
    """`cosine` and `linear` go from the value at no tokens to the value at `max_tokens`; `relative` compares with the
    shortest and the longest of the group; `target` is minus the distance from `tokens`."""
    right: Annotated[Pair, Field(default_factory=lambda: [1.0, 0.5])]
    """`cosine`, `linear`: the value of a right answer at no tokens, and at `max_tokens`."""
    wrong: Annotated[Pair, Field(default_factory=lambda: [-1.0, -0.5])]
    """The same for a wrong answer. `[0, 0]` with `right: [0, -1]` charges right answers for their tokens."""
    tokens: Annotated[int | None, Field(ge=1)] = None
    weight: float = 1.0
    """For `target`, the price of one token."""
    optional: bool = False
    name: str = ""

    @property
    def label(self) -> str:
        return self.name or self.length

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.length == "target") != (self.tokens is not None):
            raise ValueError("`length: target` needs `tokens`, and no other length has them")
        if self.length in ("relative", "target") and self.model_fields_set & {"right", "wrong"}:
            raise ValueError("`right` and `wrong` belong to `cosine` and `linear`")
        return self

    def of(self, group: Sequence[Sampled], longest: int, right: Right) -> list[float | None]:
        lengths = [len(sample.token_ids) for sample in group]
        if self.tokens is not None:
            return [-float(abs(length - self.tokens)) for length in lengths]
        if self.length == "relative":
            return relative(right, lengths)
        shape = cosine if self.length == "cosine" else linear
        return [
            None if s is None else s * shape(n, longest, *self.right) + (1 - s) * shape(n, longest, *self.wrong)
            for s, n in zip(right, lengths, strict=True)
        ]


class Repetition(Settings):
    """Minus the share of n-grams of tokens that were there before (0 to -1)."""

    repetition: Annotated[int, Field(ge=1)]
    """n: the component is minus the share of n-grams that repeat an earlier one."""
    weight: float = 1.0
    optional: bool = False
    name: str = ""

    @property
    def label(self) -> str:
        return self.name or "repetition"

    def of(self, group: Sequence[Sampled], longest: int, right: Right) -> list[float | None]:
        return [-repeated(sample.token_ids, self.repetition) for sample in group]


def _tag(value: Any) -> str:
    """The kind of a component, by the key that only this kind has."""
    found = (
        key for key in ("length", "repetition") if (key in value if isinstance(value, dict) else hasattr(value, key))
    )
    return f"{next(found, 'verifier')} component"


Component = Annotated[
    Annotated[Verified, Tag("verifier component")]
    | Annotated[Length, Tag("length component")]
    | Annotated[Repetition, Tag("repetition component")],
    Discriminator(_tag),
]


def cosine(length: int, longest: int, first: float, last: float) -> float:
    """From ``first`` at no tokens to ``last`` at ``longest`` and beyond, along half a cosine
    (https://arxiv.org/abs/2502.03373, C.1)."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * min(1.0, length / longest)))


def linear(length: int, longest: int, first: float, last: float) -> float:
    return first + (last - first) * min(1.0, length / longest)


def relative(scores: Sequence[float | None], lengths: Sequence[int]) -> list[float | None]:
    """Kimi k1.5's length reward (https://arxiv.org/abs/2501.12599, 2.3.3): 0.5 for the shortest of the group down to
    -0.5 for the longest, and never above 0 for a wrong answer."""
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [None if score is None else 0.0 for score in scores]
    places = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [
        None if s is None else s * place + (1 - s) * min(0.0, place) for s, place in zip(scores, places, strict=True)
    ]


def repeated(token_ids: Sequence[int], size: int) -> float:
    """The share of n-grams of ``size`` tokens that repeat an earlier one (https://arxiv.org/abs/2502.03373, C.2)."""
    ngrams = list(zip(*(token_ids[i:] for i in range(size)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def verifiers(components: Sequence[Component]) -> dict[str, Any]:
    """The verifiers to call, by component name; None is each problem's own."""
    return {c.label: c.verifier for c in components if isinstance(c, Verified)}


def judge_of(components: Sequence[Component]) -> Verified | None:
    """The component that decides correctness: the first verifier with a weight, or else the first verifier."""
    found = [c for c in components if isinstance(c, Verified)]
    return next((c for c in found if c.weight), found[0] if found else None)


def passes(component: Verified, value: float) -> bool:
    """Whether a value of this component means that the answer is right: a score of at least one half."""
    low, high = component.values
    return value >= low + (high - low) * 0.5


def check(components: Sequence[Component]) -> None:
    """Raise ValueError if the components cannot be combined."""
    names = Counter(component.label for component in components)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two components are called {twice[0]!r}: give one a `name`")
    if "overlong" in names:
        raise ValueError("the name 'overlong' is taken by `overlong: punish`")
    if not any(component.weight for component in components):
        raise ValueError("no component has any weight")
    if judge_of(components) is None:
        raise ValueError("there is no verifier among the components; `{verifier: null}` is each problem's own")


def mixed(components: Sequence[Component], group: Sequence[Sampled], longest: int) -> list[Mixed]:
    """The rewards of one problem's samples. ``longest`` is the limit on their tokens."""
    judge = judge_of(components)
    right = [sample.scores[judge.label] if judge else None for sample in group]
    columns = [component.of(group, longest, right) for component in components]
    whole = [_weighted(component, column) for component, column in zip(components, columns, strict=True)]
    names = [component.label for component in components]
    rows = zip(zip(*whole, strict=True), zip(*columns, strict=True), strict=True)
    return [
        Mixed(
            math.fsum(t for t in terms if t is not None) if None not in terms else None,
            dict(zip(names, row, strict=True)),
        )
        for terms, row in rows
    ]


def _weighted(component: Component, values: Sequence[float | None]) -> list[float | None]:
    """A component's terms of the weighted sum; None if it leaves a sample without a reward."""
    if not component.weight:
        return [0.0] * len(values)
    known = [value for value in values if value is not None]
    substitute = _mean(known) if component.optional else None
    filled = [substitute if value is None else value for value in values]
    return [None if value is None else component.weight * value for value in filled]


def _mean(values: Sequence[float]) -> float:
    """The mean, kept within the range of the values: a rounding error would make a group of equals seem to differ."""
    return min(max(math.fsum(values) / len(values), min(values)), max(values)) if values else 0.0
