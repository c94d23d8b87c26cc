"""What is still to be asked of an endpoint will take: by what earlier calls took, and at the most.

For `distill plan` and the forecast of a running stage; a forecast is never a promise, an upper bound is. What is
asked are samples, or a judge's questions. Left out: engines that cost no money.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from distill import spending
from distill.engines import early_exit
from distill.engines.dialects import DIALECTS
from distill.engines.options import OpenAIOptions
from distill.engines.prices import Bill, Prices
from distill.store import Store
from distill.types import Request
from distill.verifiers import Verifier
from distill.verifiers.compose import Composed
from distill.verifiers.llm_judge import Judge


def bound(options: OpenAIOptions, requests: Sequence[Request], tokens: int) -> dict[str, Any]:
    """The most that requests can take whose responses have so many ``tokens`` at most."""
    dialect = DIALECTS[options.dialect]
    prompts = sum(early_exit.most_prompt_tokens(request, dialect) for request in requests)
    cost = Prices.of(options).bill(prompts, tokens).cost
    return {"max_cost": float(cost)} if cost else {}


def bound_of_responses(options: OpenAIOptions, tokens: int) -> dict[str, Any]:
    """The most that responses can take, where the prompts are not known yet."""
    prices = Prices.of(options)
    cost = prices.bill(0, tokens).cost
    name = "max_output_cost" if prices.input or prices.cached_input else "max_cost"
    return {name: float(cost)} if cost else {}


def expected(options: OpenAIOptions, store: Store, account: str, model: str, calls: int) -> dict[str, Any]:
    """``tokens`` (of responses), ``cost`` and ``seconds`` for so many calls, by what such calls took on average;
    nothing where none were made. At today's prices."""
    if not calls or (mean := _usual_call(store, account, model)) is None:
        return {}
    bill, seconds = mean
    waits = [seconds * calls / options.concurrency]
    if options.requests_per_minute:
        waits.append(60 * calls / options.requests_per_minute)
    if options.tokens_per_minute:
        waits.append(60 * calls * bill.total_tokens / options.tokens_per_minute)
    cost = calls * Prices.of(options).bill(bill.prompt_tokens, bill.tokens, bill.cached_tokens).cost
    found = {"tokens": calls * bill.tokens, "seconds": round(max(waits), 1)}
    return found | ({"cost": float(round(cost, 4))} if cost else {})


def of_judges(verifier: Verifier, store: Store, account: str, verdicts: int) -> dict[str, Any]:
    """What so many verdicts can take of the judges in a verifier, each asked about every answer; nothing where there
    are none, or no verdicts. The prompts are not reckoned in what they can cost at most: they are not put yet."""
    if isinstance(verifier, Composed):
        return added(*(of_judges(part, store, account, verdicts) for part in verifier.parts))
    each = getattr(verifier, "most", {})
    if not verdicts or not each:
        return {}
    found: dict[str, Any] = {name: n * verdicts for name, n in each.items()}
    if isinstance(verifier, Judge) and isinstance(options := verifier.settings.engine, OpenAIOptions):
        account = f"{account}/{verifier.account}"
        found |= bound_of_responses(options, found["max_tokens"])
        found |= expected(options, store, account, verifier.model.identity, found["calls"])
        found |= left_of_cap(options, store, account)
    return found


def added(*figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of several that are asked one after the other. What one of them lacks that is asked too (the others
    have been asked before, it has not) is told of none: a sum of some of them would pass for that of all. Of caps the
    least is told."""
    asked = [each for each in figures if each.get("calls")]
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in asked for name in each):
        values = [each[name] for each in asked if name in each]
        if name.startswith("cap_leaves"):
            found[name] = min(values)
        elif len(values) == len(asked) or name not in ("tokens", "cost", "seconds"):
            found[name] = sum(values)
    return found


def left_of_cap(options: OpenAIOptions, store: Store, account: str) -> dict[str, Any]:
    """What the stage's caps leave, after all of its runs so far."""
    spent = spending.spent(store, account)
    found: dict[str, Any] = {}
    if options.max_cost is not None:
        found["cap_leaves"] = float(max(options.max_cost - spent.cost, Decimal(0)))
    if options.max_total_tokens is not None:
        found["cap_leaves_tokens"] = max(options.max_total_tokens - spent.total_tokens, 0)
    return found


def _usual_call(store: Store, account: str, model: str) -> tuple[Bill, float] | None:
    """What an answered call to the model took on average (tokens rounded up), and its seconds; those of this account
    where there are any, for others may ask other things."""
    if not spending.any_calls(store):
        return None
    rows = store.rows(
        "SELECT account = ? AS own, ceil(avg(prompt_tokens))::INTEGER AS prompt, "
        "ceil(avg(cached_tokens))::INTEGER AS cached, ceil(avg(tokens))::INTEGER AS tokens, "
        "avg(seconds) AS seconds FROM calls WHERE model = ? AND outcome = 'answered' "
        "GROUP BY own ORDER BY own DESC LIMIT 1",
        [account, model],
    )
    if not rows:
        return None
    row = rows[0]
    return Bill(row["prompt"], row["cached"], row["tokens"]), row["seconds"]
