"""What becomes of responses that were cut at their limit: kept, left out, or gone on with from the cut.

Going on makes a new trace whose beginning is the cut one's text, up to a larger limit. Its key is made of the
cut trace's key and the limit, so it is missing or there like every other: killed in between, the next run finds
less to do, and a limit put after the others goes on from where they ended. The cut trace stays in the store;
which one goes on from it is told by the view `continuations`.
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
from distill.thinking import OPEN, join_thinking, opened
from pipeline.stage import Context, stop_check

CUT = "finish = 'length'"
CAN_GO_ON = f"{CUT} AND (len(token_ids) = 0 OR len(token_ids) >= max_tokens)"
"""Not cut where the model's own positions end: there is no going on from there."""


def make_whole(
    store: Store,
    wishes: Sequence[Wanted],
    open_engine: Callable[[], Engine],
    context: Context,
    limits: Sequence[int] = (),
) -> list[Wanted]:
    """As `distill.generation.make_traces`; then what was cut is gone on with up to each of ``limits`` in turn.

    Returns the wishes that stand: in place of each cut one, the one that goes on from it.
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
    """The wishes, with the one that goes on up to ``limit`` in place of each that is there and was cut."""
    cut = cut_among(store, (wish.key for wish in wishes), CAN_GO_ON)
    return [longer(wish, limit) if wish.key in cut else wish for wish in wishes]


def longer(wish: Wanted, limit: int) -> Wanted:
    """The wish that goes on from one that was cut, up to ``limit``; its beginning is yet to be given (`begun`)."""
    key, sampling = keys.continued_key(wish.key, limit), replace(wish.sampling, max_tokens=limit)
    return replace(wish, key=key, sampling=sampling, continues=wish.key)


def cut_among(store: Store, trace_keys: Iterable[str], which: str = CUT) -> set[str]:
    """Which of the traces were cut at their limit."""
    return {row["trace_key"] for row in _rows(store, trace_keys, "trace_key", which)}


def foreseen(store: Store, wishes: Sequence[Wanted], limits: Sequence[int]) -> tuple[int, int, int]:
    """(traces known to be wanted, how many of them are there, tokens that the others can take at most)."""
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
    """The same, those that go on from a cut trace with its text as their beginning."""
    cut = [wish.continues for wish in missing.values() if wish.continues]
    rows = _rows(store, cut, "trace_key, prompt, thinking, answer, closed, cut", CUT) if cut else []
    texts = {row["trace_key"]: text_of(row) for row in rows}
    return {
        key: replace(wish, asked=replace(wish.asked, prefix=texts[wish.continues])) if wish.continues else wish
        for key, wish in missing.items()
    }


def text_of(row: Mapping[str, Any]) -> str:
    """What a cut response said, letter for letter; put together again where an older distill has kept just its
    parts. Half a letter at its end (a token that was to be followed by its other half) is said again."""
    text = row["cut"]
    if text is None:
        text = join_thinking(row["thinking"], row["answer"], row["closed"])
        if opened(row["prompt"]):
            text = text.removeprefix(OPEN).removeprefix("\n")
    return str(text).rstrip("\ufffd")


def _rows(store: Store, trace_keys: Iterable[str], columns: str, where: str) -> list[dict[str, Any]]:
    sql = f"SELECT {columns} FROM traces SEMI JOIN wanted USING (trace_key) WHERE {where}"
    return store.among("trace_key", trace_keys, sql)
