"""A GRPO policy on vLLM: each step's weights arrive, and it is told where they do not."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny
from vllm_models import SMALL, TEACHER, needs_teacher, needs_vllm, requests

from distill import pretrained
from distill.cli.open import load
from distill.engines import vllm
from distill.engines.options import VllmOptions
from distill.engines.transformers import TransformersEngine
from distill.modelspec import Model
from distill.training.batching import from_tokens
from distill.training.passes import likelihoods
from distill.training.student import add_lora
from pipeline.errors import InputError, PipelineError
from rl.vllm_policy import VllmPolicy

MODEL = Model(str(TEACHER), "teacher")


def student(**changes: Any) -> tuple[Any, Any]:
    network, tokenizer = pretrained.load(MODEL, device="cpu")
    return add_lora(network, rank=4, alpha=8, seed=0, **changes), tokenizer


def move(network: Any, seed: int, scale: float) -> None:
    torch.manual_seed(seed)
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, scale)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[vllm.VllmEngine]:
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    with closing(vllm.open(MODEL, VllmOptions(dtype="float32", max_model_len=256), print, lora_rank=4)) as opened:
        yield opened


@needs_vllm
@needs_teacher
def test_each_refresh_samples_from_the_weights_of_that_step(
    engine: vllm.VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, tokenizer = student()
    probe = tokenizer.encode("22 * 2 = 44\n44 + 15 = 59")
    policy = VllmPolicy(network, engine, tmp_path / "adapter", probe)
    ours = TransformersEngine(network, tokenizer, model_identity="student")
    wanted = requests(6, temperature=0.0, max_tokens=24)
    seen = []
    for step, scale in enumerate((0.0, 0.3, 0.3)):
        move(network, step, scale)
        policy.refresh()
        ours.refresh()
        texts = {c.key: c.text for c in policy.generate(wanted, lambda: False)}
        assert texts == {c.key: c.text for c in ours.generate(wanted)}
        seen.append(tuple(sorted(texts.items())))
    assert len(set(seen)) == 3
    arrives = engine.adopt
    monkeypatch.setattr(engine, "adopt", lambda adapter: None)
    move(network, 7, 0.3)
    with pytest.raises(PipelineError, match=r"other weights than the trainer's|did not arrive"):
        policy.refresh()
    monkeypatch.setattr(engine, "adopt", arrives)
    policy.refresh()
    monkeypatch.setattr(engine, "adopt", lambda adapter: None)
    move(network, 7, 0.3005)  # as little as a step of training, far below what rounding may be
    with pytest.raises(PipelineError, match="did not arrive"):
        policy.refresh()


class Rounding:
    """An engine of the weights that it took up last, which is ``off`` by so much a token, in another direction each
    time, as sums on a GPU are."""

    copies = 1

    def __init__(self, network: Any, probe: list[int], off: float) -> None:
        self._network, self._row, self.off, self.deaf = network, from_tokens("p", probe[:1], probe[1:]), off, False
        self._calls = count()
        with network.disable_adapter():
            self.adopt()

    def adopt(self, adapter: Path | None = None) -> None:
        if not self.deaf:
            (self._told,) = likelihoods(self._network, [self._row], 256)

    def score(self, sequences: Any) -> list[list[float]]:
        sign = self.off * (-1) ** next(self._calls)
        return [[math.nan, *(value + sign * (-1) ** at for at, value in enumerate(self._told))]]


def beside(directory: Path, off: float) -> tuple[Any, Any, VllmPolicy]:
    network, probe = add_lora(tiny(), rank=4, alpha=8, seed=0), [7 * i % 40 for i in range(60)]
    engine: Any = Rounding(network, probe, off)
    return network, engine, VllmPolicy(network, engine, directory, probe)


@pytest.mark.parametrize(("off", "scale"), [(1e-6, 0.002), (0.08, 0.05)])
def test_what_an_engine_rounds_is_no_other_weights_and_an_adapter_that_stays_behind_is(
    tmp_path: Path, off: float, scale: float
) -> None:
    """Also where no two scores of one text are equal."""
    network, engine, policy = beside(tmp_path, off)
    for step in range(3):
        move(network, step, scale * bool(step))
        policy.refresh()
    policy.refresh()  # nothing was learned, nothing moved
    engine.deaf = True
    move(network, 7, scale)
    with pytest.raises(PipelineError, match=r"did not arrive|other weights than the trainer's"):
        policy.refresh()


def test_a_run_that_goes_on_sees_at_once_that_its_adapter_does_not_arrive(tmp_path: Path) -> None:
    network, engine, policy = beside(tmp_path, 1e-6)
    move(network, 0, 0.05)
    engine.deaf = True
    with pytest.raises(PipelineError, match="other weights than the trainer's"):
        policy.refresh()


def test_a_step_smaller_than_rounding_may_leave_the_engine_where_it_was(tmp_path: Path) -> None:
    network, engine, policy = beside(tmp_path, 0.02)
    policy.refresh()
    engine.off, engine.deaf = 0.0, True
    policy.refresh()
    before = engine.score([])[0][1:]
    move(network, 0, 0.005)
    policy.refresh()  # is not refused
    assert engine.score([])[0][1:] == before


def test_an_engine_with_another_base_is_refused(tmp_path: Path) -> None:
    _, _, policy = beside(tmp_path, 0.7)
    with pytest.raises(PipelineError, match=r"another model than the trainer: .* differ by 0.7 nats"):
        policy.refresh()


PIPELINE = """\
name: policy
workspace: {workspace}
stages:
  problems: {{sources: [{{family: calc, train: 8}}]}}
  grpo:
    {{student: "embedded:student-base", problems: problems, steps: 2, prompts: 4, group: 4, learning_rate: 0.01,
     sampling: {{max_tokens: 48}}, lora: {{rank: 8, alpha: 16}}, engine: {engine}}}
"""


def written(directory: Path, engine: str) -> Path:
    file = directory / "policy.yaml"
    file.write_text(PIPELINE.format(workspace=directory / "run", engine=engine))
    return file


@needs_vllm
@needs_teacher
@pytest.mark.parametrize("devices", [1, 2])
def test_grpo_runs_on_vllm(tmp_path: Path, devices: int) -> None:
    """With as many threads and replicas as the machine has cores, which waited for ever beside vLLM. Where two devices
    train, vLLM has two processes of its own."""
    engine = "{kind: vllm, dtype: float32, max_model_len: 256}"
    command = [sys.executable, "-m", "distill", "run", "--pipeline", str(written(tmp_path, engine))]
    command += ["--set", f"grpo.devices={devices}"]
    environment = {name: value for name, value in {**os.environ, **SMALL}.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "run").is_dir() and "vllm: loading" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("grpo.lora=null", "engine vllm needs `lora`"),
        ("grpo.norm_learning_rate=0.1", "applies LoRA alone"),
        ("grpo.engine=vlm", "'vlm' is not valid"),
    ],
)
def test_what_cannot_be_with_vllm_is_said_when_the_yaml_is_read(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(written(tmp_path, "vllm"), [setting])
    assert "\n" not in str(caught.value)
