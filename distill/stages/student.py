"""How every stage that makes a model ends: exported, described, published."""

from __future__ import annotations

import shutil
from typing import Any

from distill.cards import write_model_card
from pipeline.stage import Context, Settings


def publish(context: Context, network: Any, tokenizer: Any, about: str, start: str, settings: Settings) -> str:
    """Adapter, merged model and model card as the stage's artifact; returns its content hash.

    ``start`` names the model that training began with.
    """
    from distill.training.export import MODEL, export_student

    built = context.work / "artifact"
    shutil.rmtree(built, ignore_errors=True)  # what an earlier attempt left
    export_student(network, tokenizer, built)
    write_model_card(built / MODEL, context, about, start, settings.model_dump(mode="json"))
    return context.publish(built)
