"""Rate limits, concurrency and budgets of an endpoint: their laws, on made-up times and outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distill.engines.concurrency import Concurrency
from distill.engines.options import OpenAIOptions
from distill.engines.pacing import Meter, SpendingCap, Usual
from distill.engines.prices import Bill, Prices, money

amounts = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=50)


@given(per_minute=st.integers(1, 10_000), calls=amounts)
def test_usage_never_exceeds_the_rate_per_minute(per_minute: int, calls: list[tuple[float, int, int]]) -> None:
    """Whatever the estimates, the real usage before each call keeps to the rate, from the first call on."""
    meter, now, taken = Meter(per_minute), 0.0, 0
    for idle, estimate, real in calls:
        now = max(now + idle, meter.free_at)
        assert taken <= per_minute * now / 60 + 1e-6
        meter.take(now, estimate)
        meter.settle(estimate, real)
        taken += real


def test_no_limit_means_no_wait_and_an_overestimate_is_given_back() -> None:
    free, limited = Meter(None), Meter(60)
    free.take(5.0, 1e9)
    assert free.free_at == 5.0
    limited.take(0.0, 100)
    assert limited.free_at == 100.0
    limited.settle(100, 30)
    assert limited.free_at == 30.0


def test_the_estimate_is_the_usual_call_and_at_most_what_it_may_take() -> None:
    usual = Usual()
    assert usual.estimate(1000) == 1000
    for _ in range(100):
        usual.add(300)
    assert usual.estimate(1000) == pytest.approx(300) and usual.estimate(200) == 200


def outcome(concurrency: Concurrency, too_much: bool = False, **how: Any) -> None:
    """One round: as many calls as there are places, all with this outcome."""

    async def call() -> None:
        entered = [await concurrency.enter() for _ in range(int(concurrency.limit))]
        for place in entered:
            concurrency.leave(place, too_much=too_much, **({} if too_much else {"pace": 1.0} | how))

    run(call())


def run(what: Coroutine[Any, Any, None]) -> None:
    asyncio.run(what)


def test_concurrency_starts_low_and_grows_fast_up_to_its_limit() -> None:
    concurrency = Concurrency(100)
    limits = [concurrency.limit]
    for _ in range(6):
        outcome(concurrency)
        limits.append(concurrency.limit)
    assert limits == sorted(limits) and limits[0] == 4 and limits[1] >= 6 and limits[-1] > 30
    assert Concurrency(2).limit == 2


def test_overload_halves_concurrency_once_per_round_then_it_grows_slowly() -> None:
    concurrency = Concurrency(64, first=64)
    outcome(concurrency, too_much=True)
    assert concurrency.limit == 32  # 64 calls of one round reported it
    outcome(concurrency)
    assert 32 < concurrency.limit < 34
    for _ in range(20):
        outcome(concurrency, too_much=True)
    assert concurrency.limit == 1
    outcome(concurrency)
    assert concurrency.limit == 2


def test_concurrency_does_not_grow_while_calls_are_slow_or_places_are_free() -> None:
    concurrency = Concurrency(64)
    outcome(concurrency)
    for _ in range(5):
        outcome(concurrency, pace=100.0, seconds=30.0)
    slowed = concurrency.limit
    outcome(concurrency, pace=100.0, seconds=30.0)
    assert concurrency.limit == slowed < 64
    idle = Concurrency(64)

    async def one_at_a_time() -> None:
        for _ in range(20):
            idle.leave(await idle.enter(), pace=1.0)

    run(one_at_a_time())
    assert idle.limit == 4


@given(st.lists(st.sampled_from(["well", "too much", "failed", "cancelled"]), max_size=60), st.integers(1, 9))
def test_no_call_starves_and_concurrency_never_exceeds_its_limit(ends: list[str], most: int) -> None:
    async def main() -> None:
        concurrency, going, done = Concurrency(most), 0, []

        async def call(n: int, end: str) -> None:
            nonlocal going
            entered = await concurrency.enter()
            going += 1
            assert going <= most
            for _ in range(n % 3):
                await asyncio.sleep(0)
            going -= 1
            concurrency.leave(entered, too_much=end == "too much", pace=1.0 if end == "well" else None)
            done.append(n)

        tasks = [asyncio.create_task(call(n, end)) for n, end in enumerate(ends)]
        await asyncio.sleep(0)
        for task, end in zip(tasks, ends, strict=True):
            if end == "cancelled" and not going and not task.done():
                task.cancel()  # while it waits for its place
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(done) == sum(not task.cancelled() for task in tasks)
        assert 1 <= concurrency.limit <= max(most, 1)
        await asyncio.wait_for(concurrency.enter(), 10)  # all places were given back

    run(main())


bills = st.lists(st.tuples(st.integers(0, 100), st.floats(0, 1)), max_size=40)


@given(bills, st.integers(0, 500), st.integers(0, 500))
def test_a_cap_is_never_exceeded_whatever_calls_really_cost(
    calls: list[tuple[int, float]], tokens: int, cost: int
) -> None:
    async def main() -> None:
        cap = SpendingCap(Decimal(cost), tokens, Bill(0, 0, 7, Decimal(7)))

        async def call(most: int, share: float) -> None:
            bill = Bill(0, 0, most, Decimal(most))
            if await cap.reserve(bill):
                await asyncio.sleep(0)
                real = int(most * share)
                cap.settle(bill, Bill(0, 0, real, Decimal(real)))
            else:
                assert cap.spent.tokens + most > min(tokens, cost)

        await asyncio.wait_for(asyncio.gather(*(call(*each) for each in calls)), 10)
        assert cap.spent.tokens <= max(tokens, 7) and cap.spent.cost <= max(cost, 7)

    run(main())


def test_the_sum_of_many_costs_is_exact() -> None:
    options = OpenAIOptions(base_url="http://h", price_input=0.1, price_cached_input=0.01, price_output=0.3)  # type: ignore[arg-type]
    prices = Prices.of(options)
    assert sum((prices.bill(1, 1).cost for _ in range(10**5)), Decimal(0)) == Decimal("0.04")
    assert prices.bill(10, 5, cached_tokens=4).cost * 10**6 == Decimal("2.14")
    assert prices.bill(3, 0, cached_tokens=9).cached_tokens == 3
    assert Prices.of(OpenAIOptions(base_url="http://h", price_input=2)).cached_input == 2  # type: ignore[arg-type]
    assert money(Decimal("10.000")) == "10" and money(Decimal("0.04312")) == "0.0431"


@pytest.mark.parametrize("price", [-1, "free", 1e-7, float("nan"), True])
def test_an_invalid_price_is_refused(price: Any) -> None:
    with pytest.raises(ValidationError):
        OpenAIOptions(base_url="http://h", price_input=price)
