"""What `fake_cuda` is for, and what it would not let pass: run on it by `test_fake_cuda.py`."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import CUDA, MEMORY, Counts, counted
from ranks_run import ROWS, model
from tiny import chat_tokenizer, tiny

from distill.engines.decode import Decoder, Job
from distill.engines.options import VllmOptions
from distill.engines.transformers import TransformersEngine
from distill.engines.weights import InferenceCopy
from distill.modelspec import Model
from distill.prm.examples import StepExample
from distill.prm.head import attach, fitness, probabilities
from distill.stages.devices import beside_models, beside_training
from distill.stages.student import StudentSettings
from distill.training.batching import from_tokens
from distill.training.early_stopping import Best, Heldout
from distill.training.export import export_student
from distill.training.forward import logprobs, pack
from distill.training.loop import TrainSettings, train
from distill.training.memory import free_memory, weights_of
from distill.training.optimizer import OptimizerSettings
from distill.training.passes import likelihoods
from distill.training.session import learning
from distill.training.student import add_lora
from distill.training.trials import count_unfinished
from distill.types import Request, Sampling
from distill.verifiers import settled
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Identity, Manifest
from pipeline.workspace import StageContext
from rl.loss import EngineCorrection, PolicyLoss
from rl.stages.grpo import GrpoSettings
from rl.stages.refining import with_room

SHARE = "gpu_memory_utilization"


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


def test_memory_is_that_of_what_is_held_and_views_take_none() -> None:
    before, allocated = torch.cuda.memory_allocated(), torch.cuda.memory_allocated
    x = torch.zeros(100, device="cuda")
    y = x.view(10, 10)
    torch.cuda.reset_peak_memory_stats()
    assert allocated() == before + 400
    x = x + y.sum()
    assert allocated() == before + 800
    del y
    assert allocated() == before + 400 and torch.cuda.max_memory_allocated() > before + 800


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


def test_rows_enter_without_a_wait() -> None:
    """But for the one in which the step ends, however many they are."""
    waits = []
    for rows in (4, 32):
        decoder = Decoder(InferenceCopy(tiny().to("cuda")).model, stop_ids=(), slots=32)
        decoder.add([Job(f"{row}", (1, 2, 3), Sampling(max_tokens=8)) for row in range(rows)])
        with counted() as counts:
            decoder.step()
        waits.append(counts.waits)
    assert waits == [1, 1]


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


def test_a_loss_over_whole_responses_waits_for_nothing() -> None:
    """Not for how many there are, either."""
    policy = PolicyLoss(level="sequence", correction=EngineCorrection("mask", "sequence"))
    rows = torch.arange(12, device="cuda") // 4
    new, other = torch.zeros(12, device="cuda", requires_grad=True), torch.full((12,), 0.01, device="cuda")
    with counted() as counts:
        policy(new, {"row": rows, "advantage": other, "engine": other, "weight": other}).backward()
    assert counts.waits == 0 and counts.launches > 10


def test_steps_are_learned_without_a_wait_and_scored_with_one() -> None:
    """However many rows and steps there are, and in however many passes."""
    network = tiny().to("cuda")
    attach(network, likelihood=True)
    rows = [steps_of(row, count) for row, count in enumerate((2, 5, 3))]
    with counted() as counts:
        fitness(network, pack(rows, "cuda")).logprobs.sum().backward()
    assert counts.waits == 0
    few, many = list[Any](), list[Any]()
    for told, tokens in ((few, 1000), (many, 20)):
        with counted() as counts:
            told += [probabilities(network, rows, tokens), counts]
    assert many[1].launches > 2 * few[1].launches and many[1].waits == few[1].waits == 1
    assert [pytest.approx(row, abs=1e-5) for row in few[0]] == many[0]


def test_a_teacher_is_waited_for_once() -> None:
    """However many responses it scores, and in however many passes."""
    rows = [from_tokens(f"{row}", [row], [(7 * t + row) % 40 for t in range(9)]) for row in range(6)]
    network = tiny().to("cuda")
    with counted() as counts:
        likelihoods(network, rows, 20)
    assert counts.waits == 1


@pytest.mark.parametrize(("lora", "more"), [(True, 100), (False, 0)])
def test_a_large_vocabulary_is_passed_over_in_few_large_tiles(lora: bool, more: int) -> None:
    taken = []
    for vocabulary in (2048, 2**16):
        network = tiny(vocab_size=vocabulary).to("cuda")
        network = add_lora(network, rank=2, alpha=4, seed=0) if lora else network
        batch = pack([from_tokens("row", [1], [i % 40 for i in range(600)])], "cuda")
        with counted() as counts:
            logprobs(network, batch).sum().backward()
        taken.append(counts.launches)
    assert taken[1] <= taken[0] + more


def test_memory_that_stages_before_have_left_is_free() -> None:
    """Stages run in one process: what torch keeps for it, and what waits for Python's collector, is not taken."""
    network: Any = tiny(intermediate_size=2**16).to("cuda")
    network.itself, size = network, sum(p.nbytes for p in network.parameters())
    before = free_memory()
    del network
    assert free_memory() >= before + size


