"""A directory with a LoRA adapter is a model: found with its base, known by both, loaded merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import chat_tokenizer, tiny
from vllm_models import lora_adapter

from distill import modelspec, pretrained
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    tiny().save_pretrained(directory / "base")
    chat_tokenizer().save_pretrained(directory / "base")
    lora_adapter(directory / "adapter", directory / "base")
    return directory


@pytest.fixture
def models(made: Path, tmp_path: Path) -> Path:
    """A copy whose adapter names its base by a path from the adapter."""
    shutil.copytree(made, tmp_path / "models")
    configure(tmp_path / "models" / "adapter", base_model_name_or_path="../base")
    return tmp_path / "models"


def configure(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def identity(path: Path) -> str:
    return modelspec.identity_of(str(path), FileHashes())


def test_it_is_loaded_as_its_base_with_the_adapter_merged(models: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = modelspec.find(str(models / "adapter"), models, {}, FileHashes())
    assert Path(model.source).samefile(models / "base") and model.adapter == str(models / "adapter")
    network, tokenizer = pretrained.load(model, device="cpu")
    base = AutoModelForCausalLM.from_pretrained(models / "base", dtype=torch.float32)
    ids = torch.arange(12)[None]
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, models / "adapter")(ids).logits
    assert torch.allclose(network(ids).logits, adapted, atol=1e-4) and not torch.allclose(plain, adapted, atol=1e-2)
    assert tokenizer.chat_template and not hasattr(network, "peft_config")


def test_its_identity_is_that_of_adapter_and_base(models: Path) -> None:
    before = identity(models / "adapter")
    assert before not in (identity(models / "base"), "")
    shutil.copytree(models, models.parent / "elsewhere")
    assert identity(models.parent / "elsewhere" / "adapter") == before
    (models / "adapter" / "README.md").write_text("another card")
    assert identity(models / "adapter") == before
    lora_adapter(models.parent / "other", models / "base", seed=1)
    shutil.copy(models.parent / "other" / "adapter_model.safetensors", models / "adapter")
    changed = identity(models / "adapter")
    config = json.loads((models / "base" / "config.json").read_text())
    (models / "base" / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    assert len({before, changed, identity(models / "adapter")}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "./gone"}, "its base model ./gone is not there; put the right directory"),
        ({"base_model_name_or_path": "a bare name"}, "its base model a bare name is not there"),
        ({"base_model_name_or_path": "../adapter"}, "is an adapter too"),
        ({"peft_type": "IA3"}, "type IA3; only LoRA"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(models: Path, changes: dict[str, Any], message: str) -> None:
    configure(models / "adapter", **changes)
    with pytest.raises(InputError, match=message) as caught:
        identity(models / "adapter")
    assert "\n" not in str(caught.value)


def test_one_without_weights_or_with_broken_json_is_refused(models: Path) -> None:
    (models / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no weights \(adapter_model"):
        identity(models / "adapter")
    (models / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        identity(models / "adapter")


def test_a_base_on_the_hub_keeps_its_revision(models: Path) -> None:
    configure(models / "adapter", base_model_name_or_path="org/name", revision="v2")
    model = modelspec.find(str(models / "adapter"), models, {}, FileHashes())
    assert (model.source, model.revision) == ("org/name", "v2")
