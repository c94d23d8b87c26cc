"""A GPU for machines without one: tensors that say they are on cuda:0, and lie in RAM.

A pytest plugin (``pytest -p fake_cuda -m gpu``), for a process that has not imported torch yet. What it shows: that code
takes its CUDA branches to the end, that nothing is computed from tensors on two devices (an error here as there), how many
operations a GPU would be asked for (`Counts.launches`), and how often the CPU would wait for it (`Counts.waits`). What it
can't show: anything about CUDA's kernels, their rounding, or time. bitsandbytes, which looks behind torch's back, can't
be had on it, nor can several devices.

Needs a C++ compiler, once for each version of torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

COMPILER = shutil.which("c++") or shutil.which("g++")
TORCH = Path(str(importlib.util.find_spec("torch").origin)).parent  # type: ignore[union-attr]


def built() -> Path:
    """The library of fake_cuda.cpp for the torch that is here."""
    source = Path(__file__).with_suffix(".cpp")
    library = Path(tempfile.gettempdir()) / f"fake_cuda-{os.getuid()}-{version('torch')}-{source.stat().st_mtime_ns}.so"
    if not library.exists():
        if COMPILER is None:
            raise RuntimeError("fake_cuda needs a C++ compiler")
        made = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{TORCH}/include", f"-L{TORCH}/lib", f"-Wl,-rpath,{TORCH}/lib"]
        subprocess.run([COMPILER, *flags, source, "-lc10", "-ltorch_cpu", "-o", made], check=True)
        made.rename(library)
    return library


ctypes.CDLL(str(built()), mode=ctypes.RTLD_GLOBAL)  # before torch, whose answers it gives in part

import peft  # noqa: E402, F401  (with bitsandbytes, which is not to see the device)
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_map  # noqa: E402

CUDA = torch.device("cuda", 0)
MEMORY = 2**34


@dataclass
class Counts:
    """Operations asked for, without views; and those of them for which the CPU waits until all before is done: results
    that it reads, and numbers that it sends without ``non_blocking``."""

    launches: int = 0
    waits: int = 0


_counts = Counts()


@contextmanager
def counted() -> Iterator[Counts]:
    """What is asked of the device within this context."""
    global _counts
    before, _counts = _counts, Counts()
    try:
        yield _counts
    finally:
        _counts = before


@dataclass
class Memory:
    """Bytes on the device: of all tensors there, those that share a storage counted once. ``kept`` is what torch has
    taken for them, and gives back when asked."""

    now: int = 0
    peak: int = 0
    kept: int = 0


_memory, _holders = Memory(), Counter[int]()


def _held(tensor: Tensor, storage: Any) -> None:
    place, size = storage.data_ptr(), storage.nbytes()
    if not _holders[place]:
        _memory.now += size
        _memory.peak, _memory.kept = max(_memory.peak, _memory.now), max(_memory.kept, _memory.now)
    _holders[place] += 1
    weakref.finalize(tensor, _let_go, place, size).atexit = False


def _let_go(place: int, size: int) -> None:
    _holders[place] -= 1
    if not _holders[place]:
        del _holders[place]
        _memory.now -= size


def _forget_peak(device: Any = None) -> None:
    _memory.peak = _memory.now


def _give_back() -> None:
    _memory.kept = _memory.now


class There(Tensor):
    """A tensor on the device: a shell around one on the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=CUDA, requires_grad=here.requires_grad,
        )  # fmt: skip
        made.here = here
        _held(made, here.untyped_storage())
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"There({self.here})"


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What never comes to `_Operations` with the device still in it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _is_cuda(kwargs.get("device")):
            return func(*args, **kwargs | {"device": "cpu"}).to(CUDA)
        if func is Tensor.pin_memory:
            return args[0]
        if args and isinstance(args[0], There) and func in _ANSWERS:
            return _ANSWERS[func](*args, **kwargs)
        return func(*args, **kwargs)


def _indexed(func: Any) -> Callable[..., Any]:
    def answer(tensor: There, index: Any, *value: Any) -> Any:
        indices = index if isinstance(index, tuple) else (index,)
        return func(tensor, tuple(torch.tensor(i).to(CUDA) if isinstance(i, list) else i for i in indices), *value)

    return answer


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    written_out = torch.ops.aten._scaled_dot_product_attention_math
    found: Tensor = written_out(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
    return found


_ANSWERS: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    Tensor.tolist: lambda tensor: tensor.cpu().tolist(),
    Tensor.untyped_storage: lambda tensor: tensor.here.untyped_storage(),
    Tensor.__getitem__: _indexed(Tensor.__getitem__),
    Tensor.__setitem__: _indexed(Tensor.__setitem__),
}

