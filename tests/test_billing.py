"""Costs that a response does not show: thinking that an endpoint counts apart from the answer or hides, second calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from chat_server import Handler, Server, reply, serving, streamed

from distill import forecasts
from distill.engines import openai, pacing
from distill.engines.calls import CallLog
from distill.engines.options import OpenAIOptions
from distill.modelspec import Model
from distill.spending import Spending
from distill.store import Store
from distill.types import Completion, Outcome, Problem, Request, Sampling, ThinkingBudget
from distill.verifiers import VerifierPool


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", "sk-test-0123456789abcdef")
    monkeypatch.setattr(pacing, "FIRST_PAUSE", 0.01)
    with serving() as server:
        yield server


def request(prompt: str, budget: ThinkingBudget | None = None) -> Request:
    return Request(prompt, ({"role": "user", "content": prompt},), Sampling(max_tokens=1000), budget=budget)


def options(server: Server, **more: Any) -> OpenAIOptions:
    return OpenAIOptions(
        base_url=server.url, key_from="TEST_KEY", price_input=Decimal(1), price_output=Decimal(1), **more
    )


def sample(server: Server, *requests: Request, **more: Any) -> list[Completion]:
    engine = openai.open(Model("m", "m"), options(server, **more), print)
    try:
        return list(engine.generate(requests))
    finally:
        engine.close()


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 55},  # as xAI does
        {"prompt_tokens": 10, "completion_tokens": 0},
        {"prompt_tokens": 10, "completion_tokens": 45, "total_tokens": 55},
    ],
)
@pytest.mark.parametrize("act", [reply, streamed])
def test_thinking_is_billed_wherever_the_endpoint_counts_it(server: Server, usage: dict[str, int], act: Any) -> None:
    reported = usage | {"completion_tokens_details": {"reasoning_tokens": 40 if "total_tokens" in usage else 45}}
    server.otherwise = act({"content": "4"}, usage=reported) if act is streamed else reply("4", usage=reported)
    (made,) = sample(server, request("2 + 2"))
    assert made.tokens == 45 and made.cost == Decimal("0.000055")


def test_an_abandoned_call_counts_in_full_if_thinking_is_hidden(server: Server, tmp_path: Path) -> None:
    begun = threading.Event()

    def silent(handler: Handler) -> None:
        handler.begin_events()
        handler.event(": it thinks")
        begun.set()
        threading.Event().wait(30)

    hidden = {"prompt_tokens": 10, "completion_tokens": 45, "completion_tokens_details": {"reasoning_tokens": 40}}
    server.scripts = {"quick": [streamed({"content": "4"}, usage=hidden)], "slow": [silent]}
    rows: list[Any] = []
    engine = openai.open(
        Model("m", "m"), options(server, concurrency=1), print,
        lambda: CallLog(tmp_path, {"account": "a", "model": "m"}, rows.extend),
    )  # fmt: skip
    for _ in engine.generate([request("quick"), request("slow")], begun.is_set):
        pass
    engine.close()
    assert {row["request_key"]: (row["outcome"], row["tokens"]) for row in rows} == {
        "quick": ("answered", 45), "slow": ("ended", 1000),
    }  # fmt: skip


def test_mistral_gets_random_seed_and_no_field_that_it_refuses(server: Server) -> None:
    sample(server, request("p"), dialect="mistral")
    (_, body) = server.seen[-1]
    assert "random_seed" in body and not {"seed", "stream_options"} & body.keys()


def test_the_forecast_bounds_the_cost_of_a_response_in_two_calls(server: Server) -> None:
    budget = ThinkingBudget(most=30, closing="\n</think>\n\n")
    server.scripts = {
        "p": [
            reply(None, "length", {"prompt_tokens": 60, "completion_tokens": 30}, reasoning="on and on"),
            reply("It is 4", usage={"prompt_tokens": 100, "completion_tokens": 960}),
        ]
    }
    wanted = request("p", budget)
    (made,) = sample(server, wanted, dialect="vllm")
    assert server.asked["p"] == 2
    foreseen = forecasts.bound(options(server, dialect="vllm"), [wanted], wanted.sampling.max_tokens)
    assert made.cost <= Decimal(str(foreseen["max_cost"]))


def test_votes_of_an_unfinished_verdict_are_not_paid_for_again(server: Server, tmp_path: Path) -> None:
    """The judge is asked to stop between two votes of one verdict. Its next run asks only for the missing vote."""
    second, stopped = threading.Event(), threading.Event()
    turns: list[int] = []

    def vote(handler: Handler) -> None:
        turns.append(len(turns))
        if len(turns) == 2:
            second.set()
            stopped.wait(30)
        reply("VERDICT: correct")(handler)

    server.otherwise = vote
    engine = {"kind": "openai", "base_url": server.url, "key_from": "TEST_KEY", "concurrency": 1}
    verifier = {"judge": {"model": "m", "engine": engine, "samples": 2, "sampling": {"temperature": 0.7}}}
    items = [("k", verifier, Problem("p", "6 x 7?", "42", "math", "test"), "It is 42.")]
    account = Spending(Store(tmp_path), "verify")
    with VerifierPool(workers=1, spending=account) as pool:
        assert list(pool.verify_many(items, second.is_set)) == []
    stopped.set()
    with VerifierPool(workers=1, spending=account) as pool:
        ((_, verdict),) = pool.verify_many(items)
    assert verdict.outcome is Outcome.CORRECT
    assert len(turns) == 3  # one answered, one abandoned, and that one again
