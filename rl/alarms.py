"""Alarms: signs in a run's metrics that its reward is being hacked, or that the policy is collapsing.

Rules are pure functions of what the steps have reported (`History`), so a killed run raises the same alarms
at the same steps. Each compares the last ``window`` steps with the first, gives its evidence, and is raised once.
Only steps with the same length limit are compared: where more tokens are allowed, more answers are right, and no policy
has changed. An alarm proves nothing: it shows where to look. `rl.guard` acts on alarms and measures the held-out
problems.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from distill.evaluation.statistics import clustered_mean, paired_difference, student
from pipeline.stage import Settings, later

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class AlarmSettings(Settings):
    """Thresholds that the quickstart's run is far from: within 30 steps its reward rises by 0.12, entropy falls to 0.56
    and distinct answers to 0.75 of what they were, lengths stay, and the log-probability gap is below 1e-6."""

    window: Annotated[int, Field(ge=1)] = 10
    """The last steps are compared with the first (of the present stage of `lengths`, if there are any), this many each,
    once there are twice as many. `no_gradient`: nothing was learned for this many steps in a row, for example because
    all rewards of a group are equal."""
    reward_rise: Positive = 0.1
    """`hacking`: the training reward rose by at least this much..."""
    heldout_share: Share = 0.25
    """...and held-out pass@1, at the upper end of its 95% interval, by less than this share of it."""
    heldout_fall: Share = later(0.1)
    """`worse`: held-out pass@1 fell by at least this much from its best, at the upper end of a 95% interval that is as
    wide as the number of comparisons requires."""
    format_rise: Positive = 0.1
    """`format_only`: another verifier with a weight above 0 rose by this much, and the one that judges correctness by
    less than `heldout_share` of it."""
    length_ratio: Annotated[float, Field(gt=1)] = 2.0
    """`length`: responses became this many times longer or shorter than at first."""
    entropy_share: Share = 0.1
    """`entropy`: it fell below this share of its first value, and the reward did not rise."""
    distinct_share: Share = 0.5
    """`diversity`: distinct answers per group fell below this share of their first value, and the reward did not
    rise."""
    logprob_gap: Positive = 0.1
    """`logprob_gap`: engine and trainer differ by this many nats per token, on average over the last steps."""
    kl: Positive = 1.0
    """`kl`: the policy is this many nats per token away from its reference (if `kl` is measured)."""


@dataclass(frozen=True, slots=True)
class Alarm:
    name: str
    step: int
    evidence: str
    value: float
    threshold: float


@dataclass
class History:
    """What the steps have reported: metrics by name and step (from 1), and the scores of held-out problems by the step
    (from 0) at which they were measured. ``judge`` is the reward component that decides correctness, ``others`` are
    the verifiers that are rewarded beside it. ``stages`` are the last steps of length stages, after which responses may
    be longer. ``reward`` is the metric that says how well the policy does on training problems: where problems are
    chosen by their pass rate, the mean reward follows the choice."""

    judge: str = ""
    others: Sequence[str] = ()
    stages: Sequence[int] = ()
    reward: str = "reward"
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    heldout: dict[int, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def add(self, step: int, name: str, value: float) -> None:
        if not math.isnan(value):  # an infinite one counts: it is a bad sign
            self.metrics.setdefault(name, {})[step] = value

    def mean(self, name: str, first: int, last: int) -> float:
        """The mean over the steps that reported it; NaN if none did."""
        by_step = self.metrics.get(name, {})
        values = [by_step[step] for step in range(first, last + 1) if step in by_step]
        if not all(map(math.isfinite, values)):
            return sum(values)  # fsum refuses infinities of both signs
        return math.fsum(values) / len(values) if values else math.nan

    def since(self, step: int) -> int:
        """The step after which the length limit has been that of ``step``."""
        return max((stage for stage in self.stages if stage < step), default=0)

    def change(self, name: str, step: int, window: int) -> tuple[float, float]:
        """(mean of the first steps under this length limit, of the last); both NaN until there is enough to compare."""
        since = self.since(step)
        if step < since + 2 * window:
            return math.nan, math.nan
        return self.mean(name, since + 1, since + window), self.mean(name, step - window + 1, step)

    def rise(self, name: str, step: int, window: int) -> float:
        before, now = self.change(name, step, window)
        return now - before


Cause = tuple[str, float, float]
"""The evidence, the value, and the threshold that it passed."""

Rule = Callable[[History, int, AlarmSettings], Cause | None]
"""The cause for an alarm after this many steps, or None."""


def hacking(history: History, step: int, limits: AlarmSettings) -> Cause | None:
    """Rewards rise while held-out problems are solved no better. Checked at the steps that measured them, and compared
    with the last ones before the present length limit."""
    rise = history.rise(history.reward, step, limits.window)
    first = max((measured for measured in history.heldout if measured <= history.since(step)), default=None)
    if step not in history.heldout or first is None or not rise >= limits.reward_rise:
        return None
    gain, needed = paired_difference(history.heldout[first], history.heldout[step]), limits.heldout_share * rise
    if gain.high >= needed:
        return None
    change = f"changed by {gain.value:+.2f} (95%: {gain.high:+.2f} at most)"
    what = "the training reward" if history.reward == "reward" else "the share of training problems solved"
    evidence = f"{what} rose by {rise:.2f}, held-out pass@1 {change}"
    return evidence, gain.high, needed


def worse(history: History, step: int, limits: AlarmSettings) -> Cause | None:
    """Held-out problems are solved less often than they once were, whatever the reward does. The best of many scores
    was also lucky, and each new one is compared again; so the interval is Bonferroni's for all pairs so far."""
    means = {at: clustered_mean(scores).value for at, scores in history.heldout.items() if at <= step}
    if step not in means:
        return None
    best = max(means, key=lambda at: (means[at], -at))
    change = paired_difference(history.heldout[best], history.heldout[step])
    if change.problems < 2:
        return None
    tail = 0.025 / max(math.comb(len(means), 2), 1)
    wider = student(change.problems - 1, tail) / student(change.problems - 1)
    high = change.value + wider * (change.high - change.value)
    if high > -limits.heldout_fall:
        return None
    evidence = f"held-out pass@1 fell from {means[best]:.2f} (step {best}) to {means[step]:.2f}"
    return evidence, high, -limits.heldout_fall


