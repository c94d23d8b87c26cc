"""Apply thinking budgets to samples that already exist, so that only the cut ones are continued.

If a sample's thinking is at most ``most`` tokens long, a run with that budget would have drawn the same sample, and it
is reused at no cost. A longer one is cut at about ``most`` tokens, at the end of a word. Its thinking is closed there,
and the model samples only an answer (s1, arXiv:2501.19393). The request carries the budget too, so that a local engine
closes thinking that the model opens again. Such a continuation is a trace like any other: it is stored under a key of
its content and never sampled twice. With a budget of 0 every sample that thinks is continued, which shows how the model
does without thinking.

A model may think on behind the closing and close its thinking a second time, so that the answer comes after more
thinking than the budget allows. Such a sample came to no answer within the budget (`went_on`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

from distill import keys
from distill.generation import Wanted
from distill.store import Store
from distill.store.records import Row
from distill.thinking import CLOSE, OPEN
from distill.types import ThinkingBudget

THOUGHT = (
    f"SELECT trace_key, thinking, thinking_tokens, ends_with(rtrim(prompt, E' \\n\\t'), '{OPEN}') AS opened "
    "FROM traces SEMI JOIN wanted USING (trace_key)"
)


def under(
    store: Store, wishes: Sequence[Wanted], budgets: Sequence[int], model: str, closing: str
) -> dict[int, list[Wanted]]:
    """For each budget, the samples that replace ``wishes``: the same sample, or the continuation of its cut thinking.

    All of ``wishes`` must be in the store.
    """
    rows = {row["trace_key"]: row for row in store.among("trace_key", [wish.key for wish in wishes], THOUGHT)}
    return {
        most: [within(wish, rows[wish.key], ThinkingBudget(most, closing=closing), model) for wish in wishes]
        for most in budgets
    }


def within(wish: Wanted, thought: Row, budget: ThinkingBudget, model: str) -> Wanted:
    """The same wish if its thinking fits the budget, otherwise one that continues from the cut."""
    most, tokens = budget.most or 0, thought["thinking_tokens"]
    if tokens <= most:
        return wish
    begun = ("" if thought["opened"] else f"{OPEN}\n") + cut(thought["thinking"], most / tokens) + budget.closing
    asked = replace(wish.asked, prefix=begun, budget=budget)
    beyond = keys.asked_key(wish.problem, asked)
    key = keys.trace_key(wish.problem, model, wish.sampling, wish.sample_index, beyond)
    return replace(wish, key=key, asked=asked)


def cut(thinking: str, share: float) -> str:
    """About this share of a text, cut at a word boundary."""
    begun = thinking[: int(len(thinking) * share)]
    if thinking[len(begun) : len(begun) + 1].isspace():
        return begun.rstrip()
    return begun[: max(begun.rfind(" "), begun.rfind("\n"), 0)].rstrip()


def went_on(store: Store, trace_keys: Sequence[str], closing: str) -> set[str]:
    """The keys of those continuations that thought on behind the ``closing`` and closed their thinking again."""
    sql = "SELECT trace_key, thinking FROM traces SEMI JOIN wanted USING (trace_key)"
    rows = store.among("trace_key", trace_keys, sql)
    return {row["trace_key"] for row in rows if thought_on(row["thinking"], closing)}


def thought_on(thinking: str, closing: str) -> bool:
    """Whether there is thinking behind the first closing tag. If a model only opens its thinking again, a local engine
    closes it at once."""
    ours = [piece.strip() for piece in (OPEN, *closing.split(CLOSE)) if piece.strip()]
    behind = [reduce(lambda text, piece: text.replace(piece, ""), ours, part) for part in thinking.split(CLOSE)[1:]]
    return any(map(str.strip, behind))


def made_anew(standing: Mapping[int, Sequence[Wanted]], wishes: Sequence[Wanted]) -> list[Wanted]:
    """The samples in ``standing`` that are not among ``wishes``, and so still have to be made."""
    own = {wish.key for wish in wishes}
    return [wish for some in standing.values() for wish in some if wish.key not in own]
