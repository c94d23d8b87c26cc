"""Streams, begun responses and thinking budgets: what is sent to each kind of server, and how its replies are read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from chat_server import Handler, Server, cut, reply, serving, status, streamed
from hypothesis import given
from hypothesis import strategies as st

from distill import engines
from distill.engines import chat, openai, pacing
from distill.engines.base import PromptTooLong
from distill.engines.options import OpenAIOptions
from distill.engines.stream import Stream
from distill.modelspec import Model
from distill.stages.generate import GenerateSettings
from distill.thinking import split_thinking
from distill.types import Completion, Finish, Request, Sampling, ThinkingBudget
from pipeline.errors import InputError

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setattr(pacing, "FIRST_PAUSE", 0.01)
    with serving() as server:
        yield server


def request(prompt: str, prefix: str = "", budget: ThinkingBudget | None = None, max_tokens: int = 100) -> Request:
    messages = ({"role": "user", "content": prompt},)
    return Request(f"key of {prompt}", messages, Sampling(max_tokens=max_tokens), prefix, budget)


def sample(server: Server, *requests: Request, note: Callable[[str], None] = print, **options: Any) -> list[Completion]:
    how = OpenAIOptions(base_url=server.url, key_from="TEST_KEY", **options)
    engine = openai.open(Model("tiny", f"{server.url}#tiny"), how, note)
    try:
        made = {c.key: c for c in engine.generate(requests)}
    finally:
        engine.close()
    return [made[r.key] for r in requests]


def last(server: Server) -> dict[str, Any]:
    return server.seen[-1][1]


def test_a_stream_gives_the_same_response_as_a_whole_reply(server: Server) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 6}}
    server.scripts = {
        "whole": [reply("it is 4", reasoning="two and two", usage=usage)],
        "pieces": [streamed({"reasoning": "two "}, {"reasoning": "and two"}, {"content": "it "}, {"content": "is 4"}, usage=usage)],
        "older": [streamed({"role": "assistant", "reasoning_content": "two and two"}, {"content": "it is 4"}, usage=usage)],
        "busy": [streamed({"reasoning": "<think>\ntwo"}, {"reasoning": " and two"}, {"content": "it is 4"}, usage=usage)],
    }  # fmt: skip
    made = sample(server, *map(request, server.scripts))
    parts = {(c.text, c.thinking_tokens, c.answer_tokens, c.prompt_tokens, c.finish) for c in made}
    assert parts == {("<think>\ntwo and two\n</think>\n\nit is 4", 6, 3, 3, Finish.STOP)}
    assert last(server)["stream"] is True and last(server)["stream_options"] == {"include_usage": True}


def test_a_long_answer_that_drips_does_not_time_out(server: Server) -> None:
    """It takes longer in total than the timeout, but each pause is shorter."""
    pause = threading.Event()
    drip = streamed(*[{"content": "x"}] * 8, pause=lambda: pause.wait(0.1))
    silent = streamed({"content": "x"}, pause=lambda: pause.wait(2.0))
    server.scripts = {"drips": [drip], "silent": [silent, reply("again")]}
    drips, again = sample(server, request("drips"), request("silent"), timeout=0.5)
    assert drips.text == "x" * 8 and again.text == "again"
    assert server.asked == {"drips": 1, "silent": 2}
    pause.set()


def broken(handler: Handler) -> None:
    handler.begin_events()
    handler.event('data: {"choices": [{"delta": {"content": "half an ans"}}]}')
    handler.event("", last=True)


def failing(handler: Handler) -> None:
    handler.begin_events()
    handler.event('data: {"error": {"message": "overloaded"}}')
    handler.event("", last=True)


def garbled(handler: Handler) -> None:
    handler.begin_events()
    handler.event('data: {"choices": [{"del')
    handler.event("", last=True)


def test_a_stream_that_breaks_off_is_retried(server: Server) -> None:
    scripts = {"ends": broken, "fails": failing, "garbled": garbled, "cut": cut, "length": None}
    server.scripts = {name: [act, streamed({"content": name})] for name, act in scripts.items() if act}
    server.scripts["length"] = [streamed({"content": "half an ans"}, finish="length")]
    made = sample(server, *map(request, scripts))
    assert [c.text for c in made] == ["ends", "fails", "garbled", "cut", "half an ans"]
    assert made[-1].finish is Finish.LENGTH and server.asked["length"] == 1


@given(st.lists(st.text(max_size=6), min_size=1, max_size=8), st.integers(1, 40))
def test_a_stream_may_be_cut_into_pieces_anywhere(texts: list[str], size: int) -> None:
    events = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    events[-1]["choices"][0]["finish_reason"] = "stop"  # type: ignore[index]
    data = "".join(f"data: {json.dumps(e, ensure_ascii=False)}\r\n\r\n" for e in events) + "data: [DONE]"
    stream, raw = Stream(), data.encode(errors="replace")
    for n in range(0, len(raw), size):
        stream.feed(raw[n : n + size])
    whole = "".join(texts).encode(errors="replace").decode()
    message, reason = chat._choice(stream.reply())
    assert (message.get("content", ""), reason) == (whole, "stop")
    assert stream.received == len(whole.encode())


def test_surrogate_pairs_are_joined_and_lone_surrogates_are_replaced(server: Server) -> None:
    server.scripts = {"p": [streamed({"content": "\ud83d"}, {"content": "\ude00 \ud800"})]}
    (made,) = sample(server, request("p"))
    assert made.text == "\U0001f600 \ufffd" and made.text.encode()


BEGUN = [
    ("vllm", {"content": "<think>\nWell,"}, {"continue_final_message": True, "add_generation_prompt": False}),
    ("sglang", {"content": "<think>\nWell,"}, {"continue_final_message": True}),
    ("mistral", {"content": "<think>\nWell,", "prefix": True}, {}),
    ("dashscope", {"content": "<think>\nWell,", "partial": True}, {}),
]


@pytest.mark.parametrize(("dialect", "message", "fields"), BEGUN)
def test_a_begun_response_is_continued(
    server: Server, dialect: str, message: dict[str, Any], fields: dict[str, Any]
) -> None:
    server.scripts = {
        "raw": [reply(" so 4\n</think>\n\nIt is 4")],
        "parsed": [reply("It is 4", reasoning=" so 4")],
    }
    for prompt in server.scripts:
        (made,) = sample(server, request(prompt, "<think>\nWell,"), dialect=dialect)
        assert made.text == "<think>\nWell, so 4\n</think>\n\nIt is 4"
        assert 0 < made.thinking_tokens < made.tokens and made.tokens > 20  # the given beginning counts, too
        assert last(server)["messages"][-1] == {"role": "assistant", **message}
        assert fields.items() <= last(server).items()


def test_servers_that_leave_special_tokens_out_are_asked_for_them(server: Server) -> None:
    """Think tags may be among them. A field that a server does not know is left to those that have it."""
    sample(server, request("p"), dialect="vllm")
    assert last(server)["skip_special_tokens"] is False
    sample(server, request("p"), dialect="vllm", extra_body={"skip_special_tokens": True})
    assert last(server)["skip_special_tokens"] is True
    sample(server, request("p"))
    assert "skip_special_tokens" not in last(server)


def test_text_after_closed_thinking_is_answer_whatever_the_server_calls_it(server: Server) -> None:
    """vLLM's parser has not seen the end of the thinking and takes all that follows for thinking."""
    server.scripts = {"p": [reply(None, reasoning=" is 4")]}
    (made,) = sample(server, request("p", "<think>\nhm\n</think>\n\nIt"), dialect="vllm")
    assert made.text == "<think>\nhm\n</think>\n\nIt is 4"
    assert split_thinking(made.text).answer == "It is 4"


