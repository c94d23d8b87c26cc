"""The code of the tasks for lm-evaluation-harness: load the problems, and judge each answer.

`distill.harness` copies this file beside the tasks as ``utils.py``, and the harness calls it. The harness has removed
the thinking from the answers by then (``think_end_token``); if the tags are still there, it is removed here. An answer
that cannot be judged counts neither as right nor as wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.types import Problem
from distill.verifiers import check


def dataset(problems: str, **_: Any) -> Any:
    """Load the problems from a file beside this one, in the form that the harness expects."""
    import datasets

    text = (Path(__file__).parent / problems).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})


def judged(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score one answer with the problem's own verifier, which sees the problem as it is, not as the model is asked."""
    problem = Problem(
        id=doc["id"],
        prompt=doc["question"],
        reference=doc["reference"],
        verifier=doc["verifier"],
        source="lm_eval",
        metadata=json.loads(doc["metadata"]),
    )
    verdict = check(json.loads(doc["verifier"]), problem, results[0])
    return {} if verdict.score is None else {"pass_at_1": verdict.score}
