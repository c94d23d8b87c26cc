"""One model at several addresses, as on the nodes of a cluster: real HTTP servers that fail one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice
from threading import Condition, Event
from typing import Any

import pytest
from chat_server import Act, Handler, Server, reply, serving, status

from distill import engines
from distill.engines import openai, pacing, servers
from distill.engines.feed import Feed
from distill.engines.options import OpenAIOptions
from distill.modelspec import Model
from distill.types import Completion, Request, Sampling, ThinkingBudget
from pipeline.errors import InputError, PipelineError
from pipeline.fingerprint import FileHashes
from pipeline.stage import result_settings

PROMPTS = [f"prompt {i}" for i in range(60)]
NOWHERE = "http://127.0.0.1:9/v1"
"""The port of a service that no machine has any more."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(servers, "HEARTBEAT_SECONDS", 0.01)


@pytest.fixture
def nodes() -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        yield stack.enter_context(serving()), stack.enter_context(serving())


def asked(prompt: str, **how: Any) -> Request:
    return Request(prompt, ({"role": "user", "content": prompt},), Sampling(max_tokens=100), **how)


def options(first: str, *more: str, **others: Any) -> OpenAIOptions:
    return OpenAIOptions(base_url=first, also_at=list(more), **({"concurrency": 4, "retries": 1} | others))


def sample(chosen: OpenAIOptions, requests: list[Request], notes: list[str] | None = None) -> list[Completion]:
    notes = [] if notes is None else notes
    with closing(openai.open(Model("tiny", "tiny"), chosen, notes.append)) as engine:
        return sorted(engine.generate(iter(requests)), key=lambda made: [r.key for r in requests].index(made.key))


def prompts_at(server: Server) -> list[str]:
    return [body["messages"][0]["content"] for _, body in server.seen]


def test_calls_are_spread_over_all_addresses_and_each_is_made_once(nodes: tuple[Server, Server]) -> None:
    changed = Condition()

    def waits_for(other: Server) -> Act:
        def act(handler: Handler) -> None:
            mine = handler.server.seen
            with changed:
                changed.notify_all()
                assert changed.wait_for(
                    lambda: len(mine) <= len(other.seen) + 10 or len(mine) + len(other.seen) == len(PROMPTS), 60
                )
            reply()(handler)

        return act

    nodes[0].otherwise, nodes[1].otherwise = waits_for(nodes[1]), waits_for(nodes[0])
    made = sample(options(nodes[0].url, nodes[1].url), [asked(p) for p in PROMPTS])
    assert [c.key for c in made] == PROMPTS
    one, other = map(prompts_at, nodes)
    assert sorted(one + other) == sorted(PROMPTS) and min(len(one), len(other)) > 10


def test_the_others_take_the_calls_of_an_address_that_is_down(nodes: tuple[Server, Server]) -> None:
    notes: list[str] = []
    made = sample(options(NOWHERE, nodes[0].url), [asked(p) for p in PROMPTS], notes)
    assert [c.key for c in made] == PROMPTS and sorted(prompts_at(nodes[0])) == sorted(PROMPTS)
    assert sum("the other addresses take its calls" in note for note in notes) == 1


def test_an_address_that_dies_during_the_last_calls_gives_them_back(nodes: tuple[Server, Server]) -> None:
    """The callers of the other one have nothing left to do by then."""
    nodes[0].otherwise = status(500)
    two = [asked("a"), asked("b")]
    assert [c.key for c in sample(options(nodes[0].url, nodes[1].url, concurrency=1, retries=3), two)] == ["a", "b"]
    assert len(nodes[0].seen) == 4 and sorted(prompts_at(nodes[1])) == ["a", "b"]


def test_an_address_that_answers_again_gets_calls_again(
    nodes: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "REST_SECONDS", 0.0)
    (first, other), recovered = nodes, Event()

    def recovers(handler: Handler) -> None:
        if len(first.seen) <= 3:
            return status(503)(handler)
        recovered.set()
        return reply()(handler)

    def waits(handler: Handler) -> None:
        assert recovered.wait(60)
        reply()(handler)

    first.otherwise, other.otherwise = recovers, waits
    made = sample(options(first.url, other.url, concurrency=1, retries=0), [asked(p) for p in PROMPTS])
    assert [c.key for c in made] == PROMPTS
    assert len(other.seen) + len(first.seen) == len(PROMPTS) + 3


def test_an_address_that_asks_for_a_long_pause_gives_its_calls_to_the_others(nodes: tuple[Server, Server]) -> None:
    nodes[0].otherwise = status(503, "loading", Retry_After="500")
    notes: list[str] = []
    made = sample(options(nodes[0].url, nodes[1].url), [asked(p) for p in PROMPTS], notes)
    assert [c.key for c in made] == PROMPTS and len(nodes[0].seen) <= 4
    assert sum("asks to wait 500 seconds; the other addresses take its calls" in note for note in notes) == 1


