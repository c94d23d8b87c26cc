"""Write model cards beside the weights: what a student is, what it was trained on, and how it was made.

A licence is never invented. Weights that started from another model keep the licence in that model's own card. If no
card names one, the new card says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distill import modelspec
from distill.prm.measures import TOLD
from pipeline.stage import Context

FROM_NOTHING = "random weights"
"""The ``start`` of a model that was trained from scratch."""
OWN_LICENCE = "apache-2.0"
SAMPLED = ("grpo", "ppo", "opd", "gkd")
"""Kinds of stages whose students learn from their own samples, which the store keeps as rollouts."""
QUANTISED = """
It was trained on the base in 4 bits, so load the base in 4 bits too (NF4, double quantisation); on the base in full
precision its answers differ. The model above holds the weights that it was trained on.
"""


def write_model_card(directory: Path, context: Context, about: str, start: str, settings: Mapping[str, Any]) -> None:
    """Write ``README.md`` in the hub's format. It is deterministic: no dates, no paths of this machine."""
    inputs = "\n".join(f"- `{name}`: digest `{m.digest}`" for name, m in sorted(context.inputs.items())) or "- none"
    rows = "\n".join(f"| `{key}` | {value} |" for key, value in settings.items())
    text = f"""---
{_front_matter(context, start)}library_name: transformers
pipeline_tag: text-generation
tags: [distillation, reasoning, distill]
---

# {context.name}

{about}

Made by the `{context.kind}` stage of [distill], fingerprint `{context.fingerprint}`, from `{start}`.

## Lineage

{inputs}
{_training_queries(context)}
## Settings

| setting | value |
|---|---|
{rows}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("<this directory>")
tokenizer = AutoTokenizer.from_pretrained("<this directory>")
```
{_adapter(directory.parent, start, bool(settings.get("quantize")))}
It thinks between `<think>` and `</think>`; the answer follows.
"""
    (directory / "README.md").write_text(text, encoding="utf-8")


def _training_queries(context: Context) -> str:
    """The queries that list the traces that taught the student.

    These are the kept traces of its selection, and the rollouts that an optimizer step used. For sft they are the
    lessons, which hold the loss on each trace and leave out those that were too long.
    """
    queries = [
        f"SELECT row_key FROM members WHERE collection = '{made.digest}' AND label = 'kept'"
        for made in context.inputs.values()
        if made.identity.kind == "select" and context.kind != "sft"
    ]
    if context.kind == "sft":
        queries.append(f"SELECT trace_key, first_loss, last_loss FROM lessons WHERE run = '{context.fingerprint}'")
    if context.kind in SAMPLED:
        queries.append(f"SELECT trace_key FROM rollouts WHERE run = '{context.fingerprint}' AND used")
    asked = "\n".join(f'`distill traces sql -w WORKSPACE "{query}"`' for query in queries)
    return f"\nTo list the traces that taught it, query the store of its workspace:\n{asked}\n" if asked else ""


def _adapter(artifact: Path, start: str, quantised: bool) -> str:
    """How to use the adapter beside the model, if there is one."""
    if not (artifact / "adapter").is_dir():
        return ""
    directory = None if start.startswith(modelspec.STAGE) else modelspec.directory_of(start)
    if directory and modelspec.is_adapter(directory):
        return f"\nThe adapter in `adapter/` belongs on `{start}` merged into its base; the model above is complete.\n"
    base = (
        f"`{start}`, which is fetched from the hub."
        if not directory and not start.startswith(modelspec.STAGE)
        else "the directory that held its base when it was trained. On another machine, set\n"
        "`base_model_name_or_path` to the path of the base there, or use the model above, which is complete."
    )
    return f"""
The adapter alone is beside this directory, in `adapter/`, and can be used without it:

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("<directory of the adapter>")
```

Its `adapter_config.json` names {base}
{QUANTISED if quantised else ""}"""


def _front_matter(context: Context, start: str) -> str:
    """The lines of the card's front matter that name the licence and the base model."""
    if start == FROM_NOTHING:
        return f"license: {OWN_LICENCE}\n"
    if start.startswith(modelspec.STAGE):
        artifact = context.inputs[start.removeprefix(modelspec.STAGE)].artifact
        directory = context.workspace / (artifact or "") / modelspec.MODEL
    else:
        directory = modelspec.directory_of(start) or Path()
    fields = _licence_fields(directory / "README.md")
    if not fields and "/" in start and modelspec.directory_of(start) is None:
        fields = {"base_model": start.partition("@")[0]}  # a hub model: its page there states the licence
    unknown = (
        "" if "license" in fields else "# no license is known here: it is that of the model that training began with\n"
    )
    return unknown + (yaml.safe_dump(fields, sort_keys=False) if fields else "")


def _licence_fields(card: Path) -> dict[str, Any]:
    """The licence and base model in a model's own card; empty if there is no readable card."""
    try:
        head = yaml.safe_load(card.read_text(encoding="utf-8").split("---\n")[1])
        return {key: head[key] for key in ("license", "license_name", "license_link", "base_model") if key in head}
    except (OSError, UnicodeDecodeError, IndexError, TypeError, yaml.YAMLError):
        return {}


def write_prm_card(directory: Path, context: Context, start: str, figures: Mapping[str, Any]) -> None:
    """Write the ``README.md`` of a process reward model: how it was tested, and what not to use it for."""
    inputs = "\n".join(f"- `{name}`: digest `{m.digest}`" for name, m in sorted(context.inputs.items())) or "- none"
    columns = [name for name in ("heldout", "test") if name in figures]
    rows = "\n".join(f"| {name} | {' | '.join(str(figures[c][name]) for c in columns)} |" for name in TOLD)
    text = f"""---
{_front_matter(context, start)}library_name: transformers
tags: [process-reward-model, reasoning, distill]
---

# {context.name}

A process reward model: the probability that each step of a response is right. Made by the `{context.kind}` stage of
[distill], fingerprint `{context.fingerprint}`, on the body of `{start}`.

| | {" | ".join(columns)} |
|---|{"---|" * len(columns)}
| labelled steps | {" | ".join(str(figures[c]["steps"]) for c in columns)} |
{rows}

`within` compares only responses to the same problem. Scores are estimates for problems like those it was trained on.
The best of many responses by such a score is often one that fools it.

## Lineage

{inputs}

## Use

```python
from distill.prm.reading import load

scorer = load("<this directory>")
prompt = scorer.render([{{"role": "user", "content": "..."}}])
scorer.score([(prompt, "<think>\\n...\\n</think>\\n\\n...")])  # a probability for each step
```

`model/` alone is the body, a causal LM; the head is in `head.safetensors`.
"""
    (directory / "README.md").write_text(text, encoding="utf-8")
