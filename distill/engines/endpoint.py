"""One chat endpoint over HTTP: makes one call, and sorts how it ended.

A failure is temporary (`TryAgain`: 429, 5xx, a broken connection, silence, a reply that is not a chat completion), or
an outcome (a content filter's refusal), or it ends the run (`InputError`). Keys come from the environment and go into
headers; they are removed from error messages, the API key from replies, too. `distill.engines.openai` decides when a
call is made or repeated; `distill.engines.chat` writes bodies and reads replies.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from distill.engines import chat, dialects, pacing
from distill.engines.chat import Reply
from distill.engines.dialects import DIALECTS, Dialect
from distill.engines.options import CHAT_PATH, OpenAIOptions
from distill.engines.prices import Bill, Prices
from distill.engines.stream import DATA, Stream
from distill.types import Request
from pipeline.errors import InputError

if TYPE_CHECKING:
    import ssl

    import httpx2

PASSING = {408, 409, 425, 429}
"""Statuses below 500 after which the same call may succeed later."""
TOO_MUCH = {429, 503, 529}
CONNECT_SECONDS = 30.0
SOCKS = ("socks5", "socks5h")
KEPT_OPEN_SECONDS = 3.0
"""Servers close idle connections after five seconds or more; a call must not be sent on one that is closing."""
HEADERS = {
    "User-Agent": "distill",
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "Accept-Encoding": "identity",
}
REFUSALS = re.compile(
    "content_filter|content_policy_violation|invalid_prompt|data_inspection_failed|content exists risk|flagged_input",
    re.IGNORECASE,
)
"""Said, with HTTP 400 or 403, of a prompt that a content filter refuses: by Azure and OpenAI, by DashScope, by DeepSeek
(which has no code for it), and by OpenRouter."""
CONTEXT = re.compile(r"context[ _]length|maximum model length", re.IGNORECASE)
"""Said by vLLM, SGLang, DeepSeek, Mistral and OpenAI where a prompt, its prefix and ``max_tokens`` are too long."""
EVENTS = (b"data:", b"event:", b":")
"""How a stream of events begins, whatever type the server declares it to be."""
LARGEST_REPLY = 2**28
SECRET_LENGTH = 8
"""Shorter keys (``none``, ``EMPTY``) are placeholders for local servers, and words that answers may contain."""


class TryAgain(Exception):
    """One try failed for a temporary reason. ``billed``: the endpoint may have done the work anyway.
    ``too_much``: it is overloaded."""

    def __init__(
        self, reason: str, *, retry_after: float | None = None, billed: bool = False, too_much: bool = False
    ) -> None:
        super().__init__(reason)
        self.retry_after, self.billed, self.too_much = retry_after, billed, too_much


class ContextFull(InputError):
    """The server's refusal of a call for which, with its ``max_tokens``, the model's context is too small."""


@dataclass(slots=True)
class Progress:
    """How far a call has got: its ``stream`` (None if unknown), and the seconds to its ``first`` piece."""

    stream: Stream | None = None
    first: float | None = None


@dataclass(frozen=True, slots=True)
class Secrets:
    """What is sent with each call and kept from everybody else."""

    headers: dict[str, str]
    variables: list[str]
    """The environment variables that hold it."""
    key: str
    """The API key, or what takes its place; "" if there is none."""
    hidden: list[str]
    """What is removed from error messages, the longest first."""


def checked_secrets(options: OpenAIOptions, note: Callable[[str], None]) -> Secrets:
    """The API key and more headers, from the environment. Raises `InputError` if one is missing or has characters that
    none can have."""
    parts = urlsplit(options.base_url)
    local = is_loopback(parts.hostname or "")
    headers, variables = {}, list(dict.fromkeys(options.headers_from.values()))
    for name, variable in options.headers_from.items():
        if not (value := _variable(variable)):
            what = f"the environment variable {variable} is to hold the value of the header {name}, and is not set"
            raise InputError(f"{options.base_url}: {what}")
        headers[name] = value
    values = [*headers.values()]
    if given := next((value for name, value in headers.items() if name.lower() == "authorization"), ""):
        key = given.split()[-1]  # after the scheme: Basic, Token
    elif key := _variable(options.key_from):
        headers["Authorization"] = f"Bearer {key}"
        variables.insert(0, options.key_from)
    if not (headers or local):
        raise InputError(
            f"{options.base_url}: needs a key; put it into the environment variable {options.key_from} "
            "(any word, if the server asks for none)"
        )
    hidden = {part for value in (key, *values) for part in (value, *value.split()) if len(part) >= SECRET_LENGTH}
    if hidden and parts.scheme == "http" and not local:
        note(f"{options.base_url}: the API key is sent unencrypted; use https")
    return Secrets(headers, variables, key, sorted(hidden, key=len, reverse=True))


def _variable(name: str) -> str:
    """The value of an environment variable, for a header; "" if it is not set."""
    value = os.environ.get(name, "").strip()
    if not (value.isascii() and value.isprintable()):
        raise InputError(f"environment variable {name}: holds characters that no key can have")
    return value


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address, if any. Raises `InputError` if it cannot be used."""
    parts = urlsplit(url)
    host, named = parts.hostname or "", getproxies()
    scheme = parts.scheme if named.get(parts.scheme) else "all"
    if is_loopback(host) or proxy_bypass(host) or not (proxy := named.get(scheme)):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        there = urlsplit(proxy)
        usable = there.scheme in ("http", "https", *SOCKS) and there.hostname and there.port != 0
    except ValueError:
        usable = False
    where = f"{url}: the proxy in the environment variable {scheme}_proxy"  # its value may hold a password
    if not usable:
        raise InputError(f"{where} is no address of the form http://host:port")
    if there.scheme in SOCKS and find_spec("socksio") is None:
        raise InputError(f"{where} needs the package socksio (pip install socksio), or no_proxy for this host")
    return proxy


