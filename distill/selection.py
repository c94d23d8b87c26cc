"""Select traces by rules: for every trace, the reason why it is left out, or None.

The rules are applied in order, and the first that applies is the reason. First come the properties of the trace itself
(its outcome, length, language, the pass rate of its problem), then its place among the traces of its problem, then
quotas, which are filled in the order of the problems. The settings are those of the select stage.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill.evaluation import difficulty
from distill.store import Store
from distill.store.records import Row
from distill.store.store import list_wanted
from distill.verifiers.language import LEAST_WORDS, SCRIPTS, share

if TYPE_CHECKING:
    from distill.stages.select import SelectSettings

BATCH = 1000
SHINGLE = 3


@dataclass(frozen=True, slots=True)
class Read:
    """What was read from the texts, by the index of the trace: those in another language, and sketches to compare."""

    foreign: frozenset[int]
    sketches: dict[int, Any]
    """One row of bytes per trace (`distill.curation.minhash`)."""


def reasons(store: Store, rows: Sequence[Row], settings: SelectSettings) -> list[str | None]:
    """Why each trace is rejected, or None if it is kept."""
    rates = difficulty.pass_rates(rows)
    found = [_unfit(row, rates[row["problem_key"]], settings) for row in rows]
    read = _read(store, rows, [at for at, reason in enumerate(found) if reason is None], settings)
    for at in read.foreign:
        found[at] = f"not in {settings.language}"
    _, bins = difficulty.bins_of(rows)
    quotas = _Quotas(settings)
    for places in _by_prompt(rows, found, settings):
        kept: list[int] = []
        for at in places:
            reason = _repeated(at, kept, rows, read, settings) or quotas.full(rows[at]["source"], bins[at])
            found[at] = reason
            if reason is None:
                kept.append(at)
    return found


def _unfit(row: Row, rate: float | None, settings: SelectSettings) -> str | None:
    """Why a trace is rejected by itself, without reading its text."""
    if settings.truncated == "drop" and row["finish"] == "length":
        return "truncated"
    if settings.keep == "correct" and row["outcome"] != "correct":
        return str(row["outcome"])
    if settings.max_tokens is not None and row["tokens"] > settings.max_tokens:
        return f"longer than {settings.max_tokens} tokens"
    if settings.min_tokens is not None and row["tokens"] < settings.min_tokens:
        return f"shorter than {settings.min_tokens} tokens"
    return _wrong_rate(rate, settings)


def _wrong_rate(rate: float | None, settings: SelectSettings) -> str | None:
    window = settings.pass_rate
    if window is None:
        return None
    if rate is None:
        return "pass rate unknown"
    if rate < window.least:
        return f"pass rate below {window.least:g}"
    return f"pass rate above {window.most:g}" if rate > window.most else None


# -- rules that read the text ------------------------------------------------------------------


def _read(store: Store, rows: Sequence[Row], places: Sequence[int], settings: SelectSettings) -> Read:
    """Read the texts in batches, and only if a rule needs them."""
    foreign: set[int] = set()
    sketches: dict[int, Any] = {}
    if settings.language is None and settings.max_similarity is None:
        return Read(frozenset(), sketches)
    places_of: dict[str, list[int]] = defaultdict(list)
    for at in places:
        places_of[rows[at]["trace_key"]].append(at)
    for batch in _texts(store, list(places_of)):
        if settings.language is not None:
            foreign |= {at for key, *parts in batch if _foreign(parts, settings) for at in places_of[key]}
        if settings.max_similarity is not None:
            found = _sketches(["\n\n".join(parts) for _, *parts in batch])
            sketches |= {at: sketch for (key, *_), sketch in zip(batch, found, strict=True) for at in places_of[key]}
    return Read(frozenset(foreign), sketches)


def _texts(store: Store, keys: Sequence[str]) -> Iterator[list[tuple[str, str, str]]]:
    """(key, thinking, answer) of each trace, in batches. All come from one query, since each takes a scan of the
    traces."""
    with store.reading() as connection:
        list_wanted(connection, "trace_key", keys)
        result = connection.execute("SELECT trace_key, thinking, answer FROM traces SEMI JOIN wanted USING (trace_key)")
        while batch := result.fetchmany(BATCH):
            yield batch


def _foreign(parts: Sequence[str], settings: SelectSettings) -> bool:
    """Whether thinking or answer is in another language. As in the verifier `format`, texts of few words are passed."""
    for part in parts:
        found, words = share(part, SCRIPTS[str(settings.language)])
        if words >= LEAST_WORDS and found < settings.language_share:
            return True
    return False


def _sketches(texts: Sequence[str]) -> Any:
    from distill.curation.minhash import Sketches

    sketches = Sketches(SHINGLE, 0.8)
    sketches.add(texts)
    return sketches.taken()[0]


# -- rules that compare traces -----------------------------------------------------------------


def _by_prompt(
    rows: Sequence[Row], found: Sequence[str | None], settings: SelectSettings
) -> Iterator[list[int]]:  # fmt: skip
    """The remaining traces of each prompt, in the order in which they are taken. Problems with the same prompt share
    their traces."""
    by_prompt: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        if found[at] is None:
            by_prompt[row["prompt_key"]].append(at)
    for places in by_prompt.values():
        if settings.prefer == "shortest":
            places.sort(key=lambda at: (rows[at]["tokens"], at))
        yield places


def _repeated(
    at: int, kept: Sequence[int], rows: Sequence[Row], read: Read, settings: SelectSettings
) -> str | None:  # fmt: skip
    if settings.distinct and any(rows[at]["text"] == rows[other]["text"] for other in kept):
        return "duplicate"
    if kept and settings.max_similarity is not None and _likeness(at, kept, read) > settings.max_similarity:
        return "similar to another of its problem"
    if settings.per_problem is not None and len(kept) >= settings.per_problem:
        return f"more than {settings.per_problem} of its problem"
    return None


def _likeness(at: int, kept: Sequence[int], read: Read) -> float:
    """The estimated similarity to the most similar of the kept traces."""
    import numpy as np

    from distill.curation.minhash import estimates

    both = np.stack([read.sketches[at], *(read.sketches[other] for other in kept)])
    return float(estimates(both, np.zeros(len(kept), np.int64), np.arange(1, len(both))).max())


class _Quotas:
    """Counts the traces taken, in all, by source and by bin (of difficulty or pass rate)."""

    def __init__(self, settings: SelectSettings) -> None:
        self._settings = settings
        self._taken = 0
        self._of_source: Counter[str] = Counter()
        self._of_bin: Counter[str] = Counter()

    def full(self, source: str, bin: str) -> str | None:
        """Why one more trace exceeds a quota; otherwise count it and return None."""
        settings = self._settings
        most = settings.per_source
        of_source = most.get(source) if isinstance(most, dict) else most
        if of_source is not None and self._of_source[source] >= of_source:
            return f"more than {of_source} of source {source}"
        if settings.per_difficulty is not None and self._of_bin[bin] >= settings.per_difficulty:
            return f"more than {settings.per_difficulty} of difficulty {bin}"
        if settings.take is not None and self._taken >= settings.take:
            return f"more than {settings.take} in all"
        self._taken += 1
        self._of_source[source] += 1
        self._of_bin[bin] += 1
        return None
