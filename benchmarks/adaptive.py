"""Adaptive against uniform sampling: tokens (and CPU-seconds) for the same accepted traces, in one run.

The goal is 4 correct traces of each problem in at most 16 tries. Uniform sampling makes 16 of each and then judges
them; fewer samples would satisfy fewer problems. Adaptive sampling (`generate` with ``until``) reaches 4 for exactly
the same problems. Both are run as real pipelines, alternating, each in its own workspace. There are two teachers: the
embedded teacher made unreliable by a temperature of 1.5 (the control of configs/quickstart.yaml), and the weak base
model. The texts that both make are compared byte for byte.

From the verdicts of all 16, ``detail`` also reports for each teacher what uniform sampling with fewer samples costs and
reaches (``uniform``: by samples per problem, the tokens, problems satisfied, and accepted traces up to 4 per problem).
It reports the same for ``until`` with its shortcuts (``trivial``, ``hopeless``), which give up some accepted traces to
save more tokens.

    python benchmarks/adaptive.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from distill import catalog
from distill.adaptive.rule import Rule
from distill.store import Store
from distill.types import Outcome
from pipeline import config, runner
from pipeline.events import Listener
from pipeline.workspace import Workspace

ACCEPTED, MOST = 4, 16
TEACHERS = {"hot teacher": ("embedded:teacher", 1.5), "weak student": ("embedded:student-base", 1.0)}
SHORTCUTS = {
    "trivial: 2": Rule(ACCEPTED, MOST, trivial=2),
    "hopeless: 0.25": Rule(ACCEPTED, MOST, hopeless=0.25),
    "both": Rule(ACCEPTED, MOST, trivial=2, hopeless=0.25),
}
YAML = """\
name: benchmark
stages:
  problems: {{sources: [{{family: calc, train: {n}}}, {{family: logic, train: {n}}}, {{family: code, train: {n}}}]}}
  generate: {{problems: problems, teacher: "{model}", sampling: {{temperature: {heat}, max_tokens: 96}}, {how}}}
  verify: {{traces: generate}}
"""
HOW = {
    "adaptive": f"until: {{accepted: {ACCEPTED}, most: {MOST}, unverifiable: null}}",
    "uniform": f"samples: {MOST}",
}


class Sample(NamedTuple):
    outcome: Outcome
    tokens: int


Samples = dict[str, list[Sample]]
"""By problem, in the order of sample indices."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 problems a family, not 100")
    count = 10 if parser.parse_args().quick else 100
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    ratios: dict[str, float] = {}
    detail: dict[str, Any] = {"problems": 3 * count, "accepted": ACCEPTED, "most": MOST}
    with tempfile.TemporaryDirectory() as scratch:
        run(Path(scratch) / "warm", "embedded:teacher", 1.0, "samples: 1", 2)  # imports
        for name, (model, heat) in TEACHERS.items():
            made = {side: run(Path(scratch) / f"{name}-{side}", model, heat, how, count) for side, how in HOW.items()}
            found = compare(made["adaptive"], made["uniform"])
            ratios |= {f"{name}: tokens": found.pop("tokens_ratio"), f"{name}: CPU-seconds": found.pop("cpu_ratio")}
            detail[name] = found
            print(f"{name}: {found['adaptive']} beside uniform {found['uniform'][MOST]}", flush=True)
    print(json.dumps({"benchmark": "adaptive", "ratios": ratios, "detail": detail}))


class Run(NamedTuple):
    samples: Samples
    texts: dict[str, str]
    seconds: float


def run(directory: Path, model: str, heat: float, how: str, count: int) -> Run:
    directory.mkdir()
    (directory / "p.yaml").write_text(YAML.format(n=count, model=model, heat=heat, how=how))
    spec = config.load(directory / "p.yaml", catalog.stage, workspace=directory / "run")
    begun = cpu_seconds()
    *_, verify = runner.run(spec, Workspace(spec.workspace), Listener(), lambda: False)
    seconds = cpu_seconds() - begun
    rows = Store(spec.workspace).rows(
        "SELECT v.problem_key, t.trace_key, v.outcome, t.thinking_tokens + t.answer_tokens AS tokens, "
        "t.thinking || '|' || t.answer AS text FROM members m JOIN verdicts v ON m.row_key = v.verdict_key "
        "JOIN traces t USING (trace_key) WHERE m.collection = ? ORDER BY v.problem_key, t.sample_index",
        [verify.manifest.digest],
    )
    samples: Samples = defaultdict(list)
    for row in rows:
        samples[row["problem_key"]].append(Sample(Outcome(row["outcome"]), row["tokens"]))
    return Run(dict(samples), {row["trace_key"]: row["text"] for row in rows}, seconds)


def compare(adaptive: Run, uniform: Run) -> dict[str, Any]:
    assert adaptive.texts.items() <= uniform.texts.items(), "adaptive sampling made other texts"
    assert adaptive.samples == first(uniform.samples, by(Rule(ACCEPTED, MOST))), "the rule was not followed"
    ours, theirs = counts(adaptive.samples), counts(uniform.samples)
    assert (ours["satisfied"], ours["accepted"]) == (theirs["satisfied"], theirs["accepted"])
    return {
        "tokens_ratio": round(theirs["tokens"] / ours["tokens"], 2),
        "cpu_ratio": round(uniform.seconds / adaptive.seconds, 2),
        "adaptive": ours | {"cpu_seconds": round(adaptive.seconds, 1)},
        "shortcuts": {name: counts(first(uniform.samples, by(rule))) for name, rule in SHORTCUTS.items()},
        "uniform": {n: counts(first(uniform.samples, lambda _, n=n: n)) for n in (4, 6, 8, 12, MOST)},  # type: ignore[misc]
        "uniform_cpu_seconds": round(uniform.seconds, 1),
    }


def by(rule: Rule) -> Callable[[list[Sample]], int]:
    """A function that returns how many samples of a problem a rule wants."""

    def wanted(samples: list[Sample]) -> int:
        end = rule.ended([sample.outcome for sample in samples])
        assert end
        return end[0]

    return wanted


def first(samples: Samples, count: Callable[[list[Sample]], int]) -> Samples:
    return {key: each[: count(each)] for key, each in samples.items()}


def counts(samples: Samples) -> dict[str, int]:
    right = [sum(sample.outcome is Outcome.CORRECT for sample in each) for each in samples.values()]
    return {
        "traces": sum(map(len, samples.values())),
        "tokens": sum(sample.tokens for each in samples.values() for sample in each),
        "satisfied": sum(count >= ACCEPTED for count in right),
        "accepted": sum(min(count, ACCEPTED) for count in right),
    }


def cpu_seconds() -> float:
    """The CPU-seconds of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