class Endpoint:
    """The model called ``model`` at ``options.base_url``."""

    def __init__(self, model: str, options: OpenAIOptions, secrets: Secrets) -> None:
        import httpx2

        self.url = options.base_url + CHAT_PATH
        self.model, self._options, self._secrets = model, options, secrets
        self._dialect, self._prices = DIALECTS[options.dialect], Prices.of(options)
        host = urlsplit(options.base_url).hostname or ""
        self._target = httpx2.URL(self.url)
        self._headers = httpx2.Headers(HEADERS)
        self._headers.update(secrets.headers)  # whatever the capitals of a name
        self._proxy = proxy_for(options.base_url)
        self._ssl_context: ssl.SSLContext | None = None  # slow to create
        if host == "api.openai.com":
            self._dialect = replace(self._dialect, limit_field="max_completion_tokens")

    def line(self) -> httpx2.AsyncHTTPTransport:
        """A connection for one caller. Each has its own, as a pool searches all of its connections on every call. A
        transport, not a client: cookies and redirects are of no use here, and cost a third of a call's time."""
        import httpx2

        self._ssl_context = self._ssl_context or httpx2.create_ssl_context()
        limits = httpx2.Limits(max_connections=1, keepalive_expiry=KEPT_OPEN_SECONDS)
        return httpx2.AsyncHTTPTransport(verify=self._ssl_context, limits=limits, proxy=self._proxy)

    async def call(self, line: httpx2.AsyncHTTPTransport, request: Request, progress: Progress) -> Reply:
        """Make one call. Raises `TryAgain` for a temporary failure, `InputError` for a permanent one."""
        import httpx2

        begun, options, dialect = time.monotonic(), self._options, self._dialect
        try:
            async with asyncio.timeout(options.longest_call):
                response = await line.handle_async_request(self._http_request(request, dialect))
                try:
                    data = await self._read(response, progress, begun)
                finally:
                    await response.aclose()
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise TryAgain(f"cannot be reached ({self._redacted(error)})") from None
        except httpx2.TimeoutException:
            raise TryAgain(f"silent for {options.timeout:g} seconds", billed=True, too_much=True) from None
        except TimeoutError:
            raise TryAgain(f"not done after {options.longest_call:g} seconds", billed=True, too_much=True) from None
        except httpx2.RequestError as error:
            raise TryAgain(f"the connection broke ({self._redacted(error)})", billed=True) from None
        except chat.Malformed as error:
            raise TryAgain(self._redacted(error), billed=True) from None
        if response.status_code in (400, 422) and (other := dialects.adapted(dialect, data)):
            self._dialect = other  # for this and all later calls
            return await self.call(line, request, progress)
        if response.status_code != 200:
            return self._handle_status(request, response, self._redacted(data))
        try:
            return self._redacted_reply(chat.reply_of(request, data, self._prices, time.monotonic() - begun))
        except chat.Malformed as error:
            raise TryAgain(self._redacted(error), billed=True) from None

    def most(self, request: Request) -> Bill:
        return self._prices.most(request)

    def so_far(self, request: Request, progress: Progress) -> Bill:
        """The bill of a call that we hang up on: at most one token per byte received, or if unknown `most`."""
        most = self._prices.most(request)
        try:
            received = progress.stream.received if progress.stream else most.tokens
        except chat.Malformed:
            return most
        return self._prices.bill(most.prompt_tokens, min(received, most.tokens))

    def _http_request(self, request: Request, dialect: Dialect) -> httpx2.Request:
        import httpx2

        options = self._options
        body = chat.body(request, self.model, dialect, options.extra_body)
        if options.stream:
            body |= {"stream": True}
            if dialect.counts_when_asked:
                body |= {"stream_options": {"include_usage": True}}
        silence, connect = options.timeout, min(CONNECT_SECONDS, options.timeout)
        return httpx2.Request(
            "POST", self._target, headers=self._headers, content=json.dumps(body).encode(),
            extensions={"timeout": {"connect": connect, "read": silence, "write": silence, "pool": None}},
        )  # fmt: skip

    async def _read(self, response: httpx2.Response, progress: Progress, begun: float) -> Any:
        """The reply as parsed JSON, streamed or not; the plain text of an error."""
        import httpx2

        kind = response.headers.get("content-type", "").lower()
        streamed = response.status_code == 200 and kind.startswith("text/event-stream")
        encoded = "content-encoding" in response.headers  # although we asked for none
        stream, pieces, size = Stream(), [], 0
        progress.stream = stream if streamed else None
        try:
            async for piece in response.aiter_bytes() if encoded else response.aiter_raw():
                size += len(piece)
                if size > LARGEST_REPLY:
                    raise chat.Malformed(f"the reply is longer than {LARGEST_REPLY} bytes")
                if not streamed:
                    pieces.append(piece)
                    continue
                if progress.first is None and DATA in piece:
                    progress.first = time.monotonic() - begun
                stream.feed(piece)
        except httpx2.RequestError:
            if not stream.ended:  # some servers hang up, or wait, after the last event
                raise
        if streamed:
            return stream.reply()
        whole = b"".join(pieces)
        if response.status_code == 200 and whole.startswith(EVENTS):
            stream.feed(whole)
            return stream.reply()
        text = whole.decode(errors="replace")
        return chat.parsed(text) if response.status_code == 200 else text

    def _handle_status(self, request: Request, response: httpx2.Response, text: str) -> Reply:
        """Handle a status other than 200: raise `TryAgain` or `InputError`, or return a content filter's refusal."""
        status, reason, options = response.status_code, _one_line(text), self._options
        if status in PASSING or status >= 500:
            wait = pacing.retry_after(response.headers.get("retry-after"))
            raise TryAgain(f"answers HTTP {status}: {reason}", retry_after=wait, too_much=status in TOO_MUCH)
        if status in (400, 403) and REFUSALS.search(text):
            return chat.refused(request)
        if status in (401, 403):
            sent = self._secrets.variables
            refused = f"refuses the key{'s' * (len(sent) > 1)} in {' and '.join(sent)}"
            what = refused if sent else f"asks for a key; put it into {options.key_from}"
            # With 401 it may quote parts of the key; with 403 the reason is often another one, such as the region.
            said = f": {reason}" if status == 403 else ""
            raise InputError(f"{self.url}: {what} (HTTP {status}){said}")
        if address := response.headers.get("location"):
            where = _one_line(self._redacted(address))
            raise InputError(f"{self.url}: redirects the call to {where} (HTTP {status}); set base_url accordingly")
        refusal = ContextFull if status == 400 and CONTEXT.search(text) else InputError
        hint = "; try stream: false" if options.stream and "stream" in text else ""
        if status in (404, 405) and not urlsplit(options.base_url).path:
            hint = "; most servers have their API at base_url http(s)://host/v1"
        raise refusal(f"{self.url}: refuses the call for model {self.model} (HTTP {status}): {reason}{hint}")

    def _redacted_reply(self, reply: Reply) -> Reply:
        """Only the key is removed: another header's value may be words, such as an application's name."""
        key = self._secrets.key
        if len(key) < SECRET_LENGTH or key not in f"{reply.thinking} {reply.answer}":
            return reply
        thinking, answer = (text.replace(key, "[key]") for text in (reply.thinking, reply.answer))
        return Reply(thinking, answer, reply.finish, reply.bill, reply.thinking_tokens, reply.seconds)

    def _redacted(self, external: object) -> str:
        """External text with all secrets removed; an exception without a message becomes the name of its type."""
        if external == "":
            return ""
        text = str(external) or type(external).__name__
        for secret in self._secrets.hidden:
            text = text.replace(secret, "[key]")
        return text


def _one_line(text: str) -> str:
    """What a server says, in one line: the message of an error in OpenAI's form, or else the text."""
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        data = json.loads(text)
        error = (data[0] if isinstance(data, list) else data)["error"]  # Gemini sends a list
        if "metadata" not in error:  # in there, OpenRouter quotes what the provider said
            text = str(error["message"])
    return " ".join(text.split())[:200] or "nothing"