def test_deepseek_gets_thinking_and_answer_in_their_own_fields(server: Server) -> None:
    server.scripts = {"p": [reply(" is 4")]}
    (made,) = sample(server, request("p", "<think>\nhm\n</think>\n\nIt"), dialect="deepseek")
    assert last(server)["messages"][-1] == {
        "role": "assistant", "content": "It", "reasoning_content": "hm", "prefix": True,
    }  # fmt: skip
    assert split_thinking(made.text).answer == "It is 4"


REFUSED: list[tuple[str, str, ThinkingBudget | None, str]] = [
    ("openai", "It", None, "dialect openai cannot continue .*vllm"),
    ("llama.cpp", "It", None, "cannot continue"),
    ("deepseek", "<think>\nhm", None, "inside the thinking"),
    ("openai", "", ThinkingBudget(most=10), "has no thinking budget.*dashscope"),
    ("vllm", "", ThinkingBudget(least=10), "at least 10 tokens"),
]


@pytest.mark.parametrize(("dialect", "prefix", "budget", "said"), REFUSED)
def test_what_a_server_cannot_do_is_refused_before_anything_is_sent(
    server: Server, dialect: str, prefix: str, budget: ThinkingBudget | None, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        sample(server, request("p", prefix, budget), dialect=dialect)
    assert "\n" not in str(caught.value) and not server.seen


def test_truncated_continue_is_refused_if_the_dialect_cannot_continue() -> None:
    def settings(dialect: str) -> GenerateSettings:
        engine = {"kind": "openai", "base_url": "http://h", "dialect": dialect}
        how = {"truncated": "continue", "continue_tokens": 1000, "engine": engine}
        return GenerateSettings.model_validate({"problems": "p", "teacher": "m", **how})

    assert settings("vllm").limits == [1000]
    with pytest.raises(ValueError, match="only with a dialect that supports it"):
        settings("openai")


@pytest.mark.parametrize(
    ("dialect", "field"),
    [("llama.cpp", {"thinking_budget_tokens": 7}), ("openrouter", {"reasoning": {"max_tokens": 7, "effort": "high"}}),
     ("dashscope", {"thinking_budget": 7, "enable_thinking": True})],
)  # fmt: skip
def test_a_servers_own_thinking_budget_is_used(server: Server, dialect: str, field: dict[str, Any]) -> None:
    extra = {"reasoning": {"effort": "high"}} if dialect == "openrouter" else {}
    sample(server, request("p", budget=ThinkingBudget(most=7)), dialect=dialect, extra_body=extra)
    assert field.items() <= last(server).items() and len(server.seen) == 1


def usage(completion: int) -> dict[str, Any]:
    return {"prompt_tokens": 10, "completion_tokens": completion}


BUDGET = ThinkingBudget(most=30, closing="\nEnough.\n</think>\n\n")


def test_thinking_over_budget_is_closed_and_the_answer_requested(server: Server) -> None:
    server.scripts = {
        "long": [reply(None, "length", usage(30), reasoning="on and on"), reply("It is 4", usage=usage(5))],
        "short": [reply("It is 4", usage=usage(25), reasoning="2 + 2")],
        "long answer": [
            reply("It is the number", "length", usage(30), reasoning="2 + 2"),
            reply(" four", "length", usage(70)),
        ],
    }
    requests = [request(prompt, budget=BUDGET) for prompt in server.scripts]
    long, short, answer = sample(server, *requests, dialect="vllm", concurrency=1)
    assert long.text == "<think>\non and on\nEnough.\n</think>\n\nIt is 4" and long.finish is Finish.STOP
    assert long.thinking_tokens >= 30 and long.answer_tokens == 5 and long.prompt_tokens == 10
    assert short.text == "<think>\n2 + 2\n</think>\n\nIt is 4"
    assert answer.text == "<think>\n2 + 2\n</think>\n\nIt is the number four" and answer.finish is Finish.LENGTH
    assert server.asked == {"long": 2, "short": 1, "long answer": 2}
    asked = [body["max_tokens"] for _, body in server.seen]
    assert asked == [30, 65, 30, 30, 70]  # both calls and the closing between them keep to the request's limit


def test_a_budget_of_zero_is_one_call_with_the_thinking_closed(server: Server) -> None:
    server.scripts = {"p": [reply("It is 4")]}
    (made,) = sample(server, request("p", budget=replace(BUDGET, most=0)), dialect="vllm")
    assert made.text == "<think>\n\nEnough.\n</think>\n\nIt is 4" and len(server.seen) == 1
    assert last(server)["max_tokens"] == 93  # the given beginning counts towards the limit


def test_extra_fields_are_sent_and_are_part_of_the_identity(server: Server) -> None:
    extra = {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}}
    sample(server, request("p"), extra_body=extra)
    assert extra.items() <= last(server).items()
    plain, more = OpenAIOptions(base_url="http://h/v1"), OpenAIOptions(base_url="http://h/v1", extra_body=extra)
    context: Any = None
    assert engines.model_of("m", plain, context).identity == "http://h/v1#m"
    other = engines.model_of("m", more, context).identity
    assert other.startswith("http://h/v1#m+extra_body=") and "high" in other
    speed = OpenAIOptions(base_url="http://h/v1", dialect="vllm", stream=False, max_total_tokens=9, tokens_per_minute=9)
    assert engines.model_of("m", speed, context).identity == "http://h/v1#m"
    with pytest.raises(InputError, match=r"extra_body: reasoning\.max_tokens"):
        sample(server, request("q"), dialect="openrouter", extra_body={"reasoning": {"max_tokens": 1}})
    for taken in ("temperature", "stream", "messages"):
        with pytest.raises(InputError, match=f"extra_body: {taken}"):
            sample(server, request("q"), extra_body={taken: 1})