def test_an_address_that_asks_for_pauses_in_a_row_is_not_down(
    nodes: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets calls again after the last pause, not after the minute of one that fails."""
    monkeypatch.setattr(openai, "HAND_OVER_SECONDS", 0.01)
    (first, other), recovered = nodes, Event()

    def recovers(handler: Handler) -> None:
        if len(first.seen) <= 3:
            return status(503, Retry_After="0.05")(handler)
        recovered.set()
        return reply()(handler)

    def waits(handler: Handler) -> None:
        assert recovered.wait(30)
        reply()(handler)

    first.otherwise, other.otherwise = recovers, waits
    made = sample(options(first.url, other.url, concurrency=1), [asked(p) for p in PROMPTS])
    assert [c.key for c in made] == PROMPTS


def test_a_pause_that_one_address_asks_for_is_no_pause_of_the_others(
    nodes: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "HAND_OVER_SECONDS", 1000.0)
    nodes[0].otherwise = status(503, "busy", Retry_After="500")
    chosen, deadline = options(nodes[0].url, nodes[1].url, concurrency=1), time.monotonic() + 60
    with closing(openai.open(Model("tiny", "tiny"), chosen, lambda text: None)) as engine:
        answers = engine.generate(iter([asked(p) for p in PROMPTS]), lambda: time.monotonic() > deadline)
        assert len(list(islice(answers, len(PROMPTS) - 1))) == len(PROMPTS) - 1
    assert len(nodes[0].seen) == 1


def test_a_run_ends_when_every_address_is_down(nodes: tuple[Server, Server]) -> None:
    for node in nodes:
        node.otherwise = status(500)
    with pytest.raises(PipelineError, match=r"answers HTTP 500.*\(2 tries\)"):
        sample(options(nodes[0].url, nodes[1].url), [asked(p) for p in PROMPTS])


def test_a_request_that_fails_at_every_address_ends_the_run_although_others_are_answered(
    nodes: tuple[Server, Server],
) -> None:
    """Otherwise it would go to and fro, and each lost call may be billed."""
    nothing = status(200, "[]")
    for node in nodes:
        node.scripts["prompt 7"] = [nothing]
    with pytest.raises(PipelineError, match=r"the reply is not a JSON object \(2 tries\)"):
        sample(options(nodes[0].url, nodes[1].url), [asked(f"prompt {i}") for i in range(3000)])
    calls = [prompts_at(node).count("prompt 7") for node in nodes]
    assert calls == [2, 2]


def test_a_mistake_at_one_address_ends_the_run_and_names_it(nodes: tuple[Server, Server]) -> None:
    nodes[1].otherwise = status(404, "no such model")
    with pytest.raises(InputError, match=f"{nodes[1].url}/chat/completions: refuses the call for model tiny"):
        sample(options(nodes[0].url, nodes[1].url), [asked(p) for p in PROMPTS])


def test_what_one_address_was_paid_for_is_not_asked_of_the_next(nodes: tuple[Server, Server]) -> None:
    """A thinking budget takes two calls; the first server dies between them."""

    def dies(handler: Handler) -> None:
        (reply("<think>\nso long", finish="length") if len(nodes[0].seen) == 1 else status(500))(handler)

    nodes[0].otherwise = dies
    nodes[1].otherwise = reply("The answer is 4")
    budget = ThinkingBudget(most=20)
    chosen = options(nodes[0].url, nodes[1].url, concurrency=1, retries=0, dialect="vllm")
    with closing(openai.open(Model("tiny", "tiny"), chosen, lambda text: None)) as engine:
        (made,) = engine.generate(iter([asked("a", budget=budget)]))
    assert made.text.startswith("<think>\nso long") and made.text.endswith("The answer is 4")
    assert len(nodes[1].seen) == 1


def test_keys_do_not_change_with_the_addresses_under_one_identity() -> None:
    """A Slurm job finds its servers on other nodes each night."""
    moved = [
        options("http://node1/v1", identity="http://old/v1/"),
        options("http://node7/v1", "http://node8/v1", identity="http://old/v1"),
        options("http://old/v1"),
        options("http://old/v1", "http://node8/v1"),
    ]
    assert len({str(result_settings(each)) for each in moved}) == 1
    assert len({engines.standing_model("tiny", each, FileHashes()).identity for each in moved}) == 1
    assert result_settings(options("http://node1/v1")) != result_settings(moved[0])


def test_an_address_is_named_once() -> None:
    with pytest.raises(ValueError, match="also_at: names an address twice, or that of base_url"):
        options("http://node1/v1", "http://node1/v1/")


def test_a_feed_that_grows_with_the_answers_is_shared_out_too(nodes: tuple[Server, Server]) -> None:
    """As in adaptive sampling: each answer may ask for the next, while one of the addresses is down."""
    feed = Feed(lambda: False)
    for n in range(3):
        feed.put((n,), asked(f"{n}"))
    chosen, made = options(NOWHERE, nodes[0].url, nodes[1].url, concurrency=2, retries=0), []
    with closing(openai.open(Model("tiny", "tiny"), chosen, lambda text: None)) as engine:
        for completion in engine.generate(feed):
            made.append(completion.key)
            if len(made) <= 40:
                feed.put((len(made) + 3,), asked(f"after {completion.key}"))
            if len(made) == 43:
                feed.end()
            feed.answered()
    assert len(made) == len(set(made)) == 43
