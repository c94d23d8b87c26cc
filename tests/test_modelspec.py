"""Which model a name means: adapters with their base, hub names with their commit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_engine import build_model, build_tokenizer

from distill import engines
from distill.engines.options import OpenAIOptions, TransformersOptions
from distill.hub import check_reachable
from distill.modelspec import CONTENT, EMBEDDED, Model, check_at_hand, check_name, find, identity_of
from distill.pretrained import load
from distill.types import Request, Sampling
from pipeline import fingerprint
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes

FIRST, SECOND = "a" * 40, "b" * 40


# Adapters.


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build_model("Qwen3", tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    """A LoRA adapter with non-zero weights, as peft saves it."""
    from peft import LoraConfig, get_peft_model

    network, _ = load(Model(str(base), ""))
    torch.manual_seed(3)
    model: Any = get_peft_model(network, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_sampling_from_an_adapter_uses_its_weights(base: Path, adapter: Path) -> None:
    from peft import PeftModel

    found = find(str(adapter), Path(), {}, FileHashes())
    engine = engines.open_engine(TransformersOptions(workers=1), found)
    (c,) = engine.generate([Request("a", ({"role": "user", "content": "2+2?"},), Sampling(max_tokens=12))])
    assert engine.model == found.identity and c.logprobs is not None
    network, _ = load(Model(str(base), ""))
    inputs = torch.tensor([c.prompt_ids + c.token_ids])
    with torch.no_grad():
        plain = network(inputs).logits[0].log_softmax(-1)
        logits = PeftModel.from_pretrained(network, adapter)(inputs).logits[0].log_softmax(-1)
    at = (slice(len(c.prompt_ids) - 1, -1), None)
    expected = logits[at[0]].gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
    assert c.logprobs == pytest.approx(expected.tolist(), abs=2e-5)
    assert (plain - logits).abs().max() > 0.01


def test_an_adapters_identity_covers_its_weights_and_its_base(base: Path, adapter: Path) -> None:
    hashes = FileHashes()
    seen = {identity_of(str(base), hashes), identity_of(str(adapter), hashes)}
    (adapter / "README.md").write_text("A card may change.")
    assert identity_of(str(adapter), hashes) in seen
    (base / "chat_template.jinja").write_text("{{ messages }}")
    seen.add(identity_of(str(adapter), hashes))
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"lora_alpha": 16}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    seen.add(identity_of(str(adapter), hashes))
    assert len(seen) == 4


def test_hashing_a_large_model_is_announced_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, even when the model is many files, none of them large."""
    weights = [path for path in base.iterdir() if path.suffix in CONTENT]
    monkeypatch.setattr(fingerprint, "MUCH", sum(path.stat().st_size for path in weights))
    notes: list[str] = []
    hashes = FileHashes(note=notes.append)
    assert identity_of(str(base), hashes) == identity_of(str(base), hashes)
    assert len(notes) == 1 and notes[0].startswith(f"reading model {base} for its content hash, once: ")


def test_an_adapters_base_may_be_relative_to_the_adapter(base: Path, adapter: Path) -> None:
    before = identity_of(str(adapter), FileHashes())
    _rewrite(adapter, base_model_name_or_path="../base")
    assert check_name(str(adapter))
    network, tokenizer = load(find(str(adapter), Path(), {}, FileHashes()))
    assert tokenizer.chat_template and not hasattr(network, "peft_config")
    assert identity_of(str(adapter), FileHashes()) != before  # its configuration is its content
    _rewrite(adapter, base_model_name_or_path="teacher")
    assert find(str(adapter), Path(), {}, FileHashes()).source == str(EMBEDDED / "teacher")


def _rewrite(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "type IA3"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "/nowhere/at/all.*does not exist"),
        ({"base_model_name_or_path": "{adapter}"}, "adapter too"),
    ],
)
def test_an_unusable_adapter_is_an_error_of_one_line(adapter: Path, changes: dict[str, Any], message: str) -> None:
    other = adapter.parent / "other"
    other.mkdir()
    for file in adapter.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    _rewrite(adapter, **{k: v.format(adapter=other) if isinstance(v, str) else v for k, v in changes.items()})
    with pytest.raises(ValueError, match=message):
        check_name(str(adapter))


def test_an_adapter_without_weights_or_of_another_base_is_refused(adapter: Path) -> None:
    build_model("Qwen3", tie_word_embeddings=True, hidden_size=64).save_pretrained(adapter.parent / "base")
    with pytest.raises(InputError, match=r"adapter cannot be loaded: .* size mismatch .* for a base model other than"):
        load(find(str(adapter), Path(), {}, FileHashes()))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        find(str(adapter), Path(), {}, FileHashes())


def test_an_endpoint_refuses_an_adapter(adapter: Path) -> None:
    endpoint = OpenAIOptions(base_url="http://localhost:1/v1")
    with pytest.raises(InputError, match="an endpoint cannot load an adapter"):
        engines.open_engine(endpoint, find(str(adapter), Path(), {}, FileHashes()))


# Hub names: resolved in a separate process, because a name stays pinned as long as its process lives.


REFUSALS = {
    "/api/models/org/gated/revision/main": "GatedRepo",
    "/api/models/org/model/revision/v9": "RevisionNotFound",
}


