"""Gather the results of a run as plain data: the content of ``report.json``.

For every evaluated model there is a key with its label (``teacher``, ``base``, ``sft``, ``grpo``, the controls), which
holds at least::

    pass_at_1          share of samples that are right
    ci95               [low, high], clustered by problem
    tokens_per_answer  thinking and answer together
    seconds            of the stage that made the model; 0 if no stage made it
    problems, samples  their numbers

It also holds the other figures of the evaluate stage (``greedy``, ``truncated``, ``by_source``, ``by_difficulty``...),
the model's ``role`` (teacher, base, student, control or other), ``stage``, ``model``, ``identity`` and ``parameters``.
The other keys are:

    headline  the result in one sentence
    models    the labels, in the order of the evaluate stage
    sampling  how they were sampled
    protocol  identifies how the models were evaluated: scores can be compared only if it is the same
    paired    differences on the same problems: along the training stages, and controls against the first student
              (`distill.evaluation.comparison`: interval, problems better and worse, p)
    pairs     the same for every two models
    funnel    from generated to kept, by reason of rejection, with the ``cost`` if an endpoint was paid; null without a
              selection. Its ``bias`` is how much easier the kept traces are than what was asked
              (`distill.evaluation.difficulty`)
    curves    by training stage and metric: [step, value], thinned to the means of at most `CURVE_POINTS` bins
    alarms    by training stage: the alarms of its run (`rl.alarms`), with name, step and evidence
    rolled_back  by training stage that an alarm rolled back: the step that its student comes from
    emergence by training stage with rollouts: behaviours, corrections and lengths over its steps
              (`distill.evaluation.emergence`)
    reward_models  by prm stage, its figures: the results of its tests, with reliability bins
    lengths   histograms of tokens per answer: bin ``edges``, counts of right and other answers
    examples  problems with the answers of the student before, between and after
    search    the results of the search stage, which compares ways to spend several samples on a problem: the points of
              each strategy's curve, and how well each scorer ranks; null without one
    stages    name, kind, seconds, figures and identity of each stage
    software  versions

The order of the keys is meaningful (models as evaluated, stages in the order of the run) and always the same. Nothing
here depends on the time or the machine: the same inputs give the same bytes. `distill.report.render` decides how it
looks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from distill import modelspec
from distill.evaluation.comparison import pair_of
from distill.report import examples, words
from distill.spending import spent_on
from distill.store import Store
from pipeline.manifest import Manifest

RESERVED = frozenset(
    {
        "headline",
        "models",
        "sampling",
        "protocol",
        "paired",
        "pairs",
        "funnel",
        "curves",
        "alarms",
        "rolled_back",
        "emergence",
        "reward_models",
        "lengths",
        "examples",
        "search",
        "stages",
        "software",
    }
)
"""Labels that no model may have, because they are other keys of the report. The evaluate stage refuses them."""
CURVE_POINTS = 300
LENGTH_BINS = 24
ELSEWHERE = ("subjects", "pairs", "scorers", "strategies", "rivals")
"""Figures of stages that are reported elsewhere."""

Report = dict[str, Any]
Named = Mapping[str, Manifest]
"""Manifests by stage name. A manifest may be from another pipeline, so its own name is not used."""


@dataclass(frozen=True)
class Sources:
    """What a report is made from. ``training`` holds the training stages of the student in order; ``controls`` those of
    students for comparison."""

    store: Store
    evaluation: tuple[str, Manifest]
    selection: tuple[str, Manifest] | None
    training: Named
    controls: Named
    others: Named
    examples: int
    emergence: Callable[[Manifest], dict[str, Any] | None] | None = None
    search: tuple[str, Manifest] | None = None
    reward_models: Named = field(default_factory=dict)

    @property
    def stages(self) -> dict[str, Manifest]:
        chosen = dict([self.selection]) if self.selection else {}
        judging = {**self.reward_models, **(dict([self.search]) if self.search else {})}
        return {**self.others, **judging, **chosen, **self.training, **self.controls, **dict([self.evaluation])}


def gather(sources: Sources) -> Report:
    """The content of ``report.json``."""
    store, evaluation = sources.store, sources.evaluation[1]
    labels = list(evaluation.figures["subjects"])
    subjects = {label: _subject(label, sources) for label in labels}
    story = [label for label in labels if subjects[label]["role"] in ("base", "student")]
    settings = evaluation.identity.settings
    return {
        **subjects,
        "models": labels,
        "headline": words.headline([subjects[label] for label in story], _verified(sources))
        or words.plain_headline(subjects),
        "sampling": {**settings["sampling"], "samples": settings["samples"], "split": settings["split"]},
        "protocol": evaluation.figures["protocol"],
        "paired": _paired(evaluation.figures["pairs"], subjects, story),
        "pairs": evaluation.figures["pairs"],
        "funnel": _funnel(store, sources.selection[1]) if sources.selection else None,
        "curves": {
            name: curves
            for name, manifest in {**sources.training, **sources.controls}.items()
            if (curves := _curves(store, manifest.fingerprint))
        },
        "alarms": {
            name: alarms
            for name, manifest in {**sources.training, **sources.controls}.items()
            if (alarms := _alarms(store, manifest.fingerprint))
        },
        "rolled_back": {
            name: manifest.figures["rolled_back_to"]
            for name, manifest in {**sources.training, **sources.controls}.items()
            if "rolled_back_to" in manifest.figures
        },
        "emergence": {
            name: seen
            for name, manifest in {**sources.training, **sources.controls}.items()
            if sources.emergence and (seen := sources.emergence(manifest))
        },
        "reward_models": {name: dict(manifest.figures) for name, manifest in sources.reward_models.items()},
        "lengths": _lengths(store, evaluation.digest, labels),
        "examples": examples.gather(store, evaluation.digest, story or labels[:3], sources.examples),
        "search": _search(*sources.search) if sources.search else None,
        "stages": [_stage(name, manifest) for name, manifest in sources.stages.items()],
        "software": dict(sorted({k: v for m in sources.stages.values() for k, v in m.software.items()}.items())),
    }


# -- the models -------------------------------------------------------------------------------


def _subject(label: str, sources: Sources) -> dict[str, Any]:
    evaluation = sources.evaluation[1]
    digest = evaluation.identity.inputs.get(f"models.{label}")
    made = next(((n, m) for n, m in sources.stages.items() if digest and m.digest == digest), None)
    name = f"stage:{made[0]}" if made else evaluation.identity.settings["models"][label]
    directory = None
    if made and made[1].artifact:
        directory = sources.store.path.parent / made[1].artifact / modelspec.MODEL
    elif name:
        directory = modelspec.directory_of(name)
    return {
        **evaluation.figures["subjects"][label],
        "label": label,
        "role": _role(label, made and made[0], sources),
        "seconds": made[1].seconds if made else 0,
        "stage": made[0] if made else None,
        "kind": made[1].identity.kind if made else None,
        "model": name,
        "identity": digest or evaluation.identity.files.get(f"model {name}"),
        "parameters": parameters(directory) if directory else None,
    }


def _verified(sources: Sources) -> bool:
    """Whether the student learned from the selection shown, and it holds nothing but correct traces."""
    selection = sources.selection[1] if sources.selection else None
    learned = {digest for m in sources.training.values() if (digest := m.identity.inputs.get("data"))}
    return selection is not None and learned == {selection.digest} and selection.identity.settings["keep"] == "correct"


def _role(label: str, stage: str | None, sources: Sources) -> str:
    """The role of a model, from the stage that made it or the stages that used it; otherwise from its label."""
    if stage in sources.training:
        return "student"
    if stage in sources.controls:
        return "control"
    for manifest in [*list(sources.training.values())[:1], *sources.others.values()]:
        for role, setting in (("base", "student"), ("teacher", "teacher")):
            if _names(manifest, setting) == _names(sources.evaluation[1], "models", label) != (None, None):
                return role
    return label if label in ("teacher", "base") else "other"


def _names(manifest: Manifest, *path: str) -> tuple[Any, Any]:
    """The model in a setting: (the setting itself, the digest of the stage that made the model)."""
    value: Any = manifest.identity.settings
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value, manifest.identity.inputs.get(".".join(path))


def parameters(directory: Path) -> int | None:
    """The number of parameters in a model's safetensors, from their headers; None if there are no such files."""
    total = 0
    for path in sorted(directory.glob("*.safetensors")):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total or None


