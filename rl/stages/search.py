"""search: measure the ways to spend several samples on a problem, against samples and against tokens.

All strategies see the same stored samples of the same problems. Those that need only whole responses make no further
calls; their results are means over all subsets of the samples, or over several orders if they stop early. Searches step
by step sample what they need. Everything is a row, so a killed run continues where it was, and another strategy or
scorer costs only what it alone needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import engines, modelspec, verification
from distill.engines import dialects
from distill.engines.base import Engine, NoSteps
from distill.engines.options import (
    EngineOptions,
    SamplingSettings,
    Seed,
    Thinking,
    TransformersOptions,
    VllmOptions,
    check_model,
    check_thinking,
)
from distill.lacking import lacking
from distill.modelspec import Model, StageOrName
from distill.prm import files
from distill.prompting import Prompting
from distill.stages.common import (
    RewardModel,
    VerifierSpec,
    ask_of,
    members_present,
    open_engine,
    protocol,
    resolved,
    sampler,
    store_of,
)
from distill.stages.devices import beside_models, size_of
from distill.stages.seen import ContaminationSettings, exposure_of, figures_of
from distill.store import Store
from distill.store.records import problems, record_members
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Operational, Output, Settings, Stage
from rl.search.allocation import Allocation
from rl.search.base import VERIFIER, whole
from rl.search.beam import Tree
from rl.search.measure import measure
from rl.search.scoring import (
    ByLikelihood,
    Scorer,
    ScorerName,
    ScorerSpec,
    check_steps,
    likelihood_of,
    prm_of,
    reward_model,
    unloaded,
)
from rl.search.settings import Named, StrategySpec, named
from rl.search.stored import StoredWorld

SEEN = "model"
"""The label of the model in the table `exposure`."""
STEPS = {"line": "\n", "paragraph": "\n\n"}
"""The text that ends a sampled step."""
USUAL = ("greedy", "majority", "adaptive", "allocate")
SCORING = ("best_of", "weighted")
PROTOCOL = {"sampling", "samples", "prompting", "thinking", "verifier", "split", "step", "budgets"}


class SearchSettings(Settings):
    problems: Annotated[str, Input(accepts=("problems",))]
    model: StageOrName
    scorers: Annotated[dict[Annotated[str, Field(min_length=1)], ScorerSpec], RewardModel] = Field(default_factory=dict)
    """Step scorers by label: a process reward model (`prm:STAGE`, or its directory; with a dtype, `{model: prm:STAGE,
    dtype: bfloat16}`), or `{likelihood: MODEL}`, whose own probability of a step is the score."""
    strategies: Annotated[list[StrategySpec] | None, Field(min_length=1)] = None
    """Names from `distill list strategies`, or one with its settings (`{beam: {width: 8, by: LABEL}}`). Without `by`,
    it runs once per scorer. Default: greedy, majority, adaptive and allocate; with scorers also best_of and
    weighted."""
    budgets: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = Field(
        default_factory=lambda: [1, 2, 4, 8, 16]
    )
    """Samples (or beams) per problem. Each is a point on the curves."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """Samples per problem that all strategies choose from. Default: the largest budget."""
    stored: bool = False
    """Make no new calls. Strategies that need samples not in the store are refused."""
    step: Literal["line", "paragraph"] = "line"
    """What a step is, in search step by step."""
    engine: EngineOptions = TransformersOptions()
    sampling: SamplingSettings = SamplingSettings()
    prompting: Prompting = None
    """How prompts are built for the model; a string is a template, or the name of one."""
    thinking: Thinking = None
    verifier: Annotated[VerifierSpec | None, RewardModel] = None
    """Judges the answers. Default: each problem's own verifier."""
    orders: Annotated[int, Field(ge=1)] = 8
    """Number of sample orders that strategies which stop early are averaged over."""
    split: Literal["train", "heldout"] = "heldout"
    """Which problems to measure on."""
    contamination: ContaminationSettings | None = ContaminationSettings()
    """Report, beside the curves, how far the problems overlap with the model's training data; `null` turns it off."""
    workers: Annotated[int, Operational(), Field(ge=1)] = 2
    """Processes that verify."""
    seed: Seed = 0

    @property
    def named(self) -> list[Named]:
        """The strategies; those that need a scorer and name none appear once per scorer."""
        specs = self.strategies or [*USUAL, *(SCORING if self.scorers else ())]
        return [each for spec in specs for each in named(spec).each(self.scorers)]

    @property
    def pool(self) -> int:
        return self.samples or max(self.budgets)

    @model_validator(mode="after")
    def _can_be_had(self) -> SearchSettings:
        check_model(self.model, self.engine)
        check_thinking(self.thinking, self.sampling)
        budget = self.thinking.thinking_budget() if self.thinking else None
        dialects.check_wished(self.engine, budget, begun=bool(self.prompting and self.prompting.prefill))
        if not self.sampling.temperature:
            raise ValueError("sampling.temperature must be above 0: at 0 all samples are one")
        if self.pool < max(self.budgets):
            raise ValueError(f"a budget of {max(self.budgets)} samples is more than the {self.pool} there are")
        if VERIFIER in self.scorers:
            raise ValueError(f"scorers.{VERIFIER}: `by: {VERIFIER}` means the verifier; give it another label")
        for spec in self.strategies or ():
            self._check(named(spec))
        labels = [each.label for each in self.named]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"strategies: {twice} is named twice")
        return self

    def _check(self, each: Named) -> None:
        """Raise ValueError for a strategy that cannot be run here."""
        strategy, place = each.strategy, f"strategies.{each.label}"
        if "scorer" in strategy.needs and not self.scorers:
            raise ValueError(
                f"{place}: needs a step scorer; name one under `scorers`: prm:STAGE, a reward model's "
                "directory, or {likelihood: MODEL}"
            )
        if "scorer" in strategy.needs and each.by and each.by not in self.scorers:
            raise ValueError(f"{place}: no scorer is called {each.by}; there are: {', '.join(self.scorers)}")
        if "steps" in strategy.needs and self.engine.kind == "openai":
            raise ValueError(f"{place}: {NoSteps(self.engine.kind)}")
        if isinstance(strategy, Tree):
            try:
                for budget in self.budgets:
                    strategy.beams(budget)
            except InputError as error:
                raise ValueError(f"{place}: {error}") from None
        if isinstance(strategy, Allocation) and (strategy.most or 0) > self.pool:
            raise ValueError(f"{place}: {strategy.most} samples of a problem are more than the {self.pool} there are")