def test_a_beginning_that_fills_the_context_is_a_cut_response(server: Server) -> None:
    """A refusal does not tell whether the beginning or the limit is too long, so one token is asked for."""
    refuses = status(400, '{"error": {"message": "This model\'s maximum context length is 64 tokens. However, ..."}}')
    server.scripts = {"full": [refuses], "limit too large": [refuses, reply("x", finish="length")], "prompt": [refuses]}
    (made,) = sample(server, request("full", prefix="<think>\nWell, 2"), dialect="vllm")
    assert (made.text, made.finish) == ("<think>\nWell, 2", Finish.LENGTH) and made.thinking_tokens == made.tokens > 0
    with pytest.raises(InputError, match="maximum context length is 64") as caught:
        sample(server, request("limit too large", prefix="Well,"), dialect="vllm")
    assert not isinstance(caught.value, PromptTooLong)
    with pytest.raises(PromptTooLong, match="maximum context length is 64") as too_long:
        sample(server, request("prompt"), dialect="vllm")
    assert too_long.value.key == "key of prompt"
    assert [body["max_tokens"] for _, body in server.seen] == [96, 1, 98, 1, 100, 1]


def test_the_error_of_a_server_that_cannot_stream_names_the_setting(server: Server) -> None:
    server.scripts = {"p": [status(400, "stream_options is not supported")]}
    with pytest.raises(InputError, match="stream: false"):
        sample(server, request("p"))


