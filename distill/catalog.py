"""The catalog: tables that map the names of verifiers, engines, stages and the rest to ``"module:attribute"`` strings.

Nothing is imported until it is used. Listing names is therefore cheap and loads no torch, and `distill` finds the
stages of `rl` without importing it. To add something, add one line here. Other distributions register theirs as entry
points in the group ``distill.<kind>``, such as ``distill.verifiers``. The tables here take precedence over an entry
point of the same name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from distill import user_code
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.stage import Stage

VERIFIERS: dict[str, str] = {
    "choice": "distill.verifiers.choice:Choice",
    "code": "distill.verifiers.code:Code",
    "exact": "distill.verifiers.exact:Exact",
    "expression": "distill.verifiers.expression:ExpressionVerifier",
    "format": "distill.verifiers.format:Format",
    "judge": "distill.verifiers.llm_judge:Judge",
    "logic": "distill.verifiers.logic:Logic",
    "math": "distill.verifiers.math:Math",
    "prm": "distill.verifiers.prm:Prm",
    "reasoning_gym": "distill.verifiers.reasoning_gym:ReasoningGym",
    "regex": "distill.verifiers.regex:Regex",
    "truth_table": "distill.verifiers.truth_table:TruthTable",
}

FAMILIES: dict[str, str] = {
    "calc": "distill.families.calc:Calc",
    "code": "distill.families.code:Code",
    "logic": "distill.families.logic:Logic",
}

ENGINES: dict[str, str] = {
    "openai": "distill.engines.openai:open",
    "transformers": "distill.engines.transformers:open_engine",
    "vllm": "distill.engines.vllm:open",
}

STAGES: dict[str, str] = {
    "problems": "distill.stages.problems:STAGE",
    "curate": "distill.stages.curate:STAGE",
    "import": "distill.stages.import_traces:STAGE",
    "curate-traces": "distill.stages.curate:TRACES",
    "generate": "distill.stages.generate:STAGE",
    "verify": "distill.stages.verify:STAGE",
    "select": "distill.stages.select:STAGE",
    "export": "distill.stages.export:STAGE",
    "pretrain": "distill.stages.pretrain:STAGE",
    "sft": "distill.stages.sft:STAGE",
    "prm": "distill.stages.prm:STAGE",
    "grpo": "rl.stages.grpo:STAGE",
    "ppo": "rl.stages.ppo:STAGE",
    "opd": "rl.stages.opd:STAGE",
    "gkd": "rl.stages.gkd:STAGE",
    "evaluate": "distill.stages.evaluate:STAGE",
    "search": "rl.stages.search:STAGE",
    "report": "distill.stages.report:STAGE",
}

STRATEGIES: dict[str, str] = {
    "greedy": "rl.search.single:Greedy",
    "sample": "rl.search.single:One",
    "majority": "rl.search.vote:Majority",
    "adaptive": "rl.search.adaptive:AdaptiveVote",
    "allocate": "rl.search.allocation:Allocation",
    "best_of": "rl.search.ranked:BestOf",
    "weighted": "rl.search.ranked:WeightedVote",
    "beam": "rl.search.beam:Beam",
    "dvts": "rl.search.dvts:Dvts",
    "lookahead": "rl.search.lookahead:Lookahead",
}

DOORS: dict[str, str] = {
    "search": "rl.search.live:LiveSearch",
}
"""What `distill` uses of `rl` besides stages and strategies."""

TABLES: dict[str, dict[str, str]] = {
    "verifiers": VERIFIERS,
    "families": FAMILIES,
    "engines": ENGINES,
    "stages": STAGES,
    "strategies": STRATEGIES,
    "doors": DOORS,
}


def names(kind: str) -> Mapping[str, str]:
    """Every name of a kind with its ``"module:attribute"``, those of other distributions first. Imports nothing."""
    return _others(kind) | TABLES[kind]


@cache
def _others(kind: str) -> dict[str, str]:
    """What other distributions register. Cached: the installed ones do not change while a process runs."""
    return {point.name: point.value for point in entry_points(group=f"distill.{kind}")}


def resolve(kind: str, name: str) -> Any:
    """Import and return what is registered under ``name``. For an unknown name, `InputError` suggests the nearest one.

    A name with a colon is the user's own code: a ``"module:attribute"`` or a ``"file.py:attribute"``
    (`distill.user_code`). Modules are searched for in the working directory too, after the rest of ``sys.path``.
    """
    known = names(kind)
    if name not in known and ":" not in name:
        raise InputError(_unknown(kind, name))
    if name not in known and user_code.is_file(name):
        return user_code.load(name).attribute
    module, _, attribute = known.get(name, name).partition(":")
    if name not in known and not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # the user's own module may raise anything when it is imported
        what = str(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{_singular(kind)} {name!r} cannot be loaded: {what}") from error


def check(kind: str, name: str) -> str:
    """Return ``name`` if it is known or has a colon (the user's own code, which is not loaded here), otherwise raise
    ValueError. Settings use it, so that typos are found early."""
    if name not in names(kind) and ":" not in name:
        raise ValueError(_unknown(kind, name))
    return name


def _unknown(kind: str, name: str) -> str:
    if name.endswith(".py"):
        return f"{name}: name the object in that file too, as {name}:Name"
    from pipeline.mistakes import nearest  # loads pydantic

    return f"no {_singular(kind)} is called {name!r}{nearest(name, names(kind))}"


def _singular(kind: str) -> str:
    return {"families": "family", "strategies": "strategy"}.get(kind, kind.removesuffix("s"))


def stage(kind: str) -> Stage:
    """The stage of a kind; the lookup function that `pipeline.config.load` takes."""
    found = resolve("stages", kind)
    from pipeline.stage import Stage

    if not isinstance(found, Stage):
        raise InputError(f"stage {kind!r} is not a pipeline.stage.Stage")
    return found