def run(context: Context, settings: SearchSettings) -> Output:
    store = store_of(context)
    store.ingest()  # what a killed run has left
    world = _world(context, settings, store)
    _check_scorers(context, settings, world)
    try:
        seen = exposure_of(context, settings.contamination, settings.model, SEEN, world.tasks)
        figures, members = measure(context, settings, world, frozenset(seen.found) if seen else frozenset())
    finally:
        world.close()
    again = verification.failed_once([key for _, key in members])
    digest = record_members(store, members)
    overlap = {"contamination": figures_of(seen, world.tasks) if seen else None}
    found = {"members": len(members), "protocol": protocol(context, settings, PROTOCOL)}
    return Output(digest, {**found, **overlap, **figures, **again})


def _check_scorers(context: Context, settings: SearchSettings, world: StoredWorld) -> None:
    """Check the scorers before anything is sampled for them."""
    for each in settings.named:
        if each.by and "steps" in each.strategy.needs:
            check_steps(world.scorers[each.by], settings.step, f"stage {context.name}: {each.label}")
    for scorer in world.scorers.values():
        scorer.check()


def _world(context: Context, settings: SearchSettings, store: Store) -> StoredWorld:
    model = sampler(context, store, settings.model, settings.engine)
    scorers = {
        label: _scorer(context, settings, spec, model if settings.engine.kind != "openai" else None)
        for label, spec in settings.scorers.items()
    }

    def opening() -> Engine:
        engine = settings.engine
        if isinstance(engine, VllmOptions):
            engine = beside_models(engine, size_of(unloaded(scorers.values())))
        return open_engine(context, store, engine, model)

    return StoredWorld(
        store=store,
        context=context,
        tasks=problems(store, context.inputs[settings.problems].digest, settings.split),
        model=model.identity,
        sampling=settings.sampling.sampling(settings.seed),
        ask=ask_of(context, settings.prompting, settings.thinking, settings.problems),
        stop=STEPS[settings.step],
        open_engine=None if settings.stored else opening,
        scorers=scorers,
        rendered=settings.engine.kind != "openai",
        judges=verification.Judges(resolved(context, settings.verifier), context.hashes),
        workers=settings.workers,
    )


def _scorer(context: Context, settings: SearchSettings, spec: ScorerName, policy: Model | None) -> Scorer:
    if isinstance(spec, ByLikelihood):
        model = modelspec.find(spec.likelihood, context.workspace, context.inputs, context.hashes)
        return likelihood_of(model, settings.step, spec.dtype)
    name, dtype = reward_model(spec)
    return prm_of(name, context.workspace, context.inputs, context.hashes, policy, dtype)


def refuse(settings: SearchSettings, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
    if settings.problems in figures and not figures[settings.problems].get(settings.split):
        return f"{settings.problems} holds no {settings.split} problem to measure on"
    return lacking(settings)


def forecast(context: Context, settings: SearchSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    """Covers the whole responses. What searches step by step will draw is unknown, so with them there is no bound."""
    count = expected.get(settings.problems, {}).get(settings.split)
    if count is None:
        return Forecast("samples")
    total, done = count * settings.pool, 0
    stage = settings.model.removeprefix(modelspec.STAGE)
    if settings.problems in context.inputs and (stage == settings.model or stage in context.inputs):
        world = _world(context, settings, store_of(context))
        wanted = {world.wish(n, draft).key for n in range(len(world.tasks)) for draft in whole(settings.pool)}
        done = len(world.store.present("traces", wanted))
    calls = total - done
    by_step = any("steps" in each.strategy.needs for each in settings.named)
    bound = {} if by_step else {"max_tokens": calls * settings.sampling.max_tokens}
    return Forecast("samples", total, done, {"calls": calls, **bound})


def dependencies(settings: SearchSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    versions = verification.versions(settings.verifier, upstream[settings.problems], hashes)
    found = {f"verifier {name}": version for name, version in versions.items()}
    found |= engines.model_dependency(settings.model, settings.engine, hashes)
    for spec in settings.scorers.values():
        if isinstance(spec, ByLikelihood):
            found |= modelspec.dependency(spec.likelihood, hashes)
        elif not (name := reward_model(spec)[0]).startswith(files.PREFIX):
            found[f"prm {name}"] = files.identity_of(files.directory_of(name), hashes)
    return found


STAGE = Stage(
    kind="search",
    version=3,
    about="measure ways to spend several samples on a problem, against samples and tokens",
    settings=SearchSettings,
    produces="search",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
    refuse=refuse,
    check=members_present,
    again=verification.judged_again,
)