@pytest.mark.parametrize("kind", ["Text/Event-Stream", "application/json", "application/octet-stream"])
def test_a_stream_is_read_whatever_type_it_claims_to_be(server: Server, kind: str) -> None:
    events = [{"choices": [{"delta": {"content": "4"}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    text = (
        ": hello\r\n\r\n" + "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in events) + "data: [DONE]\r\n\r\n"
    )
    server.scripts = {"p": [status(200, text, Content_Type=kind)]}
    (made,) = sample(server, request("p"))
    assert made.text == "4"


@pytest.mark.parametrize("last", ["data: [DONE]", 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}'])
def test_a_stream_is_whole_if_the_server_hangs_up_after_its_last_event(server: Server, last: str) -> None:
    """The last chunk of the body is missing."""

    def act(handler: Handler) -> None:
        handler.begin_events()
        handler.event('data: {"choices": [{"delta": {"content": "4"}}]}')
        handler.event(last)
        handler.close_connection = True

    server.scripts = {"p": [act]}
    (made,) = sample(server, request("p"), retries=0)
    assert (made.text, made.finish) == ("4", Finish.STOP)


def test_a_key_in_a_stream_is_redacted(server: Server) -> None:
    server.scripts = {"p": [streamed({"reasoning": f"the key is {KEY[:9]}"}, {"reasoning": KEY[9:]}, {"content": KEY})]}
    (made,) = sample(server, request("p"))
    assert KEY not in made.text and made.text.count("[key]") == 2
