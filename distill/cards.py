"""Model cards: what a student is, what taught it, how it was made; written beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.stage import Context


def write_model_card(directory: Path, context: Context, about: str, start: str, settings: Mapping[str, Any]) -> None:
    """``README.md`` in the form the hub reads. Deterministic: no dates, no paths of this machine."""
    inputs = "\n".join(f"- `{name}`: digest `{m.digest}`" for name, m in sorted(context.inputs.items())) or "- none"
    rows = "\n".join(f"| `{key}` | {value} |" for key, value in settings.items())
    text = f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [distillation, reasoning, distill]
---

# {context.name}

{about}

Made by the `{context.kind}` stage of [distill], fingerprint `{context.fingerprint}`, from `{start}`.

## Lineage

{inputs}

Which traces taught it:
`distill traces sql "SELECT row_key FROM members WHERE collection = '<digest>' AND label = 'kept'"`.

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

It thinks between `<think>` and `</think>`; what follows is its answer.
"""
    (directory / "README.md").write_text(text, encoding="utf-8")
