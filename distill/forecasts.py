"""Forecast the cost of the calls that remain: an estimate from earlier calls, and an upper bound.

Used by `distill plan` and by the forecast of a running stage. An estimate is no promise; an upper bound is. The calls
are samples or a judge's questions to an endpoint. Engines that cost no money are left out.
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
    """The most that ``requests`` can cost if their responses have at most ``tokens`` tokens in total."""
    dialect = DIALECTS[options.dialect]
    prompts = sum(early_exit.most_prompt_tokens(request, dialect) for request in requests)
    cost = Prices.of(options).bill(prompts, tokens).cost
    return {"max_cost": float(cost)} if cost else {}


def bound_of_responses(options: OpenAIOptions, tokens: int) -> dict[str, Any]:
    """The most that responses of ``tokens`` tokens can cost, if the prompts are not known yet."""
    prices = Prices.of(options)
    cost = prices.bill(0, tokens).cost
    name = "max_output_cost" if prices.input or prices.cached_input else "max_cost"
    return {name: float(cost)} if cost else {}


def expected(options: OpenAIOptions, store: Store, account: str, model: str, calls: int) -> dict[str, Any]:
    """The expected response ``tokens``, ``cost`` and ``seconds`` of ``calls`` calls, at today's prices.

    The estimate uses the average of earlier calls; it is empty if there were none.
    """
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
    """The forecast for the judges in a verifier, if each is asked about every one of ``verdicts`` answers.

    Empty if the verifier has no judge or there are no verdicts. The upper bound of the cost leaves out the prompts,
    which do not exist yet.
    """
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
    """The sum of the forecasts of several judges that are asked one after the other.

    An estimate that one of them lacks, because it has never been asked, is left out altogether: a partial sum would
    pass for the whole. Of the caps the smallest is returned.
    """
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
    """What remains of the stage's caps after all of its runs so far."""
    spent = spending.spent_so_far(store, account)
    found: dict[str, Any] = {}
    if options.max_cost is not None:
        found["cap_leaves"] = float(max(options.max_cost - spent.cost, Decimal(0)))
    if options.max_total_tokens is not None:
        found["cap_leaves_tokens"] = max(options.max_total_tokens - spent.total_tokens, 0)
    return found


def _usual_call(store: Store, account: str, model: str) -> tuple[Bill, float] | None:
    """The average tokens (rounded up) and seconds of an answered call to the model.

    Calls of this account are preferred if there are any, because other accounts may ask different questions.
    """
    if not store.path.exists():
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