def _paired(
    pairs: Sequence[Mapping[str, Any]], subjects: Mapping[str, Mapping[str, Any]], story: Sequence[str]
) -> list[dict[str, Any]]:
    """The differences along the training stages, then of the controls against the first student. Without training
    stages, each model against the next."""
    students = [label for label in story if subjects[label]["role"] == "student"]
    controls = [label for label, subject in subjects.items() if subject["role"] == "control"]
    steps = [*pairwise(story), *((students[0], control) for control in controls if students)]
    return [pair_of(pairs, before, after) for before, after in steps or pairwise(subjects)]


# -- from the store ---------------------------------------------------------------------------


def _funnel(store: Store, manifest: Manifest) -> dict[str, Any]:
    selection = manifest.digest
    rows = store.rows(
        "SELECT outcome, sum(traces)::BIGINT AS traces, sum(tokens)::BIGINT AS tokens FROM funnel "
        "WHERE collection = ? AND (run IS NULL OR run = ?) GROUP BY outcome ORDER BY traces DESC, outcome",
        [selection, manifest.fingerprint],
    )
    asked = store.rows(
        "SELECT count(DISTINCT prompt_key) AS problems, "
        "count(DISTINCT prompt_key) FILTER (m.label = 'kept') AS kept FROM members m "
        "JOIN traces t ON m.row_key = t.trace_key WHERE m.collection = ?",
        [selection],
    )[0]
    kept = [row for row in rows if row["outcome"] == "kept"]
    return {
        "problems": asked["problems"],
        "kept_problems": asked["kept"],
        "generated": sum(row["traces"] for row in rows),
        "kept": sum(row["traces"] for row in kept),
        "tokens": sum(row["tokens"] for row in rows),
        "kept_tokens": sum(row["tokens"] for row in kept),
        "rejected": [{"reason": r["outcome"], "traces": r["traces"]} for r in rows if r["outcome"] != "kept"],
        "bias": manifest.figures.get("bias"),
        **_paid(store, manifest.digest, kept=sum(row["traces"] for row in kept)),
    }


