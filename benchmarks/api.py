"""The openai engine against a plain asyncio client: requests per second and per CPU-second, alternating in one run.

Both request the same answers from the same server, a real one in its own process with a fixed latency, over the same
number of connections (httpx2 on both sides). The plain client posts, parses and gathers, and loses everything if it is
killed. Ours computes the cost, keeps every reply in its call log on disk, begins with four calls at a time and passes
each completion to another thread. The cases are replies in one piece and streamed replies.

    python benchmarks/api.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2

from distill.engines import openai
from distill.engines.calls import CallLog
from distill.engines.options import OpenAIOptions
from distill.modelspec import Model
from distill.types import Request, Sampling

CONCURRENCY = 32
LATENCY = 0.1
PIECES = 40
THINKING = "So we have to add them up, step by step. " * 40
ANSWER = "The answer is \\boxed{42}."
USAGE = {"prompt_tokens": 40, "completion_tokens": 420, "completion_tokens_details": {"reasoning_tokens": 400}}

Side = Callable[[str, int, bool], int]
"""(url, requests, streamed) -> number of tokens received."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the requests, three repeats")
    arguments = parser.parse_args()
    requests, repeats = (1000, 3) if arguments.quick else (4000, 5)
    ratios: dict[str, float] = {}
    detail: dict[str, Any] = {
        "requests": requests, "repeats": repeats, "concurrency": CONCURRENCY, "latency": LATENCY,
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    with serving() as url:
        for case, streamed in (("one piece", False), ("streamed", True)):
            measured = compare(url, requests, repeats, streamed)
            for figure, pairs in measured.items():
                ratios[f"{case}: {figure}"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 3)
                ours, theirs = (round(statistics.median(side), 1) for side in zip(*pairs, strict=True))
                detail[f"{case}: {figure}"] = {"ours": ours, "theirs": theirs}
            print(f"{case}: {detail}", flush=True)
    print(json.dumps({"benchmark": "api", "ratios": ratios, "detail": detail}))


def compare(url: str, requests: int, repeats: int, streamed: bool) -> dict[str, list[tuple[float, float]]]:
    """(ours, theirs) of each repeat: requests per second and per CPU-second. The side that begins alternates."""
    measured: dict[str, list[tuple[float, float]]] = {"requests a second": [], "requests a CPU-second": []}
    for side in (ours, theirs):
        side(url, requests // 4, streamed)
    for repeat in range(repeats):
        rates: dict[Side, tuple[float, float]] = {}
        for side in (ours, theirs) if repeat % 2 else (theirs, ours):
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = side(url, requests, streamed)
            rates[side] = requests / (time.perf_counter() - wall), requests / (time.process_time() - cpu)
            assert tokens == requests * USAGE["completion_tokens"]  # type: ignore[operator]
        for at, pairs in enumerate(measured.values()):
            pairs.append((rates[ours][at], rates[theirs][at]))
    return measured


def ours(url: str, requests: int, streamed: bool) -> int:
    options = OpenAIOptions(
        base_url=url, concurrency=CONCURRENCY, stream=streamed, price_input=Decimal("0.56"),
        price_output=Decimal("1.68"), max_cost=Decimal(1000),
    )  # fmt: skip
    wanted = (
        Request(f"request {n}", ({"role": "user", "content": f"What is {n} + {n}?"},), Sampling(max_tokens=512, seed=n))
        for n in range(requests)
    )
    with tempfile.TemporaryDirectory() as directory:
        calls = CallLog(Path(directory), {"account": "benchmark", "model": "m"})
        engine = openai.open(Model("m", f"{url}#m"), options, lambda text: None, lambda: calls)
        with closing(engine):
            return sum(completion.tokens for completion in engine.generate(wanted))


def theirs(url: str, requests: int, streamed: bool) -> int:
    return asyncio.run(_plain(url, requests, streamed))


async def _plain(url: str, requests: int, streamed: bool) -> int:
    numbers = iter(range(requests))
    limits = httpx2.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx2.AsyncClient(trust_env=False, limits=limits, timeout=600) as client:

        async def worker() -> int:
            tokens = 0
            for n in numbers:
                body = {
                    "model": "m", "messages": [{"role": "user", "content": f"What is {n} + {n}?"}],
                    "max_tokens": 512, "temperature": 1.0, "seed": n,
                }  # fmt: skip
                usage, text = await (_streamed if streamed else _posted)(client, f"{url}/chat/completions", body)
                assert text.endswith(ANSWER)
                tokens += usage["completion_tokens"]
            return tokens

        return sum(await asyncio.gather(*(worker() for _ in range(CONCURRENCY))))


async def _posted(client: httpx2.AsyncClient, url: str, body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    response = await client.post(url, json=body)
    data = response.raise_for_status().json()
    message = data["choices"][0]["message"]
    return data["usage"], message["reasoning"] + message["content"]


async def _streamed(client: httpx2.AsyncClient, url: str, body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    usage: dict[str, Any] = {}
    pieces: list[str] = []
    more = {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", url, json=body | more) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line == "data: [DONE]":
                continue
            event = json.loads(line[5:])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                pieces.append(choice["delta"].get("reasoning") or choice["delta"].get("content") or "")
    return usage, "".join(pieces)


@contextmanager
def serving() -> Iterator[str]:
    """Run the server in its own process, which ends with this one."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def _serve(port: Any) -> None:
    async def run() -> None:
        server = await asyncio.start_server(_answer, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer HTTP/1.1 with keep-alive, as far as these two clients need it."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            streamed = b'"stream"' in await reader.readexactly(length)
            if not streamed:
                await asyncio.sleep(LATENCY)
                writer.write(_WHOLE)
                continue
            writer.write(_STREAM_HEAD)
            for pieces in _STREAM:
                await asyncio.sleep(LATENCY / len(_STREAM))
                writer.write(pieces)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _http(kind: str, more: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{more}\r\n\r\n".encode()


def _whole() -> bytes:
    message = {"role": "assistant", "content": ANSWER, "reasoning": THINKING}
    data = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}
    text = json.dumps(data).encode()
    return _http("application/json", f"Content-Length: {len(text)}") + text


def _events() -> Iterator[bytes]:
    size = -(-len(THINKING) // PIECES)
    for n in range(0, len(THINKING), size):
        yield _event([{"index": 0, "delta": {"reasoning": THINKING[n : n + size]}, "finish_reason": None}])
    yield _event([{"index": 0, "delta": {"content": ANSWER}, "finish_reason": "stop"}])
    yield _event([], usage=USAGE)
    yield b"data: [DONE]\n\n"


def _event(choices: list[Any], **more: Any) -> bytes:
    data = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more}
    return f"data: {json.dumps(data)}\n\n".encode()


def _chunked(pieces: list[bytes]) -> bytes:
    return b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)


def _bursts(count: int = 4) -> list[bytes]:
    events = list(_events())
    size = -(-len(events) // count)
    bursts = [_chunked(events[n : n + size]) for n in range(0, len(events), size)]
    return [*bursts[:-1], bursts[-1] + b"0\r\n\r\n"]


_WHOLE, _STREAM = _whole(), _bursts()
_STREAM_HEAD = _http("text/event-stream", "Transfer-Encoding: chunked")

if __name__ == "__main__":
    main()
