"""``distill lm-eval``: write the problems of an evaluate stage as tasks for lm-evaluation-harness."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from distill import harness, modelspec
from distill.cli.open import load, workspace_of
from distill.prompting import asking
from distill.store import Store
from distill.store.records import problems
from pipeline import manifest as manifests
from pipeline.config import PipelineSpec
from pipeline.errors import InputError
from pipeline.mistakes import nearest


def lm_eval(
    directory: Path, model: str | None, pipeline: Path, workspace: Path | None, stage: str | None, as_json: bool
) -> None:
    spec = load(pipeline, workspace=workspace)
    space = workspace_of(spec)
    name, settings = _evaluation(spec, stage)
    record = manifests.current(space.path, settings.problems)
    if record is None:
        raise InputError(f"stage {settings.problems} has made no problems yet; run it: distill run {settings.problems}")
    if settings.verifier is not None:
        raise InputError(f"stage {name} sets `verifier`, but the tasks judge by each problem's own; leave it out")
    if settings.thinking is not None:
        raise InputError(f"stage {name} sets `thinking`, but the harness has no thinking budgets; leave it out")
    store = Store(space.path)
    of_split = {split: [p for _, p in problems(store, record.digest, split)] for split in ("train", settings.split)}
    ask, tasks = asking(settings.prompting, None, lambda: of_split["train"], name), of_split[settings.split]
    if not tasks:
        raise InputError(f"{settings.problems} holds no {settings.split} problem to export")
    source = None if model is None else _student(settings.models, model, space.path, name)
    group, made = harness.write(directory, spec.name, tasks, ask, settings.sampling.max_tokens)
    command = _command(directory, group, source)
    if as_json:
        print(json.dumps({"directory": str(directory), "tasks": made, "command": command}))
        return
    for task, count in made.items():
        print(f"{task}: {count:,} problems")
    print(f"wrote {directory}; where distill and lm_eval are both installed, run:\n{command}")


def _evaluation(spec: PipelineSpec, stage: str | None) -> tuple[str, Any]:
    found = {s.name: s.settings for s in spec.stages.values() if s.stage.produces == "evaluation"}
    if not found:
        raise InputError("the pipeline has no evaluate stage, so there is nothing to export")
    name = stage or list(found)[-1]
    if name not in found:
        raise InputError(f"--stage {name}: there is no evaluate stage of that name{nearest(name, found)}")
    return name, found[name]


def _student(models: dict[str, str], label: str, workspace: Path, stage: str) -> Path:
    """The directory of a model that the stage evaluates."""
    if label not in models:
        raise InputError(f"stage {stage} evaluates no model {label!r}{nearest(label, models)}")
    made = models[label].removeprefix(modelspec.STAGE)
    path = workspace / made / modelspec.MODEL if made != models[label] else modelspec.directory_of(made)
    if path is None or not path.is_dir():
        raise InputError(f"model {label}: has no directory here ({models[label]}); pass its name to lm_eval yourself")
    return path


def _command(directory: Path, group: str, model: Path | None) -> str:
    arguments = f"pretrained={model or 'MODEL'},dtype=float32"
    if model and (end := harness.end_of_thinking(model)) is not None:
        arguments += f",think_end_token={end}"
    words = ["lm_eval", "--model", "hf", "--model_args", arguments, "--include_path", str(directory), "--tasks", group]
    return shlex.join([*words, "--apply_chat_template", "--batch_size", "32"])