_TRANSFERS = {"aten._to_copy", "aten.copy_"}
_INDEXED = {"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"}
_WAITS = {"aten._local_scalar_dense", "aten.equal", "aten.is_nonzero", "aten.masked_select", "aten.nonzero"}


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


@cache
def _kind(func: Any) -> tuple[str, bool]:
    """An operation's name, and whether it is made of others."""
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return str(func._overloadpacket), composite


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation, in RAM, and what it made on the device that it was asked for."""
    values = list(_leaves((*args, *kwargs.values())))
    tensors = [value for value in values if isinstance(value, Tensor)]
    there = any(isinstance(tensor, There) for tensor in tensors)
    asked = next((value for value in values if isinstance(value, torch.device)), None)
    if not there and not _is_cuda(asked):
        return func(*args, **kwargs)
    name, composite = _kind(func)
    if composite:
        with _Operations():
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
    if there:
        _check(name, args, tensors)
    lands = _is_cuda(asked) if asked else not (name == "aten.copy_" and not isinstance(args[0], There))
    _count(func, name, args, kwargs, lands)
    here, named = _mapped(_here, args), {key: _mapped(_here, value) for key, value in kwargs.items()}
    if "pin_memory" in named:
        named["pin_memory"] = False
    made = func(*here, **named)
    if not lands:
        return args[0] if name == "aten.copy_" else made
    made = _mapped(lambda x: There(x) if isinstance(x, Tensor) and not isinstance(x, There) else x, made)
    return return_and_correct_aliasing(func, args, kwargs, made)


def _here(value: Any) -> Any:
    if isinstance(value, There):
        return value.here
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _leaves(values: Any) -> Iterator[Any]:
    """Operations take and give values, and lists of them: for that, torch's trees would take half of the time."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    return type(value)(_mapped(change, v) for v in value) if isinstance(value, list | tuple) else change(value)


def _check(name: str, args: Any, tensors: list[Tensor]) -> None:
    """A tensor on the CPU may be copied from or to, be a number, or an index; all else is CUDA's error, too."""
    for tensor in tensors:
        index = name in _INDEXED and any(tensor is i for i in args[1])
        if not (isinstance(tensor, There) or tensor.dim() == 0 or name in _TRANSFERS or index):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {CUDA} and cpu! ({name})"
            )


def _count(func: Any, name: str, args: Any, kwargs: Any, lands: bool) -> None:
    if not func.is_view:
        _counts.launches += 1
    by_mask = name in _INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
    source = args[1] if name == "aten.copy_" else args[0] if args else None
    arrives = name in _TRANSFERS and not isinstance(source, There)
    if name in _WAITS or not lands or by_mask or (arrives and not (kwargs.get("non_blocking") or True in args[2:])):
        _counts.waits += 1


def _moved(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`nn.Module.to`, which fills the tensors that it has where torch can; here parameters are others, ties are kept."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    if not _is_cuda(device) and not any(isinstance(parameter, There) for parameter in self.parameters()):
        return _to(self, *args, **kwargs)
    made: dict[int, nn.Parameter] = {}
    for module in self.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if id(old) not in made:
                new = old.detach().to(device, dtype if old.is_floating_point() else None)
                made[id(old)] = nn.Parameter(new, old.requires_grad)
            module._parameters[name] = made[id(old)]
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device, dtype if buffer.is_floating_point() else None)
    return self


def _saved(what: Any, *args: Any, **kwargs: Any) -> None:
    _save(tree_map(lambda x: x.detach().cpu() if isinstance(x, There) else x, what), *args, **kwargs)


_to, _save = nn.Module.to, torch.save
_PATCHES: list[tuple[Any, dict[str, Any]]] = [
    (nn.Module, {"to": _moved}),
    # torch.load gives what was saved where it was saved from: none of ours is without a map_location
    (torch, {"save": _saved, "inference_mode": lambda mode=True: torch.no_grad() if mode else nullcontext()}),
    (
        torch.cuda,
        {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "no GPU, but a fake one",
            "is_bf16_supported": lambda including_emulation=True: True,
            "mem_get_info": lambda device=None: (MEMORY - _memory.kept, MEMORY),
            "synchronize": lambda device=None: None,
            "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda state, device="cuda": None,
            "device": type("device", (nullcontext,), {}),
            "set_device": lambda device: None,
            "empty_cache": _give_back,
            "memory_allocated": lambda device=None: _memory.now,
            "max_memory_allocated": lambda device=None: _memory.peak,
            "reset_peak_memory_stats": _forget_peak,
            "_lazy_init": lambda: None,
        },
    ),
]
for _owner, _named in _PATCHES:
    for _name, _value in _named.items():
        setattr(_owner, _name, _value)
_Operations().__enter__()
_Functions().__enter__()
