"""A student's card: its lineage, and the licence of the model it was trained from, which is never made up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.cards import FROM_NOTHING, write_model_card
from distill.store import Store
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Identity, Manifest
from pipeline.workspace import StageContext

BASE = "---\nlicense: llama3.1\nbase_model: meta-llama/Llama-3.1-8B\ntags: [llama]\n---\n# A base\n"


def head(place: Path, start: str, inputs: dict[str, Manifest] | None = None) -> dict[str, Any]:
    context = StageContext(
        "sft", "sft", "f" * 32, place, inputs or {}, place / "a", place / "w", FileHashes(place / "h")
    )
    write_model_card(place, context, "About.", start, {"epochs": 3})
    text = (place / "README.md").read_text()
    assert "| `epochs` | 3 |" in text and start in text
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


@pytest.mark.parametrize(
    ("card", "expected"),
    [(BASE, ("llama3.1", "meta-llama/Llama-3.1-8B")), ("no head", (None, None)), ("---\n- 1\n---\n", (None, None))],
)
def test_the_licence_is_that_of_the_model_that_training_began_with(
    tmp_path: Path, card: str, expected: tuple[str | None, str | None]
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(card)
    found = head(tmp_path, str(base))
    assert (found.get("license"), found.get("base_model")) == expected


def test_the_licence_is_inherited_from_student_to_student(tmp_path: Path) -> None:
    identity = Identity("sft", 1, {}, {}, {})
    manifest = Manifest("sft", "f" * 32, identity, "d" * 32, {}, 0.0, "", "made")
    (tmp_path / "made/model").mkdir(parents=True)
    (tmp_path / "made/model/README.md").write_text(BASE)
    assert head(tmp_path, "stage:sft", {"sft": manifest})["license"] == "llama3.1"
    assert "digest `" + "d" * 32 in (tmp_path / "README.md").read_text()


def test_shipped_models_have_our_licence_and_a_hub_model_gets_none(tmp_path: Path) -> None:
    assert head(tmp_path, FROM_NOTHING)["license"] == "apache-2.0"
    assert head(tmp_path, "embedded:student-base")["license"] == "apache-2.0"
    found = head(tmp_path, "Qwen/Qwen3-0.6B-Base@main")
    assert found["base_model"] == "Qwen/Qwen3-0.6B-Base" and "license" not in found


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("org/name@main", "`org/name@main`, which is fetched from the hub"),
        ("stage:sft", "On another machine, set"),
    ],
)
def test_the_card_says_where_an_adapter_finds_its_base(
    tmp_path: Path, start: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/adapter_config.json").write_text("{}")
    (tmp_path / "made/model").mkdir(parents=True)
    manifest = Manifest("sft", "f" * 32, Identity("sft", 1, {}, {}, {}), "d" * 32, {}, 0.0, "", "made")
    head(tmp_path / "made/model", start, {"sft": manifest})
    assert "AutoPeft" not in (tmp_path / "made/model/README.md").read_text()
    (tmp_path / "made/adapter").mkdir()
    head(tmp_path / "made/model", start, {"sft": manifest})
    assert expected in (tmp_path / "made/model/README.md").read_text()


def card(place: Path, kind: str, settings: dict[str, Any]) -> str:
    """The card of a student of ``kind``, with the inputs that this kind has of a selection and problems."""
    inputs = {
        name: Manifest(name, "f" * 32, Identity(name, 1, {}, {}, {}), digest * 32, {}, 0.0, "", None)
        for name, digest in (("select", "c"), ("problems", "b"))
        if kind != "pretrain" and (kind in ("sft", "gkd") or name == "problems")
    }
    (place / "adapter").mkdir(exist_ok=True)
    (place / "model").mkdir(exist_ok=True)
    context = StageContext(kind, kind, "e" * 32, place, inputs, place / "a", place / "w", FileHashes(place / "h"))
    write_model_card(place / "model", context, "About.", "org/base", settings)
    return (place / "model/README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "kept", "sampled"),
    [("sft", False, False), ("grpo", False, True), ("gkd", True, True), ("pretrain", False, False)],
)
def test_a_card_holds_the_query_for_the_traces_that_taught_its_kind_of_student(
    tmp_path: Path, kind: str, kept: bool, sampled: bool
) -> None:
    text = card(tmp_path, kind, {})
    assert (f"FROM lessons WHERE run = '{'e' * 32}'" in text) == (kind == "sft")
    assert (f"WHERE collection = '{'c' * 32}' AND label = 'kept'" in text) == kept
    assert (f"SELECT trace_key FROM rollouts WHERE run = '{'e' * 32}' AND used" in text) == sampled
    assert ("the traces that taught it" in text) == (kind != "pretrain")


def test_the_query_of_a_card_leaves_out_rollouts_that_no_step_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [{"run": "e" * 32, "trace_key": key, "used": used} for key, used in (("learned", True), ("equal", False))]
    store.append("rollouts", rows)
    store.ingest()
    (query,) = re.findall(r'`distill traces sql -w WORKSPACE "(.*)"`', card(tmp_path, "grpo", {}))
    assert store.rows(query) == [{"trace_key": "learned"}]


def test_the_card_of_a_qlora_adapter_says_to_load_the_base_in_4_bits(tmp_path: Path) -> None:
    assert "load the base in 4 bits too (NF4, double quantisation)" in card(tmp_path, "sft", {"quantize": "nf4"})
    assert "NF4" not in card(tmp_path, "sft", {"quantize": None})