class Hub(BaseHTTPRequestHandler):
    """A hub that has org/model, whose main is at `commit`. It has org/gated, which is gated, and org/private, which needs
    the token."""

    commit = FIRST
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        known = self.path == "/api/models/org/model/revision/main" or (
            self.path == "/api/models/org/private/revision/main" and self.headers["Authorization"] == "Bearer sesame"
        )
        body = json.dumps({"id": "org/model", "sha": self.commit}).encode()
        self.send_response(200 if known else 401)
        if not known:
            self.send_header("X-Error-Code", REFUSALS.get(self.path, "RepoNotFound"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    handler = type("Hub", (Hub,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def resolved(cache: Path, *names: str, server: ThreadingHTTPServer | None = None, **variables: str) -> list[str]:
    """What each name resolves to in another process: ``identity revision``, or the error."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom distill.modelspec import find\n"
        "from pipeline.errors import InputError\nfrom pipeline.fingerprint import FileHashes\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        model = find(name, Path(), {}, FileHashes())\n        print(model.identity, model.revision)\n"
        "    except InputError as error:\n        print(error)\n"
    )
    address = f"http://127.0.0.1:{server.server_port}" if server else "http://127.0.0.1:9"
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(cache / "home"), "HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": ""} | variables
    done = subprocess.run(
        [sys.executable, "-c", script, *names], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.splitlines()


def cached(cache: Path, commit: str) -> None:
    folder = cache / "models--org--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")


def test_a_hub_name_is_pinned_to_the_commit_in_the_cache(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    cached(tmp_path, SECOND)
    assert resolved(tmp_path, "org/model", "org/model@main", f"org/model@{FIRST}", server=hub) == [
        f"hub:org/model@{SECOND} {SECOND}",
        f"hub:org/model@{SECOND} {SECOND}",
        f"hub:org/model@{FIRST} {FIRST}",
    ]
    assert not hub.RequestHandlerClass.asked  # type: ignore[attr-defined]


def test_the_hub_is_asked_once_and_a_moving_branch_changes_nothing(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    pinned = [f"hub:org/model@{FIRST} {FIRST}"]
    assert resolved(tmp_path, "org/model", server=hub) == pinned
    hub.RequestHandlerClass.commit = SECOND  # type: ignore[attr-defined]
    assert resolved(tmp_path, "org/model", server=hub) == pinned
    assert resolved(tmp_path, "org/model") == pinned


def test_a_name_that_the_hub_refuses_is_an_error_of_one_line(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    assert resolved(tmp_path, "org/other", "org/model@v9", "org/gated", server=hub) == [
        "model org/other: the hub has no model org/other (a private one needs HF_TOKEN, or `hf auth login`)",
        "model org/model@v9: the hub has no revision v9 of it",
        "model org/gated: it is gated; accept its terms on the hub, then set HF_TOKEN or run `hf auth login`",
    ]


def test_a_private_model_needs_a_token_or_a_login(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("sesame\n")
    refused = ["model org/private: the hub has no model org/private (a private one needs HF_TOKEN, or `hf auth login`)"]
    assert resolved(tmp_path, "org/private", server=hub, HF_TOKEN="another") == refused
    assert resolved(tmp_path, "org/private", server=hub, HF_HUB_DISABLE_IMPLICIT_TOKEN="1") == refused
    assert resolved(tmp_path / "1", "org/private", server=hub, HF_TOKEN="sesame") == [
        f"hub:org/private@{FIRST} {FIRST}"
    ]
    assert resolved(tmp_path, "org/private", server=hub) == [f"hub:org/private@{FIRST} {FIRST}"]


def test_the_commit_noted_in_the_cache_is_where_huggingface_hub_looks(tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    resolved(tmp_path, "org/model", server=hub)
    snapshot = tmp_path / "models--org--model" / "snapshots" / FIRST
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert try_to_load_from_cache("org/model", "config.json", cache_dir=tmp_path) == str(snapshot / "config.json")
    assert not scan_cache_dir(tmp_path).warnings


def test_without_a_known_commit_the_identity_is_the_name_alone(tmp_path: Path) -> None:
    assert resolved(tmp_path, "org/model", "org/model@v1") == ["hub:org/model None", "hub:org/model@v1 v1"]


def test_an_unreachable_model_is_an_immediate_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(InputError, match=r"^model org/model: is not in the cache \(.*\), and the hub cannot be reach"):
        load(Model("org/model", "hub:org/model"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=rf"^model org/model@{FIRST}: is not in the cache .* HF_HUB_OFFLINE is set$"):
        load(Model("org/model", "hub:org/model", FIRST))
    cached(tmp_path, FIRST)
    for revision in (None, "main", FIRST):
        check_reachable("org/model", revision)
    with pytest.raises(InputError, match="is not in the cache"):
        check_reachable("org/model", SECOND)
    assert capfd.readouterr() == ("", "")


def test_the_cache_is_found_by_the_librarys_environment_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path / "hub", FIRST)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PLACE", str(tmp_path))
    for name, place in (("HUGGINGFACE_HUB_CACHE", "$PLACE/hub"), ("HF_HOME", "$PLACE")):
        with monkeypatch.context() as set_up:
            set_up.setenv(name, place)
            check_reachable("org/model", FIRST)


def test_a_hub_that_is_briefly_unreachable_does_not_end_a_run(
    tmp_path: Path, hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run checks before each stage that the models are available."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", "sesame")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot be reached"):
        check_at_hand("org/private@main")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    check_at_hand("org/private@main")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    check_at_hand("org/private@main")


def test_naming_a_stages_directory_points_to_its_model_directory(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/model").symlink_to(EMBEDDED / "teacher")
    with pytest.raises(InputError, match=r"the model of a stage is in .*sft/model"):
        find(str(tmp_path / "sft"), tmp_path, {}, FileHashes())
