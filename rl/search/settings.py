"""Strategies as written in YAML: a name, or a name with its settings, as in ``{beam: {width: 8}}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationError

from distill import catalog
from pipeline.errors import InputError
from rl.search.allocation import Allocation
from rl.search.base import Strategy


@dataclass(frozen=True, slots=True)
class Named:
    """A strategy with its label: the name, the settings that are not defaults, and the scorer."""

    name: str
    strategy: Strategy | Allocation

    @property
    def label(self) -> str:
        return f"{self.way} by {self.by}" if self.by else self.way

    @property
    def way(self) -> str:
        """The label without the scorer."""
        own = {key: value for key, value in self._non_defaults().items() if key != "by"}
        return " ".join([self.name, *(f"{key}={value}" for key, value in own.items())])

    @property
    def by(self) -> str | None:
        return getattr(self.strategy, "by", None)

    def each(self, scorers: Iterable[str]) -> list[Named]:
        """One copy for each scorer if the strategy goes by scores and names no scorer; otherwise only itself."""
        if self.by or "scorer" not in self.strategy.needs:
            return [self]
        built: Any = self.strategy
        return [Named(self.name, built.model_copy(update={"by": label})) for label in scorers]

    def _non_defaults(self) -> dict[str, Any]:
        return self.strategy.model_dump(mode="json", exclude_defaults=True)  # type: ignore[union-attr]

    def plain(self) -> Any:
        return {self.name: own} if (own := self._non_defaults()) else self.name


def named(spec: Any) -> Named:
    """Parse a strategy; raises `ValueError` if it is not one."""
    name, settings = next(iter(spec.items())) if isinstance(spec, Mapping) and len(spec) == 1 else (spec, {})
    if not isinstance(name, str):
        raise ValueError("expected the name of a strategy, or one name with its settings: {beam: {width: 8}}")
    try:
        built = catalog.resolve("strategies", catalog.check("strategies", name))
        return Named(name, built.model_validate(settings or {}))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join([name, *map(str, first['loc'])])}: {first['msg']}") from None
    except InputError as error:
        raise ValueError(str(error)) from None


StrategySpec = Annotated[str | dict[str, Any], AfterValidator(lambda spec: named(spec).plain())]
"""A strategy in YAML, normalised to leave out settings that are defaults."""
