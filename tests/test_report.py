"""The report of a real run, in which the models are authors: solvers that slip more or less often.

Everything but sampling and training is the real thing: problems, verification, selection, evaluation,
manifests and the store, run by the runner. Training leaves a directory that says how good it has become.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import catalog
from distill.families.base import Family
from distill.randomness import generator
from distill.report import svg
from distill.report.render import render
from distill.report.words import visible
from distill.store import Store
from distill.types import Completion, Finish, Problem, Request
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.stage import Output, Stage
from pipeline.workspace import Workspace

PIPELINE = """\
name: told
workspace: unused
seed: 0
stages:
  problems: {{sources: [{{family: calc, train: {train}, heldout: {heldout}}}, {{family: logic, train: {train}, heldout: {heldout}}}, {{family: code, train: {train}, heldout: {heldout}}}]}}
  generate: {{problems: problems, teacher: models/teacher, samples: 2}}
  verify: {{traces: generate}}
  select: {{verdicts: verify, per_problem: 1}}
  unverified: {{kind: select, verdicts: verify, keep: all}}
  sft: {{data: select, student: models/base}}
  grpo: {{student: "stage:sft", problems: problems, steps: 60, prompts: 4}}
  sft-unverified: {{kind: sft, data: unverified, student: models/base}}
  sft-answers: {{kind: sft, data: select, student: models/base, thinking: false}}
  evaluate:
    problems: problems
    models: {{teacher: models/teacher, base: models/base, sft: "stage:sft", grpo: "stage:grpo",
              unverified: "stage:sft-unverified", answers only: "stage:sft-answers"}}
    samples: 4
  report:
    evaluation: evaluate
    selection: select
    training: [sft, grpo]
    controls: [sft-unverified, sft-answers]
    stages: [problems, generate, verify]
"""

# -- authors instead of models ----------------------------------------------------------------


@dataclass
class Authors:
    """An engine whose weights are a text: the chance of a slip a line, or ``guess``."""

    model: str
    skill: str
    name: str = "transformers"
    batch_invariant: bool = True

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            yield self._answer(request)

    def _answer(self, request: Request) -> Completion:
        prompt = request.messages[-1]["content"]
        rng = generator("author", request.key)
        family = family_of(prompt)
        if self.skill == "guess":
            text, thought = family.guess(rng), ""
        else:
            slips = float(self.skill) * (0.8 if request.sampling.temperature == 0 else 1)
            formula = prompt.partition(": ")[2]  # what the logic family works from
            solution = family.solve(Problem("", prompt, formula, "", ""), slips, rng)
            text, thought = solution.answer, solution.thinking
        whole = f"<think>\n{thought}\n</think>\n{text}" if thought else text
        cut = rng.random() < 0.02
        tokens = len(whole.split()) + int(rng.integers(4))
        return Completion(
            request.key, prompt, (1, 2, 3), whole[: len(whole) // 2] if cut else whole, (), None,
            Finish.LENGTH if cut else Finish.STOP, thinking_tokens=len(thought.split()),
            answer_tokens=tokens - len(thought.split()), prompt_tokens=3,
        )  # fmt: skip

    def close(self) -> None: ...


def family_of(prompt: str) -> Family:
    name = "calc" if prompt.startswith("Compute") else "logic" if prompt.startswith("Truth") else "code"
    family: Family = catalog.resolve("families", name)()
    return family


def open_authors(model: Any, options: Any, note: Any) -> Authors:
    return Authors(model.identity, json.loads((Path(model.source) / "config.json").read_text())["skill"])


def write_model(directory: Path, skill: str) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"skill": skill}))
    (directory / "tokenizer.json").write_text("{}")
    header = json.dumps({"weight": {"dtype": "F32", "shape": [700, 940], "data_offsets": [0, 0]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


SKILLS = {"sft": "0.13", "grpo": "0.085", "sft-unverified": "0.2", "sft-answers": "guess"}


def train(context: Any, settings: Any) -> Output:
    """Leave a better author, and the curves of how it got better."""
    from distill.stages.common import store_of

    shutil.rmtree(context.work / "artifact", ignore_errors=True)
    write_model(context.work / "artifact" / "model", SKILLS[context.name])
    rows = []
    for step in range(1, 401):
        noise = generator(context.name, step).normal()
        part = step / 400
        values = {"learning_rate": 4e-3 * (1 - part), "grad_norm": 1.2 - 0.6 * part + 0.1 * noise}
        if context.kind == "grpo":
            values |= {"reward": 0.46 + 0.14 * part + 0.05 * noise, "entropy": 0.4 - 0.2 * part + 0.02 * noise}
            values |= {"length": 19 + 3 * part + noise, "zero_variance": 0.3 + 0.2 * part + 0.04 * noise}
        else:
            values["loss"] = 0.35 + 1.6 * 0.985**step + 0.03 * noise
        rows += [{"run": context.fingerprint, "step": step, "name": n, "value": float(v)} for n, v in values.items()]
    store = store_of(context)
    store.append("metrics", rows)
    store.ingest()
    return Output(context.publish(context.work / "artifact"), {"steps": 400})


def lookup(kind: str) -> Stage:
    stage = catalog.stage(kind)
    return replace(stage, run=train) if kind in ("sft", "grpo") else stage


def run_pipeline(directory: Path, train: int = 24, heldout: int = 20, text: str = PIPELINE) -> Path:
    """Run all in ``directory``; returns the workspace. Again and again, as the user would."""
    file = directory / "pipeline.yaml"
    file.write_text(text.format(train=train, heldout=heldout))
    if not (directory / "models").exists():
        write_model(directory / "models" / "teacher", "0.015")
        write_model(directory / "models" / "base", "guess")
    before, engines = Path.cwd(), dict(catalog.ENGINES)
    os.chdir(directory)
    catalog.ENGINES["transformers"] = f"{__name__}:open_authors"
    try:
        spec = config.load(file, lookup, workspace=directory / "run")
        runner.run(spec, Workspace(spec.workspace, {"distill": "0.1", "torch": "2.13"}), Listener(), lambda: False)
    finally:
        os.chdir(before)
        catalog.ENGINES.update(engines)
    return directory / "run"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pipeline(tmp_path_factory.mktemp("told"))


@pytest.fixture(scope="module")
def report(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def page(workspace: Path) -> str:
    return (workspace / "report.html").read_text()
