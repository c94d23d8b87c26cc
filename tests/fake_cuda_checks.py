"""What `fake_cuda` is for, and what it would not let pass: run on it by `test_fake_cuda.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_cuda import CUDA, Counts, counted
from ranks_run import ROWS, model
from tiny import tiny

from distill.engines.decode import Decoder, Job
from distill.engines.weights import InferenceCopy
from distill.training.loop import TrainSettings, train
from distill.training.optimizer import OptimizerSettings
from distill.types import Sampling


def test_a_tensor_says_where_it_is_and_a_model_goes_there_whole() -> None:
    network = tiny(tie_word_embeddings=True).to("cuda")
    assert {p.device for p in network.parameters()} == {CUDA}
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    loss = network(torch.arange(6, device="cuda")[None]).logits.float().logsumexp(-1).sum()
    loss.backward()
    assert loss.device == CUDA and loss.cpu().device.type == "cpu"
    assert {p.grad.device for p in network.parameters()} == {CUDA}


@pytest.mark.parametrize("mixed", ["sum", "product", "write", "index", "argument"])
def test_what_lies_on_two_devices_is_refused(mixed: str) -> None:
    there, here = torch.ones(3, 3, device="cuda"), torch.ones(3, 3)
    with pytest.raises(RuntimeError, match="same device"):
        match mixed:
            case "sum":
                there + here
            case "product":
                here @ there
            case "write":
                there[[0, 2]] = here[:2]
            case "index":
                here.index_select(0, torch.tensor([0], device="cuda"))
            case "argument":
                torch.nn.functional.embedding(torch.tensor([1]), there)


def test_what_the_cpu_waits_for_is_counted() -> None:
    x = torch.arange(4.0, device="cuda")
    with counted() as counts:
        y = (x + 1) * 2
        y[1:3].view(2, 1)
    assert (counts.launches, counts.waits) == (2, 0)
    with counted() as counts:
        assert (y.sum().item(), y.tolist(), bool(y[x > 2].eq(8).all())) == (20.0, [2.0, 4.0, 6.0, 8.0], True)
    assert counts.waits == 4


def test_a_step_of_sampling_waits_once() -> None:
    """For which rows ended: all else stays on the device, whatever the number of rows."""
    waits, launches = [], []
    for rows in (4, 32):
        decoder = Decoder(InferenceCopy(tiny().to("cuda")).model, stop_ids=(), slots=32)
        decoder.add([Job(f"{row}", (1, 2, 3), Sampling(max_tokens=8)) for row in range(rows)])
        decoder.step()
        with counted() as counts:
            assert [decoder.step() for _ in range(4)] == [[]] * 4
        waits.append(counts.waits)
        launches.append(counts.launches)
    assert waits == [4, 4] and launches[0] == launches[1]


def test_prompts_are_read_in_one_pass() -> None:
    """Not in pieces that suit a CPU's cache."""
    taken = []
    for length in (20, 400):
        decoder = Decoder(InferenceCopy(tiny(max_position_embeddings=512).to("cuda")).model, stop_ids=(), slots=16)
        decoder.add([Job(f"{row}", (row, *[7] * length), Sampling(max_tokens=2)) for row in range(16)])
        with counted() as counts:
            decoder.step()
        taken.append(counts.launches)
    assert taken[1] < 1.5 * taken[0]


def test_a_step_of_training_waits_as_often_for_many_micro_batches_as_for_one(tmp_path: Path) -> None:
    many, one = (second_step(tokens, tmp_path / f"{tokens}") for tokens in (8, 1000))
    assert many.launches > 2 * one.launches and many.waits == one.waits <= 2


def second_step(micro_batch_tokens: int, directory: Path) -> Counts:
    told: list[Counts] = []
    settings = TrainSettings(OptimizerSettings(1e-3), batch_size=4, steps=3, micro_batch_tokens=micro_batch_tokens)
    with counted() as counts:
        network = model(lora=True).to("cuda")
        train(network, ROWS, settings, checkpoints=directory, on_step=lambda _: told.append(replace(counts)))
    return Counts(told[1].launches - told[0].launches, told[1].waits - told[0].waits)
