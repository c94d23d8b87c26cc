"""Requests that arrive while others are answered: the feed alone, and each engine reading from one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from chat_server import Handler, Server, reply, serving, status
from tiny import chat_tokenizer, tiny

from distill.engines import openai
from distill.engines.base import Engine, never, wanted_now
from distill.engines.feed import Feed
from distill.engines.options import OpenAIOptions
from distill.engines.transformers import TransformersEngine
from distill.modelspec import Model
from distill.types import Request, Sampling
from pipeline.errors import InputError

PATIENCE = 60.0
"""Seconds to wait for what must happen; a passing test never waits that long."""


def request(name: str) -> Request:
    return Request(name, ({"role": "user", "content": name},), Sampling(max_tokens=4))


def test_a_feed_yields_by_rank_then_none_while_requests_are_open_then_ends() -> None:
    feed = Feed(never)
    for rank, name in [((1, 0), "b"), ((0, 1), "a1"), ((0, 0), "a0")]:
        feed.put(rank, request(name))
    assert wanted_now(iter(feed), -3) == []  # vLLM holds pieces of responses beside requests
    assert [one.key for one in wanted_now(iter(feed), 2)] == ["a0", "a1"]
    assert [one.key for one in wanted_now(iter(feed), 5)] == ["b"]
    assert next(feed) is None  # three are not answered yet
    feed.put((0, 2), request("a2"))
    feed.end()
    assert [one.key for one in wanted_now(iter(feed), 5)] == ["a2"]
    assert list(feed) == []


def test_a_feed_waits_while_no_request_is_open() -> None:
    feed = Feed(never)
    feed.put((0,), request("first"))
    assert next(feed) == request("first")
    feed.answered()
    threading.Thread(target=feed.put, args=((1,), request("second"))).start()
    assert next(feed) == request("second")
    feed.answered()
    threading.Thread(target=feed.end).start()
    assert list(feed) == []


def test_a_feed_ends_when_the_run_is_stopped() -> None:
    stopped = iter([False, True])
    feed = Feed(lambda: next(stopped))
    threading.Thread(target=feed.notify).start()
    assert list(feed) == []


@pytest.fixture(params=["one process", "two workers"])
def embedded(request: pytest.FixtureRequest) -> Iterator[TransformersEngine]:
    workers = 2 if request.param == "two workers" else 1
    engine = TransformersEngine(tiny(), chat_tokenizer(), model_identity="tiny", slots=16, workers=workers)
    yield engine
    engine.close()


def answers(engine: Engine, chains: int, length: int, later: Callable[[Callable[[], None]], None]) -> list[str]:
    """Sample chains of requests, each put by ``later`` when the one before is answered; returns the answered keys."""
    feed, made, left = Feed(never), [], threading.Semaphore(0)
    for chain in range(chains):
        feed.put((chain, 0), request(f"{chain:c>3} a"))

    def follow(key: str) -> None:
        number, done = int(key[:3].lstrip("c") or 0), key.count("a")
        if done < length:
            feed.put((number, done), request(f"{key}a"))
        left.release()

    def end() -> None:
        for _ in range(chains * length):
            assert left.acquire(timeout=PATIENCE)
        feed.end()

    ending = threading.Thread(target=end)
    ending.start()
    for completion in engine.generate(feed):
        made.append(completion.key)
        later(lambda key=completion.key: follow(key))
        feed.answered()
    ending.join()
    return made


def at_once(do: Callable[[], None]) -> None:
    do()


def elsewhere(do: Callable[[], None]) -> None:
    threading.Thread(target=do).start()


@pytest.mark.parametrize("later", [at_once, elsewhere])
def test_the_embedded_engine_takes_requests_that_arrive_while_it_samples(
    embedded: TransformersEngine, later: Callable[[Callable[[], None]], None]
) -> None:
    made = answers(embedded, chains=20, length=4, later=later)
    assert sorted(made) == sorted(f"{chain:c>3} {'a' * n}" for chain in range(20) for n in range(1, 5))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def opened(server: Server, concurrency: int) -> openai.OpenAIEngine:
    options = OpenAIOptions(base_url=server.url, key_from="TEST_KEY", concurrency=concurrency, retries=0)
    return openai.open(Model("tiny", "tiny"), options, lambda text: None)


@pytest.mark.parametrize("later", [at_once, elsewhere])
def test_the_api_engine_takes_requests_that_arrive_while_it_samples(
    server: Server, later: Callable[[Callable[[], None]], None]
) -> None:
    engine = opened(server, concurrency=4)
    made = answers(engine, chains=10, length=4, later=later)
    engine.close()
    assert sorted(made) == sorted(f"{chain:c>3} {'a' * n}" for chain in range(10) for n in range(1, 5))
    assert server.asked == dict.fromkeys(made, 1)


def test_the_api_engine_takes_a_request_while_every_other_call_is_in_flight(server: Server) -> None:
    """No round has to end: a request that arrives while one caller is busy and one is idle begins at once."""
    reached, go = threading.Event(), threading.Event()

    def slow(handler: Handler) -> None:
        reached.set()
        assert go.wait(PATIENCE)
        reply()(handler)

    def second(handler: Handler) -> None:
        reply()(handler)
        go.set()  # the first call ends only when the second has been made

    server.scripts = {"slow": [slow], "second": [second]}
    feed = Feed(never)
    feed.put((0,), request("slow"))

    def more() -> None:
        assert reached.wait(PATIENCE)
        feed.put((1,), request("second"))
        feed.end()

    threading.Thread(target=more).start()
    engine = opened(server, concurrency=2)
    made = [completion.key for completion in engine.generate(feed)]
    engine.close()
    assert sorted(made) == ["second", "slow"]


def test_a_failing_api_engine_does_not_wait_for_more_requests(server: Server) -> None:
    server.otherwise = status(401)
    feed = Feed(never)
    feed.put((0,), request("refused"))
    engine = opened(server, concurrency=8)
    with pytest.raises(InputError, match="401"):
        list(engine.generate(feed))
    engine.close()
