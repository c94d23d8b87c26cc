"""Export the problems of an evaluate stage as tasks of lm-evaluation-harness, judged by our verifiers.

`write` makes a directory for ``lm_eval --include_path``: for each source a task (YAML) with its problems (JSONL), a
group of all tasks, and `distill.harness.judging` as ``utils.py``, which judges. The harness loads the student as it is,
from the model directory that a training stage published. Sampling is greedy, one sample per problem. Left out: few-shot
examples and prefilled responses, for which the harness has its own options.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distill.prompting import Ask
from distill.types import Problem
from pipeline.errors import InputError
from pipeline.files import make_directory, write_atomic

UTILS = "utils.py"
TASK = """\
# Made by `distill lm-eval`. Answers are judged by distill's own verifiers, so distill must be installed beside lm_eval.
task: {task}
custom_dataset: !function utils.dataset
metadata: {{version: 1.0, problems: {problems}}}
test_split: test
output_type: generate_until
{description}doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{reference}}}}"
process_results: !function utils.judged
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {max_tokens}}}
num_fewshot: 0
metric_list:
  - {{metric: pass_at_1, aggregation: mean, higher_is_better: true}}
"""
"""``until`` is empty: the harness adds the model's own end token."""


def write(
    directory: Path, name: str, problems: Sequence[Problem], ask: Ask, max_tokens: int
) -> tuple[str, dict[str, int]]:
    """Write the directory. Returns the name of the group and the number of problems of each task.

    Raises `InputError` for prompts that the harness cannot express.
    """
    by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for problem in problems:
        by_source[problem.source].append(_row(problem, ask))
    make_directory(directory)
    group = _plain(name)
    tasks: dict[str, int] = {}
    for source, rows in sorted(by_source.items()):
        task = f"{group}_{_plain(source)}"
        if task in tasks:
            raise InputError(
                f"two sources both become task {task}, where case and punctuation do not count; rename one"
            )
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(directory / f"{task}.jsonl", lines)
        write_atomic(directory / f"{task}.yaml", _task(task, rows, max_tokens))
        tasks[task] = len(rows)
    whole = {"metric": "pass_at_1", "aggregation": "mean", "weight_by_size": True}
    grouped = {"group": group, "task": list(tasks), "aggregate_metric_list": [whole], "metadata": {"version": 1.0}}
    write_atomic(directory / f"{group}.yaml", yaml.safe_dump(grouped, sort_keys=False))
    write_atomic(directory / UTILS, Path(__file__).with_name("judging.py").read_text(encoding="utf-8"))
    return group, tasks


def _row(problem: Problem, ask: Ask) -> dict[str, Any]:
    """A problem as a row: what is asked and how it is judged. All values are text, so that columns have one type."""
    asked = ask(problem)
    system = [turn["content"] for turn in asked.messages if turn["role"] == "system"]
    turns = [turn["content"] for turn in asked.messages if turn["role"] != "system"]
    if len(turns) != 1 or asked.prefix:
        raise InputError(
            "lm-evaluation-harness sends a single turn, and has its own options for few-shot examples and a prefill "
            "(--num_fewshot, gen_prefix); leave them out of the stage's prompting"
        )
    return {
        "id": problem.id,
        "prompt": turns[0],
        "question": problem.prompt,
        "system": "".join(system),
        "reference": problem.reference,
        "verifier": json.dumps(problem.verifier),
        "metadata": json.dumps(dict(problem.metadata)),
    }


def _task(task: str, rows: Sequence[Mapping[str, Any]], max_tokens: int) -> str:
    asked_of_system = any(row["system"] for row in rows)
    description = 'description: "{{system}}"\n' if asked_of_system else ""
    return TASK.format(task=task, problems=f"{task}.jsonl", description=description, max_tokens=max_tokens)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_") or "distill"


def end_of_thinking(model: Path) -> int | str | None:
    """The harness's ``think_end_token`` for a model; None if it cannot be found out.

    It is the id of ``</think>`` if that is an added token, which may be special and then missing from the text that the
    harness sees. Otherwise it is the tag itself.
    """
    from distill.thinking import CLOSE

    try:
        tokens = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        return next((int(token["id"]) for token in tokens if token["content"] == CLOSE), CLOSE)
    except (OSError, ValueError, KeyError, TypeError):
        return None
