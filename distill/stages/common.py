"""What several stages share: types of settings, verifiers, prompts, and checks of their output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, PlainSerializer

from distill import engines, verification, verifiers
from distill.engines.base import Engine
from distill.engines.options import ThinkingSettings
from distill.modelspec import Model
from distill.prm import files
from distill.prompting import Ask, PromptingSettings, asking
from distill.spending import Spending
from distill.store import Store
from distill.store.records import problems
from distill.types import Problem
from distill.verifiers.compose import Spec
from pipeline.errors import InputError
from pipeline.fingerprint import content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Context, Input

Problems = ("problems",)
Traces = ("traces",)


def _buildable(spec: Spec) -> Spec:
    try:
        verifiers.build(spec)
    except InputError as error:
        raise ValueError(str(error)) from None
    return spec


VerifierName = Annotated[str, AfterValidator(_buildable)]
"""A verifier given by its name, without settings."""
VerifierSpec = Annotated[str | dict[str, Any], AfterValidator(_buildable), PlainSerializer(verifiers.settled)]
"""A verifier as in `distill.verifiers.compose`. A fingerprint includes only the settings that change verdicts."""


RewardModel = Input(accepts=("prm",), prefix=files.PREFIX)
"""Marks a setting whose verifier may use a process reward model of the pipeline (``prm:STAGE``)."""


def resolved(context: Context, spec: Any) -> Any:
    """A verifier's spec in which each ``prm:STAGE`` of the pipeline is replaced by the reward model's directory."""
    if isinstance(spec, str) and spec.startswith(files.PREFIX):
        known = spec.removeprefix(files.PREFIX) in context.inputs
        return str(files.directory_of(spec, context.workspace, context.inputs)) if known else spec
    if isinstance(spec, Mapping):
        return {key: resolved(context, value) for key, value in spec.items()}
    return [resolved(context, value) for value in spec] if isinstance(spec, list) else spec


def store_of(context: Context) -> Store:
    return Store(context.workspace, note=context.note)


def sampler(context: Context, store: Store, name: str, engine: engines.Options) -> Model:
    """The model that a stage is about to sample from. Its name is stored, for people who read its traces."""
    model = engines.model_of(name, engine, context)
    store.append("models", [{"model": model.identity, "name": name}])
    return model


def open_engine(context: Context, store: Store, options: engines.Options, model: Model) -> Engine:
    """Open an engine for a stage, which pays for its calls and stops it."""
    spending = Spending(store, context.name)
    return engines.open_engine(options, model, context.note, spending, context.stopping)


def ask_of(
    context: Context, prompting: PromptingSettings | None, thinking: ThinkingSettings | None, source: str
) -> Ask:  # fmt: skip
    """How a stage prompts a model with a problem; few-shot examples come from the training problems of ``source``."""

    def training() -> Sequence[Problem]:
        return [problem for _, problem in problems(store_of(context), context.inputs[source].digest, "train")]

    budget = thinking.thinking_budget() if thinking else None
    return asking(prompting, budget, training, f"{context.name}.prompting")


def protocol(context: Context, settings: Any, names: Iterable[str]) -> str:
    """A hash of how a stage measured, by the settings with these ``names``: scores with the same one are comparable,
    whatever the model and the date."""
    how = settings.model_dump(mode="json", include=set(names))
    verifiers = verification.versions(
        resolved(context, settings.verifier), context.inputs[settings.problems], context.hashes
    )
    return content_hash({"problems": context.inputs[settings.problems].digest, "verifiers": verifiers, **how})[:12]


def members_present(context: Context, manifest: Manifest) -> str | None:
    """The `check` of stages whose output is rows: all members and the rows that they name are in the store."""
    store = store_of(context)
    expected = manifest.figures.get("members", 0)
    if not store.path.exists():
        return "the trace store is gone"
    sql = (
        "SELECT count(*) AS n FROM members WHERE collection = ? AND (row_key IN (SELECT problem_key FROM problems) "
        "OR row_key IN (SELECT trace_key FROM traces) OR row_key IN (SELECT verdict_key FROM verdicts))"
    )
    found = store.rows(sql, [manifest.digest])[0]["n"]
    return None if found == expected else f"the store has {found} of its {expected} rows"


def judged_as_now(context: Context, manifest: Manifest) -> str | None:
    """The `check` of stages that judge: a verifier with a new version judges again (also a user's own); old verdicts
    are kept."""
    for spec, version in manifest.figures.get("versions", {}).items():
        if (now := verification.version_of(spec, context.hashes)) != version:
            return f"verifier {spec}: version {version} -> {now}"
    return members_present(context, manifest)
