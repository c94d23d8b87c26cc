"""Continue responses that were cut at their token limit.

A continuation is a new trace that begins with the cut trace's text and has a larger limit. Its key is made from the cut
trace's key and the limit, so it is missing or present like any other trace. After a kill the next run finds less to do,
and an additional limit continues from where the earlier ones ended. The cut trace stays in the store; the view
`continuations` shows which trace continues it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

from distill import keys
from distill.engines.base import Engine
from distill.generation import Wanted, missing_of, sample
from distill.store import Store
from pipeline.stage import Context, stop_check

CUT = "finish = 'length'"
CAN_GO_ON = f"{CUT} AND (len(token_ids) = 0 OR len(token_ids) >= max_tokens)"
"""Excludes traces that were cut because the model's context was full; those cannot be continued."""


def make_whole(
    store: Store,
    wishes: Sequence[Wanted],
    open_engine: Callable[[], Engine],
    context: Context,
    limits: Sequence[int] = (),
) -> list[Wanted]:
    """Sample those of ``wishes`` that the store lacks, then continue the cut ones up to each of ``limits`` in turn. The
    engine is opened only if any is missing.

    Returns the final wishes, with each cut one replaced by its continuation.
    """
    standing = list(wishes)
    with ExitStack() as stack:
        engine: Engine | None = None
        for limit in (None, *limits):
            if limit is not None:
                standing = continued(store, standing, limit)
            missing, present = missing_of(store, standing)
            if not missing:
                continue
            stop_check(context.stopping)
            engine = engine or stack.enter_context(closing(open_engine()))
            sample(store, engine, begun(store, missing), present, context)
    return standing


def continued(store: Store, wishes: Sequence[Wanted], limit: int) -> list[Wanted]:
    """The wishes, with each one whose trace exists and was cut replaced by its continuation up to ``limit``."""
    cut = cut_among(store, (wish.key for wish in wishes), CAN_GO_ON)
    return [longer(wish, limit) if wish.key in cut else wish for wish in wishes]


def longer(wish: Wanted, limit: int) -> Wanted:
    """The wish that continues a cut one, up to ``limit``. `begun` later adds the text that it starts with."""
    key, sampling = keys.continued_key(wish.key, limit), replace(wish.sampling, max_tokens=limit)
    return replace(wish, key=key, sampling=sampling, continues=wish.key)


def cut_among(store: Store, trace_keys: Iterable[str], which: str = CUT) -> set[str]:
    """The keys of those traces that were cut at their limit."""
    return {row["trace_key"] for row in _rows(store, trace_keys, "trace_key", which)}


def foreseen(store: Store, wishes: Sequence[Wanted], limits: Sequence[int]) -> tuple[int, int, int]:
    """(number of traces known to be wanted, number of them present, most tokens that the others can take)."""
    standing = {wish.key: wish for wish in wishes}
    most = {key: limits[-1] if limits else wish.sampling.max_tokens for key, wish in standing.items()}
    for limit in limits:
        before, standing = standing, {wish.key: wish for wish in continued(store, list(standing.values()), limit)}
        for key, wish in standing.items():
            if wish.continues in before:
                most[key] = limits[-1] - before[wish.continues].sampling.max_tokens
    present = store.present("traces", most)
    return len(most), len(present), sum(tokens for key, tokens in most.items() if key not in present)


def begun(store: Store, missing: Mapping[str, Wanted]) -> dict[str, Wanted]:
    """The same wishes, with the text of the cut trace as the prefix of each continuation."""
    cut = [wish.continues for wish in missing.values() if wish.continues]
    rows = _rows(store, cut, "trace_key, cut", CUT) if cut else []
    texts = {row["trace_key"]: text_of(row) for row in rows}
    return {
        key: replace(wish, asked=replace(wish.asked, prefix=texts[wish.continues])) if wish.continues else wish
        for key, wish in missing.items()
    }


def text_of(row: Mapping[str, Any]) -> str:
    """The exact text of a cut response. An incomplete character at its end (a token whose other half is missing) is
    dropped and sampled again."""
    return str(row["cut"]).rstrip("\ufffd")


def _rows(store: Store, trace_keys: Iterable[str], columns: str, where: str) -> list[dict[str, Any]]:
    sql = f"SELECT {columns} FROM traces SEMI JOIN wanted USING (trace_key) WHERE {where}"
    return store.among("trace_key", trace_keys, sql)
