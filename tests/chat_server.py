"""An OpenAI-compatible server on loopback that misbehaves on purpose, for the engine's and the judge's tests."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Plays, for each prompt, its script of acts in turn; the last act goes on for ever. A prompt without a
    script gets ``server.otherwise``."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = next(m["content"] for m in reversed(self.body["messages"]) if m["role"] == "user")
        with self.server.lock:
            turn = self.server.asked[prompt]
            self.server.asked[prompt] += 1
            self.server.seen.append((self.headers.get("Authorization"), self.body))
        script = self.server.scripts.get(prompt, [self.server.otherwise])
        script[min(turn, len(script) - 1)](self)

    def send(self, status: int, text: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def begin_events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, text: str, last: bool = False) -> None:
        data = b"" if last else f"{text}\n\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.otherwise: Act = reply()
        self.scripts: dict[str, list[Act]] = {}
        self.asked: Counter[str] = Counter()
        self.seen: list[tuple[str | None, dict[str, Any]]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news here."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def reply(content: str | None = "4", finish: str = "stop", usage: dict[str, Any] | None = None, **fields: Any) -> Act:
    counts = {"prompt_tokens": 10, "completion_tokens": 20} if usage is None else usage
    message = {"role": "assistant", "content": content, **fields}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return lambda handler: handler.send(200, json.dumps({"choices": [choice], "usage": counts}))


def streamed(
    *pieces: dict[str, Any],
    finish: str = "stop",
    usage: dict[str, Any] | None = None,
    pause: Callable[[], Any] = lambda: 0,
) -> Act:
    """The same as server-sent events, a delta each; ``pause`` is called before each."""

    def act(handler: Handler) -> None:
        counts = {"prompt_tokens": 10, "completion_tokens": 20} if usage is None else usage
        handler.begin_events()
        handler.event(": keep-alive")
        for delta in pieces:
            pause()
            handler.event(_data([{"index": 0, "delta": delta, "finish_reason": None}]))
        handler.event(_data([{"index": 0, "delta": {}, "finish_reason": finish}]))
        handler.event(_data([], usage=counts))
        handler.event("data: [DONE]")
        handler.event("", last=True)

    return act


def _data(choices: list[Any], **more: Any) -> str:
    return f"data: {json.dumps({'choices': choices, **more})}"


def status(code: int, text: str = "no", **headers: str) -> Act:
    return lambda handler: handler.send(code, text, **headers)


def malformed(handler: Handler) -> None:
    handler.send(200, '{"choices": [{"mess')


def cut(handler: Handler) -> None:
    """Promise a long body, send a little, reset the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()