def test_memory_for_sampling_is_given_back() -> None:
    """Else a trainer beside the sampler would have half of what it was told is free."""
    engine = TransformersEngine(tiny().to("cuda"), chat_tokenizer(), model_identity="tiny", slots=16)
    requests = [Request(f"{row}", ({"role": "user", "content": "a"},), Sampling(max_tokens=2000)) for row in range(8)]
    stores = 8 * 2000 * 2 * 8 * 4 * 2 * 2  # bytes of keys and values: 2 heads of size 8, 2 layers
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before, looks = torch.cuda.memory_allocated(), count()
    list(engine.generate(requests, lambda: next(looks) == 3))
    gc.collect()
    assert torch.cuda.max_memory_allocated() - before > stores > 4 * (torch.cuda.memory_allocated() - before)


@pytest.mark.parametrize(("free", "device"), [(MEMORY, "cuda"), (100_000, "cpu")])
def test_a_student_whose_training_was_cut_up_is_asked_on_a_gpu_with_room(
    free: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where it lies after that, in the machine's memory."""
    network = model(lora=True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, MEMORY))
    asked = [Request("a", ({"role": "user", "content": "a"},), Sampling(max_tokens=2))]
    assert count_unfinished(network, chat_tokenizer(), asked, lambda: False) in (0, 1)
    assert network.device.type == device


@pytest.mark.parametrize(("tokens", "said", "share"), [(1000, {}, 0.9), (2**17, {}, 0.4), (2**17, {SHARE: 0.7}, 0.7)])
def test_vllm_takes_what_the_training_beside_it_leaves(
    tokens: int, said: dict[str, float], share: float, tmp_path: Path
) -> None:
    """Or what the user says. Of 16 GiB the second training takes 9."""
    network = tiny(vocab_size=2**15, intermediate_size=2**10).to("cuda")
    network.save_pretrained(tmp_path)
    chat_tokenizer().save_pretrained(tmp_path)
    settings = StudentSettings(student=str(tmp_path), lora=None, micro_batch_tokens=tokens)
    start = Model(str(tmp_path), "tiny")
    engines = beside_training({"policy": (start, VllmOptions(**said))}, settings, start, network)
    assert engines["policy"].gpu_memory_utilization == pytest.approx(share, abs=0.1)


def test_vllm_on_gpus_of_its_own_keeps_its_share_of_them(tmp_path: Path) -> None:
    """Where two devices train there is one copy a device, beside the training unless the user has others take it."""
    network = tiny(vocab_size=2**15, intermediate_size=2**10).to("cuda")
    network.save_pretrained(tmp_path)
    chat_tokenizer().save_pretrained(tmp_path)
    settings = StudentSettings(student=str(tmp_path), lora=None, micro_batch_tokens=2**17, devices=2)
    start = Model(str(tmp_path), "tiny")

    def beside(**said: int) -> tuple[int | None, float]:
        engines = beside_training({"policy": (start, VllmOptions.model_validate(said))}, settings, start, network)
        return engines["policy"].data_parallel, engines["policy"].gpu_memory_utilization

    copies, share = beside()
    assert copies == 2 and share < 0.6
    assert beside(data_parallel=1) == (1, share)
    assert beside(first_gpu=1) == (2, share)
    assert beside(first_gpu=2) == (2, 0.9)
    assert beside(tensor_parallel=2)[0] == beside(tensor_parallel=4)[0] == 1