def _paid(store: Store, selection: str, kept: int) -> dict[str, float | None]:
    """The cost of the traces at the endpoint, including failed calls and rejected traces; null if nothing was paid."""
    cost = spent_on(store, selection).get("cost")
    return {"cost": cost, "cost_per_kept": round(cost / kept, 6) if cost and kept else None}


def _search(name: str, manifest: Manifest) -> dict[str, Any]:
    shown = ("protocol", "contamination", "problems", "samples", "tokens_per_sample", "scorers", "strategies", "rivals")
    model = manifest.identity.settings["model"] or manifest.identity.inputs.get("model")
    return {"stage": name, "model": model, **{key: manifest.figures[key] for key in shown}}


def _alarms(store: Store, run: str) -> list[dict[str, Any]]:
    return store.rows("SELECT name, step, evidence FROM alarms WHERE run = ? ORDER BY step, name", [run])


def _curves(store: Store, run: str) -> dict[str, list[list[float]]]:
    rows = store.rows("SELECT name, step, value FROM metrics WHERE run = ? ORDER BY name, step", [run])
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["value"] is not None and math.isfinite(row["value"]):
            points.setdefault(row["name"], []).append((row["step"], row["value"]))
    return {name: _thinned(values) for name, values in points.items()}


def _thinned(points: Sequence[tuple[int, float]]) -> list[list[float]]:
    size = -(-len(points) // CURVE_POINTS)
    bins = [points[i : i + size] for i in range(0, len(points), size)]
    return [[b[-1][0], float(f"{fmean(value for _, value in b):.6g}")] for b in bins]


def _lengths(store: Store, evaluation: str, labels: Sequence[str]) -> dict[str, Any]:
    rows = store.rows(
        "SELECT m.label, t.thinking_tokens + t.answer_tokens AS tokens, v.outcome = 'correct' AS right, "
        "count(*) AS n FROM members m JOIN verdicts v ON m.row_key = v.verdict_key JOIN traces t USING (trace_key) "
        "WHERE m.collection = ? GROUP BY ALL ORDER BY ALL",
        [evaluation],
    )
    longest = max((row["tokens"] for row in rows), default=0)
    width = _nice_width((longest + 1) / LENGTH_BINS)
    bins = longest // width + 1
    models = {label: {"right": [0] * bins, "other": [0] * bins} for label in labels}
    for row in rows:
        if row["label"] in models:  # leaves out the greedy samples
            models[row["label"]]["right" if row["right"] else "other"][row["tokens"] // width] += row["n"]
    return {"edges": [width * i for i in range(bins + 1)], "models": models}


def _nice_width(width: float) -> int:
    """``width`` rounded up to one of 1, 2, 5, 10, 20, 50..."""
    power = 10 ** max(0, math.floor(math.log10(width)))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= width)


# -- the stages -------------------------------------------------------------------------------


def _stage(name: str, manifest: Manifest) -> dict[str, Any]:
    identity = manifest.identity
    return {
        "name": name,
        "kind": identity.kind,
        "version": identity.version,
        "seconds": manifest.seconds,
        "finished": manifest.finished,
        "figures": {key: value for key, value in manifest.figures.items() if key not in ELSEWHERE},
        "fingerprint": manifest.fingerprint,
        "digest": manifest.digest,
        "settings": dict(identity.settings),
        "files": dict(identity.files),
    }
