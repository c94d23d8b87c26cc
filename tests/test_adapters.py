"""An exported adapter can be copied anywhere: plain peft still loads it on the base that it was trained on."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tiny import chat_tokenizer, tiny  # noqa: E402

from distill.modelspec import EMBEDDED, base_of, find  # noqa: E402
from distill.training import student  # noqa: E402
from distill.training.export import export_student  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from pipeline.fingerprint import FileHashes  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise peft would look on the hub, too, for the files of a relative directory."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def base(place: Path) -> Path:
    tokenizer = chat_tokenizer()
    tiny(vocab_size=len(tokenizer)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def taught(name: Path | str, place: Path) -> Path:
    """Export a student of the base ``name`` to ``place``; the weights of its adapter are random."""
    found = find(str(name), Path(), {}, FileHashes())
    model, tokenizer = student.load(found, student.Adapter(4, 8, final_norm=True))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.1)
    export_student(model, tokenizer, place)
    return place


def plainly_loaded(adapter: Path, merged: Path, elsewhere: Path) -> str:
    """The base that peft finds for ``adapter``, copied to ``elsewhere``. Its model has the logits of the merged one."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    shutil.copytree(adapter, elsewhere / "mine")
    merged = merged.resolve()
    with contextlib.chdir(elsewhere):
        found, whole = AutoPeftModelForCausalLM.from_pretrained("mine"), AutoModelForCausalLM.from_pretrained(merged)
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(found(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-4, rtol=0)
    config = found.peft_config["default"]
    return f"{config.base_model_name_or_path} {config.revision}"


def test_a_relative_base_directory_becomes_an_absolute_path(tmp_path: Path, monkeypatch: Any) -> None:
    base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    taught("./base", Path("out"))
    assert plainly_loaded(tmp_path / "out/adapter", tmp_path / "out/model", tmp_path / "far") == f"{tmp_path}/base None"


def test_a_hub_base_is_named_with_its_commit(tmp_path: Path) -> None:
    folder = tmp_path / "hub/models--org--model"
    base(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)
    code = (
        f"import test_adapters as t; place = t.Path({str(tmp_path)!r}); out = t.taught('org/model', place / 'out')\n"
        "print(t.plainly_loaded(out / 'adapter', out / 'model', place / 'far'))"
    )  # in its own process, as the location of the hub's cache is read on import
    hub = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | hub | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.stdout == f"org/model {COMMIT}\n", done.stderr
    assert base_of(tmp_path / "out/adapter", "x") == f"org/model@{COMMIT}"


def test_a_shipped_base_is_found_in_any_installation(tmp_path: Path) -> None:
    shipped = taught(EMBEDDED / "student-base", tmp_path / "out") / "adapter"
    assert base_of(shipped, "x") == str(EMBEDDED / "student-base")
    config = shipped / "adapter_config.json"
    config.write_text(config.read_text().replace(str(EMBEDDED), "/gone/distill/models"))
    assert base_of(shipped, "x") == str(EMBEDDED / "student-base")


def test_a_base_made_by_another_stage_is_found_after_the_workspace_moved(tmp_path: Path) -> None:
    """Also if the adapter is opened through the link of its stage."""
    first = taught(base(tmp_path / "base"), tmp_path / "runs/artifacts/sft-1")
    second = taught(first / "model", tmp_path / "runs/artifacts/grpo-2")
    (tmp_path / "runs/grpo").symlink_to("artifacts/grpo-2")
    found = plainly_loaded(tmp_path / "runs/grpo/adapter", second / "model", tmp_path / "far")
    assert found == f"{first}/model None"
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert Path(base_of(tmp_path / "moved/grpo/adapter", "x")).samefile(tmp_path / "moved/artifacts/sft-1/model")


def test_no_base_is_made_up_for_a_student_that_began_as_an_adapter(tmp_path: Path) -> None:
    """It belongs on neither the bare model nor the earlier adapter, but plain peft would accept either."""
    first = taught(base(tmp_path / "base"), tmp_path / "first")
    second = taught(first / "adapter", tmp_path / "second")
    with pytest.raises(InputError, match=f"{first}/adapter merged into {tmp_path}/base, named in .* does not exist"):
        base_of(second / "adapter", "x")
    from peft import AutoPeftModelForCausalLM

    with pytest.raises(OSError, match="merged into"):
        AutoPeftModelForCausalLM.from_pretrained(second / "adapter")