def test_vllm_leaves_room_for_a_teacher_and_a_reward_model_that_come_after_it(tmp_path: Path) -> None:
    network = tiny(vocab_size=2**15, intermediate_size=2**10).to("cuda")
    network.save_pretrained(tmp_path)
    chat_tokenizer().save_pretrained(tmp_path)
    settings = StudentSettings(student=str(tmp_path), lora=None, micro_batch_tokens=2**16)
    start, size = Model(str(tmp_path), "tiny"), sum(p.nbytes for p in network.parameters())
    engines = {"policy": (start, VllmOptions())}
    alone, beside = (
        beside_training(engines, settings, start, network, [(start, "float32")] * count)["policy"] for count in (0, 200)
    )
    less = alone.gpu_memory_utilization - beside.gpu_memory_utilization
    assert 0.05 < less == pytest.approx(0.95 * 200 * size / MEMORY, rel=0.01)


def test_a_policy_and_a_teacher_in_vllm_share_what_training_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its weights and half of the rest; of what the user says of one, the other has what is left."""
    free = MEMORY // 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, MEMORY))
    network = tiny(vocab_size=2**15).to("cuda")
    small, large = (saved(tiny(vocab_size=2**15, hidden_size=size), tmp_path / f"{size}") for size in (32, 512))
    more = weights_of(Path(large.source), 2) - weights_of(Path(small.source), 2)
    context = StageContext("grpo", "grpo", "f", tmp_path, {}, tmp_path / "a", tmp_path / "b", FileHashes())
    asked = {"problems": "p", "student": small.source, "micro_batch_tokens": 1000}

    def shares(teacher: dict[str, Any], policy: Any = "vllm") -> list[float]:
        """Of the policy and the teacher, in bytes, before what torch's allocator wastes."""
        told = {"model": large.source, **teacher, "engine": {"kind": "vllm", **teacher.get("engine", {})}}
        settings = GrpoSettings.model_validate({**asked, "engine": policy, "teacher": told})
        found = with_room(context, settings, small, network, [])
        assert found.teacher
        engines: list[Any] = [found.engine, found.teacher.engine]
        return [engine.gpu_memory_utilization * MEMORY / 0.95 for engine in engines if engine != "transformers"]

    both, alike = shares({}), shares({"model": small.source})
    assert 0.9 * free < sum(both) < free and sum(both) == pytest.approx(sum(alike))
    assert alike[0] == pytest.approx(alike[1]) and both[1] - both[0] == pytest.approx(more, rel=1e-3)
    assert 0.4 * free < shares({}, "transformers")[0] < 0.6 * free  # half is for what the trainer's own sampler keeps
    rest = shares({"engine": {SHARE: 0.3}})
    assert rest == [pytest.approx(sum(both) - 0.3 * MEMORY), pytest.approx(0.3 * MEMORY / 0.95)]
    free = more
    with pytest.raises(InputError, match=r"weights of the policy and the teacher are .*: train with less, or set gpu_"):
        shares({})
    assert len(shares({"engine": {SHARE: 0.3}}, {"kind": "vllm", SHARE: 0.2})) == 2


def test_judges_in_vllm_share_what_training_leaves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are named: alone, as a part of a component, or for the problems that are watched. Only what stands in
    the problems' own rows cannot be told its share."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (MEMORY // 2, MEMORY))
    network = tiny(vocab_size=2**15).to("cuda")
    start = saved(tiny(vocab_size=2**15), tmp_path / "model")
    asked = {"problems": "p", "student": start.source, "micro_batch_tokens": 1000, "engine": "vllm"}

    def judge(**engine: Any) -> Any:
        return {"judge": {"model": start.source, "engine": {"kind": "vllm", **engine}}}

    def fitted(own: Sequence[Any] = (), **told: Any) -> GrpoSettings:
        inputs = {"p": Manifest("p", "f", Identity("problems", 1, {}, {}, {}), "d", {"verifiers": list(own)}, 0.0, "")}
        context = StageContext("grpo", "grpo", "f", tmp_path, inputs, tmp_path / "a", tmp_path / "b", FileHashes())
        return with_room(context, GrpoSettings.model_validate({**asked, **told}), start, network, [])

    def share(spec: Any) -> float:
        return float(spec["judge"]["engine"][SHARE])

    alone = fitted(verifier="math").engine.gpu_memory_utilization  # type: ignore[union-attr]
    one = fitted(verifier=judge())
    assert share(one.verifier) == one.engine.gpu_memory_utilization == pytest.approx(alone / 2)  # type: ignore[union-attr]
    assert settled(one.verifier) == settled(judge())  # the verdicts are the same
    reward = [{"verifier": {"all": ["math", judge()]}}, {"length": "relative"}]
    two = fitted(
        reward=reward, watch={"problems": "p", "verifier": {"weighted": [{"of": judge(dtype="float32"), "weight": 1}]}}
    )
    shares = [share(two.reward[0].verifier["all"][1]), share(two.watch.verifier["weighted"][0]["of"])]  # type: ignore
    assert sum(shares) + two.engine.gpu_memory_utilization == pytest.approx(alone)  # type: ignore[union-attr]
    assert fitted(verifier=judge(**{SHARE: 0.2})).verifier == judge(**{SHARE: 0.2})
    assert fitted(verifier=judge(first_gpu=1)).verifier == judge(first_gpu=1)
    assert fitted([judge(**{SHARE: 0.2})]).verifier is None
    with pytest.raises(InputError, match=r": judge .* own verifiers, .* set its engine's gpu_memory_utilization"):
        fitted(["math", judge()])


