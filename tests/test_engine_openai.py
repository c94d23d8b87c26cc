"""The openai engine against a real HTTP server on loopback that misbehaves on purpose."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_server import Handler, Server, cut, malformed, reply, serving, status, streamed

from distill import generation, truncation
from distill.engines import openai, pacing
from distill.engines.options import OpenAIOptions
from distill.engines.prices import Prices
from distill.modelspec import Model
from distill.store import Store
from distill.types import Completion, Finish, Problem, Request, Sampling
from pipeline.errors import CapReached, InputError, PipelineError, Stopped

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def request(prompt: str, max_tokens: int = 100, seed: int = 0) -> Request:
    return Request(
        f"key of {prompt}", ({"role": "user", "content": prompt},), Sampling(max_tokens=max_tokens, seed=seed)
    )


def opened(url: str, note: Callable[[str], None] = lambda text: None, **options: Any) -> openai.OpenAIEngine:
    return openai.open(Model("tiny", f"{url}#tiny"), OpenAIOptions(base_url=url, key_from="TEST_KEY", **options), note)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setattr(pacing, "FIRST_PAUSE", 0.01)


def sample(server: Server, prompts: list[str], **options: Any) -> dict[str, Completion]:
    engine = opened(server.url, **options)
    try:
        return {c.key: c for c in engine.generate(map(request, prompts))}
    finally:
        engine.close()


def test_transient_failures_are_retried_and_nothing_else_is_sent_twice(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.scripts = {
        "busy": [status(429, "slow down", Retry_After="0.05"), reply("a")],
        "broken": [status(500), status(503), reply("b")],
        "cut": [cut, reply("c")],
        "malformed": [malformed, status(200, "[]"), status(200, '{"error": {"message": "overloaded"}}'), reply("d")],
        "interrupted": [reply("half", finish="insufficient_system_resource"), reply("e")],
        "aborted": [reply("half", finish="abort"), reply("f")],
    }
    plain = [f"plain {i}" for i in range(20)]
    prompts = [*server.scripts, *plain]
    made = sample(server, prompts, concurrency=4)
    assert set(made) == {f"key of {p}" for p in prompts}
    assert [made[f"key of {p}"].text for p in server.scripts] == list("abcdef")
    tries = {"busy": 2, "broken": 3, "cut": 2, "malformed": 4, "interrupted": 2, "aborted": 2} | dict.fromkeys(plain, 1)
    assert server.asked == Counter(tries)
    assert {auth for auth, _ in server.seen} == {f"Bearer {KEY}"}
    assert KEY not in caplog.text


def test_the_body_that_is_sent_depends_on_the_request_alone(server: Server) -> None:
    prompts = [f"p{i}" for i in range(8)]
    sample(server, prompts, concurrency=1)
    sample(server, prompts[::-1], concurrency=5)
    bodies = {json.dumps(body, sort_keys=True) for _, body in server.seen}
    assert len(bodies) == len(prompts)
    assert len({body["seed"] for _, body in server.seen}) == len(prompts)
    plain = {"model", "messages", "max_tokens", "temperature", "seed"}
    assert set(server.seen[0][1]) == {*plain, "stream", "stream_options"}
    sample(server, ["plain"], stream=False)
    assert set(server.seen[-1][1]) == plain


def test_thinking_is_read_under_both_field_names_and_put_in_tags(server: Server) -> None:
    details = {"prompt_tokens": 3, "completion_tokens": 50, "completion_tokens_details": {"reasoning_tokens": 40}}
    zero = {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 0}}
    server.scripts = {
        "new": [reply("4", reasoning="two and two", usage=details)],
        "old": [reply("4", reasoning_content="two and two")],
        "inside the text": [reply("<think>\ntwo and two\n</think>\n\n4")],
        "with its tags": [reply("4", reasoning="<think>\ntwo and two\n</think>")],
        "cut off": [reply(None, finish="length", reasoning="two and", usage=zero)],
        "no thinking": [reply("4")],
        "no usage": [reply("a word or two", usage={})],
    }
    notes: list[str] = []
    made = sample(server, list(server.scripts), note=notes.append)
    for name in ("new", "old", "inside the text", "with its tags"):
        assert made[f"key of {name}"].text == "<think>\ntwo and two\n</think>\n\n4"
    new, old, off = made["key of new"], made["key of old"], made["key of cut off"]
    assert (new.thinking_tokens, new.answer_tokens, new.tokens, new.prompt_tokens) == (40, 10, 50, 3)
    assert 0 < old.thinking_tokens < old.tokens == 20
    assert (off.text, off.finish, off.thinking_tokens, off.answer_tokens) == ("<think>\ntwo and", Finish.LENGTH, 9, 0)
    assert made["key of no thinking"].thinking_tokens == 0
    assert made["key of no usage"].tokens == 4
    assert sum("estimated" in note for note in notes) == 1


@pytest.mark.parametrize("count", [0, None, -1, 2**40])
def test_a_count_that_cannot_be_right_is_estimated_and_costs_the_most(server: Server, count: int | None) -> None:
    """Such a count would not fit into a row, or a cap would be without effect."""
    server.scripts = {"p": [reply("a word or two", usage={"prompt_tokens": 3, "completion_tokens": count})]}
    made = sample(server, ["p"], price_output=Decimal(10_000))["key of p"]
    assert (made.tokens, made.prompt_tokens, made.cost) == (4, 3, 1)


@pytest.mark.parametrize(
    "left", ["", "<think>\n\n</think>\n\n", "<think>\ntwo and two\n</think>\n\n", "\n</think>\n\n"]
)
def test_thinking_that_is_split_off_and_left_in_the_answer_too_counts_once(server: Server, left: str) -> None:
    pieces = [{"reasoning_content": "two and two"}, *({"content": letter} for letter in f"{left}4")]
    server.scripts = {"whole": [reply(f"{left}4", reasoning="two and two")], "stream": [streamed(*pieces)]}
    found = sample(server, ["whole", "stream"])
    assert {c.text for c in found.values()} == {"<think>\ntwo and two\n</think>\n\n4"}


def test_thinking_that_begins_again_in_the_answer_is_kept(server: Server) -> None:
    server.scripts = {"p": [reply("<think>\nNo.\n</think>\n\n5", reasoning="two and two")]}
    text = sample(server, ["p"])["key of p"].text
    assert text == "<think>\ntwo and two\n</think>\n\n<think>\nNo.\n</think>\n\n5"


def test_thinking_among_the_parts_of_a_content_is_read(server: Server) -> None:
    """Mistral's reasoning models: the parts may be nested, and a stream's pieces are lists or text."""
    inner = [{"type": "text", "text": "2 "}, {"type": "text", "text": "+ 2"}]
    parts: Any = [{"type": "thinking", "thinking": inner}, {"type": "text", "text": "4"}]
    pieces = [{"content": [{"type": "thinking", "thinking": [part]}]} for part in inner] + [{"content": "4"}]
    server.scripts = {"whole": [reply(parts)], "stream": [streamed(*pieces)]}
    found = sample(server, ["whole", "stream"])
    assert {c.text for c in found.values()} == {"<think>\n2 + 2\n</think>\n\n4"}


def test_refusals_and_empty_responses_have_their_own_finish(server: Server) -> None:
    server.scripts = {
        "stop": [reply("x")],
        "length": [reply("x", finish="length")],
        "context full": [reply("x", finish="model_length")],
        "filtered": [reply("", finish="content_filter")],
        "refused": [reply(None, refusal="I will not")],
        "filtered before": [status(400, '{"error": {"code": "content_filter"}}')],
        "by OpenAI": [status(400, '{"error": {"message": "Invalid prompt: ...", "code": "invalid_prompt"}}')],
        "by DeepSeek": [status(400, '{"error": {"message": "Content Exists Risk", "code": "invalid_request_error"}}')],
        "by OpenRouter": [status(403, '{"error": {"code": 403, "metadata": {"flagged_input": "..."}}}')],
        "by DashScope": [status(400, '{"error": {"code": "data_inspection_failed"}}')],
        "empty": [reply("  ")],
        "null": [reply(None)],
    }
    made = sample(server, list(server.scripts))
    found = [made[f"key of {p}"].finish for p in server.scripts]
    refused, empty = Finish.REFUSED, Finish.EMPTY
    assert found == [Finish.STOP, Finish.LENGTH, Finish.LENGTH, *[refused] * 7, empty, empty]


def test_the_cap_is_never_exceeded_and_finished_responses_are_yielded(server: Server) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 50}
    server.scripts = {f"p{i}": [reply("x", usage=usage)] for i in range(100)}
    engine = opened(server.url, price_output=10_000.0, max_cost=10.0, concurrency=4)  # a call: at most 1, really 0.5
    made: list[str] = []
    with pytest.raises(CapReached, match="cap of 10 is reached") as caught:
        for completion in engine.generate(request(f"p{i}") for i in range(100)):
            made.append(completion.key)
    engine.close()
    assert caught.value.exit_code == 3
    assert engine.spent.cost == Decimal("0.5") * len(made) and 9 < engine.spent.cost <= 10
    assert sum(server.asked.values()) == len(set(made)) == len(made)


def test_lost_replies_count_in_full(server: Server) -> None:
    server.scripts = {"p": [malformed]}
    engine = opened(server.url, price_output=10_000.0, max_cost=2.5, retries=9)
    with pytest.raises(CapReached):
        list(engine.generate([request("p")]))
    engine.close()
    assert server.asked["p"] == 2 and engine.spent.cost == 2


@pytest.mark.parametrize("said", ['{"message": "too many users"}', '{"error": "too many users"}', "too many users"])
def test_an_error_in_the_middle_of_a_stream_is_told(server: Server, said: str) -> None:
    def failing(handler: Handler) -> None:
        handler.begin_events()
        handler.event('event: message\ndata: {"choices": [{"index": 0, "delta": {"content": "4"}}]}')
        handler.event(f"event: error\ndata: {said}")
        handler.event("", last=True)

    server.scripts = {"p": [failing]}
    with pytest.raises(PipelineError, match=r"the reply is an error.*too many users"):
        sample(server, ["p"], stream=True, retries=0)


def test_a_down_endpoint_is_a_one_line_error_with_its_url() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    engine = opened(url, retries=2)
    with pytest.raises(PipelineError, match=rf"^{url}/chat/completions: cannot be reached .*\(3 tries\)") as caught:
        list(engine.generate([request("p")]))
    engine.close()
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)


def test_calls_in_flight_are_yielded_before_the_failure(server: Server) -> None:
    arrived = threading.Event()

    def slow(handler: Handler) -> None:
        arrived.wait(10)
        time.sleep(0.5)  # until the engine has read the failure; otherwise its caller would take one more request
        reply("late")(handler)

    def failing(handler: Handler) -> None:
        handler.send(404, f"no such model; your key is {KEY}")
        arrived.set()

    server.scripts = {"slow": [slow], "failing": [failing]}
    engine, made = opened(server.url, concurrency=2), []
    with pytest.raises(InputError, match="no such model") as caught:
        for completion in engine.generate([request("slow"), request("failing"), request("never")]):
            made.append(completion.text)
    engine.close()
    assert made == ["late"] and server.asked["never"] == 0
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_ends_the_run_at_once_and_is_not_shown(server: Server, code: int) -> None:
    server.scripts = {"p": [status(code, f"bad key {KEY}")]}
    engine = opened(server.url)
    with pytest.raises(InputError, match="refuses the key in TEST_KEY") as caught:
        list(engine.generate([request("p")]))
    engine.close()
    assert server.asked["p"] == 1 and KEY not in str(caught.value)
    assert str(caught.value).endswith({401: "(HTTP 401)", 403: "(HTTP 403): bad key [key]"}[code])


REFUSED_FIELDS = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "seed": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.',
}


def test_a_field_that_a_server_refuses_is_sent_under_another_name_or_not_at_all(server: Server) -> None:
    def strict(handler: Handler) -> None:
        refused = next((said for name, said in REFUSED_FIELDS.items() if name in handler.body), None)
        (status(400, refused) if refused else reply("4"))(handler)

    server.otherwise = strict
    made = sample(server, [f"p{i}" for i in range(8)], concurrency=1, retries=0)
    assert len(made) == 8 and len(server.seen) == 10
    assert {body.get("max_completion_tokens") for _, body in server.seen[2:]} == {100}


def test_a_field_that_is_refused_whatever_its_name_is_told_once(server: Server) -> None:
    server.otherwise = status(422, "seed: extra fields not permitted")
    with pytest.raises(InputError, match="extra fields not permitted"):
        sample(server, ["p"])
    assert server.asked["p"] == 2


def test_the_message_of_an_error_is_shown_without_its_form(server: Server) -> None:
    said = "No endpoints found\nfor tiny."
    error: dict[str, dict[str, Any]] = {"error": {"message": said, "code": 404}}
    server.scripts = {"one": [status(404, json.dumps(error))], "in a list": [status(404, json.dumps([error]))]}
    for prompt in server.scripts:
        with pytest.raises(InputError, match=r"\(HTTP 404\): No endpoints found for tiny\.$"):
            sample(server, [prompt])
    error["error"] |= {"message": "Provider returned error", "metadata": {"raw": "no such voice"}}
    server.scripts["quoted"] = [status(404, json.dumps(error))]
    with pytest.raises(InputError, match="no such voice"):
        sample(server, ["quoted"])


def test_a_redirect_or_a_missing_path_is_explained(server: Server) -> None:
    server.scripts = {
        "moved": [status(308, "", Location="https://api.example.com/v2/chat/completions")],
        "no path": [status(404, "Not Found")],
    }
    with pytest.raises(InputError, match=r"redirects the call to https://api.example.com/v2/.* set base_url"):
        sample(server, ["moved"])
    engine = opened(server.url.removesuffix("/v1"))
    with pytest.raises(InputError, match=r"Not Found; most servers have their API at base_url http\(s\)://host/v1"):
        list(engine.generate([request("no path")]))
    engine.close()


@pytest.mark.parametrize("named", [str, "http://{}".format], ids=["host and port", "address"])
def test_a_proxy_is_used(server: Server, monkeypatch: pytest.MonkeyPatch, named: Callable[[str], str]) -> None:
    monkeypatch.setenv("http_proxy", named(server.url.removeprefix("http://").removesuffix("/v1")))
    monkeypatch.delenv("no_proxy", raising=False)
    engine = opened("http://model.invalid/v1")
    (made,) = engine.generate([request("p")])
    engine.close()
    assert made.text == "4"


def test_a_call_that_a_proxy_refuses_costs_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's server knows no CONNECT."""
    monkeypatch.setenv("https_proxy", server.url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    engine = opened("https://model.invalid/v1", price_output=Decimal(1), retries=1)
    with pytest.raises(PipelineError, match=r"cannot be reached \(501 Unsupported method"):
        list(engine.generate([request("p")]))
    engine.close()
    assert engine.spent.cost == 0


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("http_proxy", "http://me:hunter2@host:port", "http_proxy is no address of the form http://host:port"),
        ("http_proxy", "ftp://hunter2", "http_proxy is no address"),
        ("all_proxy", "socks5://me:hunter2@host:1080", "all_proxy needs the package socksio"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(InputError, match=said) as caught:
        opened("http://model.invalid/v1")
    assert "hunter2" not in str(caught.value)


def test_a_long_retry_after_stops_the_run_resumably(server: Server) -> None:
    server.scripts = {"p": [status(429, "quota", Retry_After="86400")]}
    notes: list[str] = []
    engine = opened(server.url, notes.append)
    with pytest.raises(Stopped, match="asks to wait 86400 seconds"):
        list(engine.generate([request("p")]))
    engine.close()
    assert not notes  # no call was repeated


def test_a_dripping_server_is_given_up_after_the_timeout(server: Server) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not done.wait(0.02):
            handler.wfile.write(b" ")

    done = threading.Event()
    server.scripts = {"p": [drip, reply("x")]}
    made = sample(server, ["p"], longest_call=0.4)
    done.set()
    assert made["key of p"].text == "x"


def test_a_missing_or_malformed_key_is_reported_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(InputError, match="environment variable TEST_KEY"):
        opened("https://api.example.com/v1")
    opened("http://localhost:8000/v1").close()  # the local machine needs none
    monkeypatch.setenv("TEST_KEY", "secret\nsecond line")
    with pytest.raises(InputError, match="characters") as caught:
        opened("https://api.example.com/v1")
    assert "secret" not in str(caught.value)


def test_a_gateways_headers_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_TOKEN", "token-0123456789")
    monkeypatch.setenv("APP_NAME", "Mathematics")
    sent: list[tuple[str, str, str, list[str]]] = []

    def gateway(handler: Handler) -> None:
        there = handler.headers
        sent.append((there["X-Gateway-Token"], there["X-Title"], there["Authorization"], there.get_all("User-Agent")))
        reply("Mathematics is fun")(handler)

    server.scripts = {"p": [gateway], "q": [status(403, f"token-0123456789 and {KEY} may not")]}
    headers = {"X-Gateway-Token": "GATEWAY_TOKEN", "X-Title": "APP_NAME", "user-agent": "APP_NAME"}
    assert sample(server, ["p"], headers_from=headers)["key of p"].text == "Mathematics is fun"
    assert sent == [("token-0123456789", "Mathematics", f"Bearer {KEY}", ["Mathematics"])]  # in place of ours
    refused = r"keys in TEST_KEY and GATEWAY_TOKEN and APP_NAME \(HTTP 403\): \[key\] and \[key\] may not$"
    with pytest.raises(InputError, match=refused):
        sample(server, ["q"], headers_from=headers)


def test_a_header_may_take_the_place_of_the_keys(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASIC", "Basic bWU6c2VjcmV0")
    server.scripts = {"p": [reply("it is bWU6c2VjcmV0")], "q": [status(403, "not with bWU6c2VjcmV0")]}
    headers = {"authorization": "BASIC"}
    assert sample(server, ["p"], headers_from=headers)["key of p"].text == "it is [key]"
    assert {authorization for authorization, _ in server.seen} == {"Basic bWU6c2VjcmV0"}
    with pytest.raises(InputError, match=r"refuses the key in BASIC \(HTTP 403\): not with \[key\]$"):
        sample(server, ["q"], headers_from=headers)


def test_a_missing_or_malformed_header_is_reported_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    token = {"api-key": "GATEWAY_TOKEN"}
    with pytest.raises(InputError, match="GATEWAY_TOKEN is to hold the value of the header api-key, and is not set"):
        opened("https://api.example.com/v1", headers_from=token)
    monkeypatch.setenv("GATEWAY_TOKEN", "secret\r\nHost: elsewhere")
    with pytest.raises(InputError, match="GATEWAY_TOKEN: holds characters") as caught:
        opened("https://api.example.com/v1", headers_from=token)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("GATEWAY_TOKEN", "secret")
    opened("https://api.example.com/v1", headers_from=token).close()  # and no other key is asked for


def test_a_trailing_slash_in_base_url_makes_no_difference() -> None:
    assert OpenAIOptions(base_url="http://h/v1/") == OpenAIOptions(base_url="http://h/v1")


def test_the_caller_may_stop_at_any_time(server: Server) -> None:
    engine = opened(server.url, concurrency=2)
    stream = engine.generate(request(f"p{i}") for i in range(10_000))
    next(stream)
    stream.close()
    engine.close()
    assert sum(server.asked.values()) < 10_000


def test_retry_after_and_pauses_are_functions_of_their_arguments() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert pacing.retry_after("1.5") == 1.5
    assert pacing.retry_after("Thu, 01 Jan 2026 12:00:30 GMT", noon) == 30
    assert pacing.retry_after("soon") is None and pacing.retry_after(None) is None
    assert pacing.pause("k", 3, None) == pacing.pause("k", 3, None)
    assert pacing.pause("k", 100, None) <= pacing.LONGEST_PAUSE
    assert pacing.pause("k", 0, 7.0) == 7.0
    assert pacing.pause("k", 3, 0.0) == pacing.pause("k", 3, 1e-9) == pacing.pause("k", 3, None) > 0


def test_the_prompt_bound_covers_any_tokenizer() -> None:
    assert Prices(input=Decimal(1_000_000)).most(request("ü" * 10)).cost >= 20


def test_traces_with_counts_and_cost_reach_the_store(server: Server, tmp_path: Any) -> None:
    server.scripts = {"two": [reply("4", reasoning="2 + 2", usage={"prompt_tokens": 7, "completion_tokens": 30})]}
    problem = Problem("p/1", "two", "4", "exact", "test")
    store, shown = Store(tmp_path), []
    samples = generation.wanted([("problem", problem)], f"{server.url}#tiny", Sampling(), 2)
    context: Any = SimpleNamespace(
        stopping=lambda: False, progress=lambda done, total, **figures: shown.append(figures)
    )
    truncation.make_whole(store, samples, lambda: opened(server.url, price_output=1e6), context)
    rows = store.rows("SELECT * EXCLUDE (created) FROM traces")
    assert [(r["prompt_tokens"], r["thinking_tokens"] + r["answer_tokens"], r["thinking"]) for r in rows] == [
        (7, 30, "2 + 2")
    ] * 2
    assert shown[-1]["cost"] == 60.0
    assert not any(KEY in str(value) for row in rows for value in row.values())
    assert os.environ["TEST_KEY"] == KEY and not any(
        KEY.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
    )


def test_a_cap_keeps_what_was_paid_for(server: Server, tmp_path: Any) -> None:
    problems = [(f"k{i}", Problem(f"p/{i}", f"p{i}", "4", "exact", "test")) for i in range(20)]
    samples = generation.wanted(problems, "m", Sampling(max_tokens=100), 1)
    context: Any = SimpleNamespace(stopping=lambda: False, progress=lambda *args, **figures: None)
    store = Store(tmp_path)
    with pytest.raises(CapReached):
        truncation.make_whole(store, samples, lambda: opened(server.url, price_output=1e4, max_cost=2.0), context)
    first = store.present("traces", [w.key for w in samples])
    assert len(first) == sum(server.asked.values()) > 0
    truncation.make_whole(store, samples, lambda: opened(server.url), context)
    assert len(store.present("traces", [w.key for w in samples])) == 20 == sum(server.asked.values())


def test_a_prompt_that_is_too_long_for_the_endpoint_is_named(server: Server, tmp_path: Path) -> None:
    server.scripts = {"long": [status(400, "This model's maximum context length is 8 tokens.")]}
    problems = [(name, Problem(f"p/{name}", name, "4", "exact", "test")) for name in ("short", "long")]
    context: Any = SimpleNamespace(stopping=lambda: False, progress=lambda *args, **figures: None)
    samples = generation.wanted(problems, "m", Sampling(max_tokens=100), 1)
    with pytest.raises(InputError, match=r"^problem p/long: .*maximum context length"):
        truncation.make_whole(Store(tmp_path), samples, lambda: opened(server.url), context)
