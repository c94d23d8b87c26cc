"""Which problems a step gets: tasks by their weights, and within a task by what is known about each problem.

A draw is a pure function of (settings, step) and, with pass rates, of the rollouts of the steps before it, so a
killed run draws the same problems again. The caller supplies the results of those rollouts, after a kill from the
store (`rl.ledger.Ledger.passes`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from distill.randomness import generator, permutation
from distill.types import Problem

Tally = tuple[float, float]
"""How often a problem was solved, and in how many tries."""


@dataclass(frozen=True, slots=True)
class Task:
    """Problems that make up a share of every step: ``weight`` divided by the sum of all weights."""

    problems: Sequence[Problem]
    weight: float = 1.0


def shares(weights: Sequence[float], count: int, *parts: object) -> list[int]:
    """Divide ``count`` by ``weights``, as a pure function of ``parts``. Each share is rounded up or down such that it
    is exact on average (systematic sampling), and all add up to ``count``."""
    start = float(generator(*parts).random()) if len(weights) > 1 else 0.0
    whole = math.fsum(weights)
    edges = [math.floor(count * edge / whole + start) for edge in accumulate(weights[:-1])]
    return [after - before for before, after in zip([0, *edges], [*edges, count], strict=True)]


def most(weights: Sequence[float], count: int, draws: int = 1) -> list[int]:
    """The largest possible `shares`, summed over this many draws."""
    whole = math.fsum(weights)
    return [math.ceil(count * weight / whole) * draws for weight in weights]


class PassRates:
    """How often each problem was solved before a step. ``before`` holds results from outside this run.

    Each new group halves the weight of earlier results, because the student changes.
    """

    def __init__(self, before: Mapping[str, Tally] | None = None) -> None:
        self._before = dict(before or {})
        self._groups: dict[int, dict[str, list[bool | None]]] = defaultdict(dict)

    def add(self, step: int, passes: Iterable[tuple[str, bool | None]]) -> None:
        """Record the rollouts of ``step`` (from 1): the problem's id, and whether it was solved, None if nobody could
        judge. A step that is recorded twice counts once."""
        groups: dict[str, list[bool | None]] = defaultdict(list)
        for problem, passed in passes:
            groups[problem].append(passed)
        self._groups[step] = groups

    def at(self, step: int) -> dict[str, Tally]:
        """What is known when ``step`` (from 0) draws: the results of the steps before it. A first group that nobody
        could judge counts as if it had solved nothing, which taught as little: left untried, a problem that cannot be
        judged would soon be drawn before all others."""
        known = dict(self._before)
        for number in sorted(n for n in self._groups if n <= step):
            for problem, passes in self._groups[number].items():
                solved, tries = known.get(problem, (0.0, 0.0))
                if judged := _judged(passes):
                    known[problem] = solved / 2 + sum(judged), tries / 2 + len(judged)
                else:
                    known.setdefault(problem, (0.0, float(len(passes))))
        return known

    def drawn(self, step: int) -> Mapping[str, Sequence[bool | None]]:
        """The rollouts of a step by problem."""
        return self._groups.get(step, {})

    def groups(self, step: int) -> dict[str, list[bool]]:
        """The judged rollouts of a step by problem, without problems that have none."""
        return {problem: judged for problem, passes in self._groups[step].items() if (judged := _judged(passes))}


def _judged(passes: Iterable[bool | None]) -> list[bool]:
    return [passed for passed in passes if passed is not None]


@dataclass(frozen=True, slots=True)
class Preference:
    """Prefers problems whose pass rate is near ``aim``: their weight is exp(-strength KL(aim, rate)).

    The rate is smoothed by two tries at ``aim``, so untried problems are worth trying and none is ever given
    up. With ``strength`` 0 all are drawn alike.
    """

    aim: float = 0.5
    strength: float = 4.0

    def rate(self, tally: Tally) -> float:
        return (tally[0] + 2 * self.aim) / (tally[1] + 2)

    def weight(self, tally: Tally) -> float:
        rate = self.rate(tally)
        gap = self.aim * math.log(self.aim / rate) + (1 - self.aim) * math.log((1 - self.aim) / (1 - rate))
        return math.exp(-min(self.strength * gap, 600))  # bounded, so that it stays above zero


class Draws:
    """The problems of (step, draw), both from 0: a `rl.grpo.Sample`. A step reserves ``draws`` draws of ``prompts``
    problems, whether they are made or not, so that a draw depends on no other. The problems of a step all differ, so a
    task needs at least as many as it may have to give (`most`), and no problem may be in two tasks."""

    def __init__(
        self, tasks: Sequence[Task], prompts: int, draws: int = 1, seed: int = 0,
        prefer: Preference | None = None, rates: PassRates | None = None,
    ) -> None:  # fmt: skip
        self._tasks, self._prompts, self._draws, self._seed = tasks, prompts, draws, seed
        self._prefer, self.rates = prefer, rates or PassRates()
        self._starts = [[0] * len(tasks)]
        self._walks: list[list[int]] = [[] for _ in tasks]

    def __call__(self, step: int, draw: int = 0) -> list[Problem]:
        made = [self._counts(step, earlier) for earlier in range(draw + 1)]
        take = self._preferred if self._prefer else self._walked
        return [
            problem
            for index, counts in enumerate(zip(*made, strict=True))
            for offset, problem in take(step, index, sum(counts))
            if offset >= sum(counts[:-1])
        ]

    def weights(self, step: int) -> dict[str, float]:
        """How likely each problem is to be drawn at ``step``, relative to a uniform draw from its task (1)."""
        found = dict[str, float]()
        for task in self._tasks:
            own = self._weights(step, task)
            found |= {
                problem.id: weight * len(own) / math.fsum(own)
                for problem, weight in zip(task.problems, own, strict=True)
            }
        return found

    def solved(self, step: int) -> float:
        """The share of rollouts of ``step`` (from 1) that would have been right, had problems been drawn uniformly: the
        preference moves the mean towards its aim, without any learning. NaN if none was judged.

        It is the mean of what was known of all problems, plus an estimate of how far they differ from that: each drawn
        one stands for all that were left when it was drawn, the more the rarer it was (Des Raj 1956, for draws without
        replacement). Where what is known is wrong or old, the estimate is noisier, but not biased; only refills bias it
        a little, as they follow from the results.
        """
        step, groups = step - 1, self.rates.drawn(step)
        known, prefer = self.rates.at(step), self._prefer or Preference(strength=0.0)
        terms: list[float] = []
        for index, task in enumerate(self._tasks):
            rates = {problem.id: prefer.rate(known.get(problem.id, (0.0, 0.0))) for problem in task.problems}
            weights = dict(zip(rates, self._weights(step, task), strict=True))
            order = [problem.id for _, problem in self._preferred(step, index, len(rates))]
            left = list(accumulate(weights[name] for name in reversed(order)))[::-1]  # not drawn before the n-th
            mean, seen = math.fsum(rates.values()) / len(rates), 0.0
            for name, rest in zip(order, left, strict=True):
                if judged := _judged(groups.get(name, ())):
                    more = sum(judged) / len(judged) - rates[name]
                    terms.append(mean + (seen + more * rest / weights[name]) / len(rates))
                    seen += more
        return math.fsum(terms) / len(terms) if terms else math.nan

    def _weights(self, step: int, task: Task) -> list[float]:
        prefer, known = self._prefer or Preference(strength=0.0), self.rates.at(step)
        return [prefer.weight(known.get(problem.id, (0.0, 0.0))) for problem in task.problems]

    def _counts(self, step: int, draw: int) -> list[int]:
        return shares([task.weight for task in self._tasks], self._prompts, self._seed, "tasks", step, draw)

    def _walked(self, step: int, index: int, count: int) -> Iterator[tuple[int, Problem]]:
        """Walk through permutations of a task's problems, a new one for each round."""
        while len(self._starts) <= step + 1:
            self._go_on(len(self._starts) - 1)
        start, problems = self._starts[step][index], self._tasks[index].problems
        yield from enumerate(problems[i] for i in self._walks[index][start : start + count])

    def _go_on(self, step: int) -> None:
        """Extend the walks to the end of ``step``. A round that begins within the step does not repeat problems that
        the round before gave to this step."""
        made = zip(*(self._counts(step, draw) for draw in range(self._draws)), strict=True)
        starts = self._starts[-1]
        ends = [start + sum(counts) for start, counts in zip(starts, made, strict=True)]
        for index, (walk, start, end) in enumerate(zip(self._walks, starts, ends, strict=True)):
            if len(walk) < end:
                count = len(self._tasks[index].problems)
                order = permutation(count, self._seed, "grpo", len(walk) // count, *([index] if index else []))
                walk += _apart(order, walk[start:], end - len(walk))
        self._starts.append(ends)

    def _preferred(self, step: int, index: int, count: int) -> Iterator[tuple[int, Problem]]:
        """Draw without replacement, each next one by weight: the first ``count`` to arrive, where arrival times are
        exponential with the weights as rates (Efraimidis and Spirakis, 2006)."""
        problems, weights = self._tasks[index].problems, self._weights(step, self._tasks[index])
        arrivals = generator(self._seed, "grpo arrivals", step, index).exponential(size=len(problems))
        times = [float(time) / weight for time, weight in zip(arrivals, weights, strict=True)]
        yield from enumerate(problems[i] for i in sorted(range(len(problems)), key=times.__getitem__)[:count])


def _apart(order: list[int], given: Sequence[int], head: int) -> list[int]:
    """``order`` with none of ``given`` in its first ``head`` places: these are swapped with the first others beyond."""
    order, barred = list(order), set(given)
    free = (place for place in range(head, len(order)) if order[place] not in barred)
    for place in range(head):
        if order[place] in barred:
            other = next(free)
            order[place], order[other] = order[other], order[place]
    return order


def zero_variance(draws: Draws, steps: int) -> dict[str, float]:
    """The share of groups that were all solved or all failed: as drawn, and an estimate for uniform draws (each group
    is weighted by how much rarer it would have been)."""
    seen = [
        (float(len(set(passes)) < 2), 1 / weights[problem])
        for step in range(steps)
        for weights in [draws.weights(step)]
        for problem, passes in draws.rates.groups(step + 1).items()
    ]
    if not seen:
        return {}
    drawn = math.fsum(same for same, _ in seen) / len(seen)
    alike = math.fsum(same * rarer for same, rarer in seen) / math.fsum(rarer for _, rarer in seen)
    return {"all_alike": round(drawn, 4), "all_alike_without_preference": round(alike, 4)}