@pytest.mark.parametrize(("said", "share"), [({}, 0.95 * 0.25), ({SHARE: 0.7}, 0.7)])
def test_vllm_leaves_room_for_scorers_that_come_after_it(
    said: dict[str, float], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (MEMORY // 2, MEMORY))
    assert beside_models(VllmOptions(**said), 0) == VllmOptions(**said)
    assert beside_models(VllmOptions(first_gpu=1), MEMORY) == VllmOptions(first_gpu=1)
    assert beside_models(VllmOptions(**said), MEMORY // 4).gpu_memory_utilization == pytest.approx(share)
    with pytest.raises(InputError, match=r"need 16\.0 GiB, and leave nothing"):
        beside_models(VllmOptions(), MEMORY)


@pytest.mark.parametrize("lora", [True, False])
def test_a_student_is_merged_in_the_machines_memory(lora: bool, tmp_path: Path) -> None:
    """The device need not have room for a second one."""
    network = tiny(intermediate_size=2048, tie_word_embeddings=True).to("cuda")
    size = sum(p.nbytes for p in network.parameters())
    network = add_lora(network, rank=2, alpha=4, seed=0) if lora else network
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    export_student(network, chat_tokenizer(), tmp_path, half=not lora)
    assert torch.cuda.max_memory_allocated() - before < size / 2


def test_the_best_weights_so_far_are_kept_in_the_machines_memory(tmp_path: Path) -> None:
    settings = TrainSettings(OptimizerSettings(1e-3), steps=2)
    with learning(model(lora=False).to("cuda"), settings, 2, tmp_path, "run") as learner:
        best = Best(Heldout(lambda learner: (1.0, {}), every=1), learner, {})
        best.measure_if_due()
        assert {weight.device.type for weight in best.state().values()} == {"cpu"}


def test_products_in_half_precision_are_summed_in_full(tmp_path: Path) -> None:
    """cuBLAS may round parts of a sum unless it's told not to: what a young adapter adds would be lost in them."""
    products: Any = torch.backends.cuda.matmul
    settings = TrainSettings(OptimizerSettings(1e-3), steps=1, precision="bf16")
    with learning(model(lora=True).to("cuda"), settings, 1, tmp_path, "run"):
        assert not products.allow_bf16_reduced_precision_reduction
    assert products.allow_bf16_reduced_precision_reduction


def saved(network: Any, directory: Path) -> Model:
    network.save_pretrained(directory)
    chat_tokenizer().save_pretrained(directory)
    return Model(str(directory), "tiny")


def steps_of(row: int, count: int) -> StepExample:
    """A prompt of 3 tokens, and ``count`` steps of 4, every other one of them labelled."""
    ids, ends = tuple((7 * t + row) % 40 for t in range(3 + 4 * count + 1)), tuple(range(6, 3 + 4 * count, 4))
    labels = tuple(None if k % 2 else float(k % 4 == 0) for k in range(count))
    mask = tuple(t - 1 in ends[::2] for t in range(len(ids)))
    return StepExample(f"{row}", ids, mask, 3, ends, labels)


def second_step(micro_batch_tokens: int, directory: Path) -> Counts:
    told: list[Counts] = []
    settings = TrainSettings(OptimizerSettings(1e-3), batch_size=4, steps=3, micro_batch_tokens=micro_batch_tokens)
    with counted() as counts:
        network = model(lora=True).to("cuda")
        train(network, ROWS, settings, checkpoints=directory, on_step=lambda _: told.append(replace(counts)))
    return Counts(told[1].launches - told[0].launches, told[1].waits - told[0].waits)
