"""The half of a task for lm-evaluation-harness that is code: its problems, and the verdict on each answer.

`distill.harness` copies this file beside the tasks as ``utils.py``; the harness calls it. Thinking has been taken off
the answers by then (``think_end_token``), or is taken off here where the tags are still there. An answer that cannot be
judged counts neither as right nor as wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.types import Problem
from distill.verifiers import check


def dataset(problems: str, **_: Any) -> Any:
    """The problems of the file beside this one, as the harness wants them."""
    import datasets

    text = (Path(__file__).parent / problems).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def judged(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The score of one answer, by the problem's own verifier."""
    problem = Problem(
        id=doc["id"],
        prompt=doc["prompt"],
        reference=doc["reference"],
        verifier=doc["verifier"],
        source="lm_eval",
        metadata=json.loads(doc["metadata"]),
    )
    verdict = check(json.loads(doc["verifier"]), problem, results[0])
    return {} if verdict.score is None else {"pass_at_1": verdict.score}