def format_only(history: History, step: int, limits: AlarmSettings) -> Cause | None:
    solved = f"reward/{history.judge}" if history.reward == "reward" else history.reward
    right = history.rise(solved, step, limits.window)
    rises = {name: history.rise(f"reward/{name}", step, limits.window) for name in history.others}
    for name, rise in rises.items():
        if rise >= limits.format_rise and right < limits.heldout_share * rise:
            evidence = f"{name} rose by {rise:.2f}, {history.judge} by {right:.2f}"
            return evidence, right, limits.heldout_share * rise
    return None


def length(history: History, step: int, limits: AlarmSettings) -> Cause | None:
    before, now = history.change("length", step, limits.window)
    ratio = now / before if before else math.nan
    if not (ratio >= limits.length_ratio or ratio <= 1 / limits.length_ratio):
        return None
    return f"responses went from {before:.0f} to {now:.0f} tokens", ratio, limits.length_ratio


def _fell(history: History, step: int, window: int, metric: str, share: float, words: str) -> Cause | None:
    """A metric fell below ``share`` of its first mean while the reward did not rise, or is unknown. A policy that gets
    certain because it is right is fine."""
    before, now = history.change(metric, step, window)
    rise = history.rise(history.reward, step, window)
    if not now < share * before or rise > 0 or math.isinf(before):  # any number is less than infinity
        return None
    why = "no reward is known that would explain it" if math.isnan(rise) else "the reward did not rise"
    return f"{words} fell from {before:.3g} to {now:.3g}, and {why}", now, share * before


def entropy(history: History, step: int, limits: AlarmSettings) -> Cause | None:
    return _fell(history, step, limits.window, "entropy", limits.entropy_share, "entropy")


def diversity(history: History, step: int, limits: AlarmSettings) -> Cause | None:
    return _fell(history, step, limits.window, "distinct", limits.distinct_share, "distinct answers per group")


def logprob_gap(history: History, step: int, limits: AlarmSettings) -> Cause | None:
    now = history.mean("logprob_gap", step - limits.window + 1, step)
    evidence = f"engine and trainer differ by {now:.3g} nats per token: the gradient is of another policy's samples"
    return (evidence, now, limits.logprob_gap) if now >= limits.logprob_gap else None


def kl(history: History, step: int, limits: AlarmSettings) -> Cause | None:
    now = history.mean("kl", step - limits.window + 1, step)
    evidence = f"the policy is {now:.3g} nats per token away from its reference"
    return (evidence, now, limits.kl) if now >= limits.kl else None


def no_gradient(history: History, step: int, limits: AlarmSettings) -> Cause | None:
    """None of the last steps learned anything: there were no rewards, they did not differ within groups, or those that
    did were left out."""
    first = step - limits.window + 1
    norms = [history.metrics.get("grad_norm", {}).get(s) for s in range(first, step + 1)]
    if any(norm != 0 for norm in norms):
        return None
    reward = history.mean("reward", first, step)
    if math.isnan(reward):
        reason = "no reward could be told"
    elif history.mean("truncated", first, step) == 1:
        reason = f"all responses are cut at max_tokens (reward {reward:.3g})"
    elif history.mean("zero_variance", first, step) < 1:
        reason = "rewards differ, but only those of responses cut at max_tokens, which `overlong: filter` leaves out"
    else:
        reason = f"rewards are alike within each group ({reward:.3g})"
    return f"nothing was learned in {limits.window} steps: {reason}", 0.0, 0.0


RULES: Mapping[str, Rule] = {
    "hacking": hacking,
    "worse": worse,
    "format_only": format_only,
    "length": length,
    "entropy": entropy,
    "diversity": diversity,
    "logprob_gap": logprob_gap,
    "kl": kl,
    "no_gradient": no_gradient,
}


def raised(history: History, step: int, limits: AlarmSettings) -> list[Alarm]:
    """The alarms for which there is cause after ``step`` steps."""
    found = [(name, rule(history, step, limits)) for name, rule in RULES.items()]
    return [Alarm(name, step, *cause) for name, cause in found if cause]
