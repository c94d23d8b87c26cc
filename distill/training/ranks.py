"""Train on several devices: ranks share the micro-batches of each step. `distill.training.launch` starts them.

Rank 0 *is* the run: only it has the loop, the trace store, checkpoints, the display and the decision to stop, so these
need no agreement between ranks and no second code path. The other ranks hold a copy of the model (ddp) or a shard
of it (fsdp), which rank 0 sends them, and call methods of their own `Learner` when rank 0 does. A rank never reads the
run's files, and nothing on disk depends on the number of ranks.

Calls go through a gloo group without a timeout, because rank 0 may sample for hours between two steps. Tensors go
through the default group: gloo on CPUs, NCCL on GPUs. If a rank dies, the others end: gloo reports it at once.

Left out: sampling from shards, ranks that join later, and shards of quantised weights.
"""

from __future__ import annotations

import gc
import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distill.tensors import copied
from distill.training.forward import Pack, Scorer, TokenScores, causal_lm, score_tokens
from pipeline.errors import PipelineError

Parallel = Literal["ddp", "fsdp"]
FOREVER = timedelta(days=365)
BUCKET = 1 << 24
"""The least number of gradient elements summed in one call."""


class Ranks:
    """One process's connection to all ranks. ``call`` is for rank 0; the others use ``receive`` and ``reply``."""

    def __init__(self, store: Any, rank: int, size: int, local: int) -> None:
        self.rank, self.size, self.store = rank, size, store
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(local)
        # No timeout for starting either: rank 0 may run other stages first.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=size)
        self._control: Any = dist.new_group(backend="gloo", timeout=FOREVER)
        self._in_step = True  # False once a call has failed: the ranks can no longer be called

    def call(self, methods: Any, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call the method ``name`` on every rank, each with its own arguments. Returns the results by rank."""
        with self.calling(name, arguments[1:]) as others:
            own = getattr(methods, name)(*arguments[0])
        return [own, *others]

    @contextmanager
    def calling(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[Any]]:
        """Call the method ``name`` on the other ranks while this one does its own part inside. The list is empty until
        then, and holds the others' results afterwards."""
        if not self._in_step:
            raise rank_lost()
        self._in_step = False
        self._send([None, *((name, own) for own in arguments)])
        others: list[Any] = []
        with _lost_peers():
            yield others
            answers: list[Any] = [None] * self.size
            dist.gather_object(None, answers, group=self._control)
        others += answers[1:]
        self._in_step = True

    def dismiss(self) -> None:
        """End the current training on the other ranks; between trainings, end their processes."""
        if self._in_step:
            with suppress(PipelineError):
                self._send([None] * self.size)

    def begin(self, opening: Mapping[str, Any]) -> None:
        self._send([opening] * self.size)

    def _send(self, messages: Sequence[Any]) -> None:
        with _lost_peers():
            dist.scatter_object_list([None], [None, *messages[1:]], src=0, group=self._control)

    def receive(self) -> Any:
        """The next call from rank 0; None ends."""
        message = [None]
        with _lost_peers():
            dist.scatter_object_list(message, None, src=0, group=self._control)
        return message[0]

    def reply(self, value: Any) -> None:
        with _lost_peers():
            dist.gather_object(value, None, group=self._control)

    def sum(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients over all ranks, on every rank."""
        bucket: list[Tensor] = []
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            bucket.append(parameter.grad)
            if sum(g.numel() for g in bucket) >= BUCKET or index == len(parameters) - 1:
                flat = torch.cat([g.flatten() for g in bucket])
                dist.all_reduce(flat)
                for gradient, total in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                    gradient.copy_(total.view_as(gradient))
                bucket = []

    def share(self, value: Any, device: torch.device) -> Any:
        """Copy rank 0's ``value`` to every rank. Tensors are sent one by one and arrive on ``device``."""
        if self.rank == 0:
            out = io.BytesIO()
            pickler = _Structure(out)
            pickler.dump(value)
            self._send([out.getvalue()] * self.size)
            for tensor in pickler.tensors:
                dist.broadcast(tensor.detach().to(device).contiguous(), 0)
            return value
        reader = _Build(io.BytesIO(self.receive()), device)
        built = reader.load()
        for index in sorted(reader.tensors):
            dist.broadcast(reader.tensors[index].detach(), 0)
        return built

    def module(self, model: Any, parallel: Parallel) -> tuple[Any, Scorer]:
        """The model that this rank trains, and its forward pass. ddp: rank 0's own model, or a copy of it. fsdp: a
        shard of a copy, while rank 0 also keeps its own model whole, on whichever device that is. With fsdp every rank
        briefly holds a whole copy in main memory."""
        if parallel == "ddp":
            model = self.share(model, self.device)
            return model, partial(score_tokens, model)
        own = self.share(model, torch.device("cpu"))
        return _sharded(copied(model) if self.rank == 0 else own, self.device)

    def close(self) -> None:
        """Leave the group, and wait for gloo's threads to end: one that releases a tensor while the interpreter shuts
        down aborts the process. They end with the last reference to their group, and a model's shards hold one too."""
        with suppress(RuntimeError):
            dist.destroy_process_group()
        self._control = None
        gc.collect()


class _Structure(pickle.Pickler):
    """Pickles a value without its tensors, which are collected in ``tensors``, tied ones once."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self._seen: dict[int, int] = {}

    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if type(value) not in (Tensor, nn.Parameter):
            return None
        if id(value) not in self._seen:
            self._seen[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self._seen[id(value)], value.shape, value.dtype, type(value) is nn.Parameter, value.requires_grad


class _Build(pickle.Unpickler):
    """Rebuilds the value with empty tensors."""

    def __init__(self, file: io.BytesIO, device: torch.device) -> None:
        super().__init__(file)
        self.tensors: dict[int, Tensor] = {}
        self._device = device

    def persistent_load(self, described: Any) -> Tensor:
        index, shape, dtype, parameter, learned = described
        if index not in self.tensors:
            tensor = torch.empty(shape, dtype=dtype, device=self._device)
            self.tensors[index] = nn.Parameter(tensor, requires_grad=learned) if parameter else tensor
        return self.tensors[index]


class _Whole(nn.Module):
    """The root module of the shards: one pass gathers what is outside the layers, the output head included."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Pack, temperature: float, entropy: bool) -> TokenScores:
        return score_tokens(self.model, batch, temperature, entropy)


def _sharded(model: Any, device: torch.device) -> tuple[Any, Scorer]:
    """Shard ``model`` layer by layer (FSDP2). Gradients are summed over ranks, not averaged."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = set(causal_lm(model)._no_split_modules or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    whole: Any = fully_shard(_Whole(model), mesh=mesh, reshard_after_forward=True)
    for module in whole.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model, whole


def unsharded(value: Tensor) -> Tensor:
    """The whole tensor, gathered if it is sharded. Every rank must call this."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def shard_like(value: Tensor, model: Tensor) -> Tensor:
    """Shard ``value``, which every rank has whole, like ``model``."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(model, DTensor):
        return value
    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements, src_data_rank=None)


def rank_lost(what: str = "a training process of another rank ended") -> PipelineError:
    return PipelineError(f"{what}; run the same command again to go on from the last checkpoint")


@contextmanager
def _lost_peers() -> Iterator[None]:
    """Turn torch's errors about a lost rank into one clear line."""
    try:
        yield
    except dist.DistError as error:
        raise rank_lost() from error
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        raise rank_lost() from error
