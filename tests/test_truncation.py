"""Responses cut at their limit: kept, dropped or continued; counted, killed in between, never made twice."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest
from command import Command
from words_engine import LOG, Installed, WordsEngine, words

from distill import catalog, keys, truncation
from distill.cli import traces as cli_traces
from distill.generation import Wanted, wanted
from distill.store import Store
from distill.thinking import split_thinking
from distill.types import Asked, Problem, Sampling
from pipeline import config, runner
from pipeline.errors import PipelineError
from pipeline.events import Listener
from pipeline.plan import plan
from pipeline.workspace import Workspace

ROOT = Path(__file__).parents[1]
PROBLEMS = 12
TIME_COLUMNS = {"seconds", "created"}


class Here:
    """The part of a stage's context that sampling needs."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def stopping(self) -> bool:
        return False

    def progress(self, done: int, total: int | None, **figures: Any) -> None:
        self.reports.append({"done": done, "total": total, **figures})


def problem(text: str) -> Problem:
    return Problem(f"x/{text}", text, "42", "exact", "x")


def wishes_for(texts: list[str], max_tokens: int = 20, **sampling: Any) -> list[Wanted]:
    tasks = [(text, problem(text)) for text in texts]
    return wanted(tasks, "m", Sampling(max_tokens=max_tokens, **sampling), 1)


def make(store: Store, wishes: list[Wanted], limits: list[int], engine: WordsEngine | None = None) -> list[str]:
    """The keys of the final responses, in order."""
    standing = truncation.make_whole(store, wishes, lambda: engine or WordsEngine("m"), Here(), limits)  # type: ignore[arg-type]
    return [wish.key for wish in standing]


def said_by(store: Store, trace_keys: list[str]) -> list[tuple[str, str, str]]:
    rows = store.rows("SELECT trace_key, finish, thinking, answer FROM traces")
    by_key = {row["trace_key"]: (row["finish"], row["thinking"], row["answer"]) for row in rows}
    return [by_key[key] for key in trace_keys]


TEXTS = [f"question {i}" for i in range(PROBLEMS)]
LONG = [text for text in TEXTS if len(words(f"user: {text}\n")) > 20]
(SHORT, *_) = [text for text in TEXTS if text not in LONG]


def test_a_continued_response_equals_one_that_was_never_cut(tmp_path: Path) -> None:
    store = Store(tmp_path)
    standing = make(store, wishes_for(TEXTS), [30, 100])
    assert 0 < len(LONG) < PROBLEMS
    whole = [split_thinking("".join(words(f"user: {text}\n"))) for text in TEXTS]
    assert said_by(store, standing) == [("stop", parts.thinking, parts.answer) for parts in whole]
    finishes = Counter(row["finish"] for row in store.rows("SELECT finish FROM traces"))
    assert finishes["length"] >= len(LONG)  # cut responses are kept too
    links = store.rows("SELECT trace_key, continued_by, continued_to FROM continuations")
    chain = {row["trace_key"]: row["continued_by"] for row in links}
    for wish, key in zip(wishes_for(TEXTS), standing, strict=True):
        at = wish.key
        while at in chain:
            at = chain[at]
        assert at == key
    assert len(links) == finishes["length"]


def test_a_higher_limit_continues_where_the_last_one_ended(tmp_path: Path) -> None:
    store, engine = Store(tmp_path), Counting("m")
    make(store, wishes_for(LONG), [25], engine)
    before = engine.sampled
    make(store, wishes_for(LONG), [25, 100], engine)
    rest = sum(len(words(f"user: {text}\n")) - 25 for text in LONG if len(words(f"user: {text}\n")) > 25)
    assert engine.sampled - before == rest > 0


class Counting(WordsEngine):
    """Counts the tokens that it sampled, without forced ones."""

    sampled = 0

    def _answer(self, request: Any) -> Any:
        completion = super()._answer(request)
        self.sampled += len(completion.token_ids) - len(completion.forced)
        return completion


def test_the_forecast_matches_what_is_made(tmp_path: Path) -> None:
    store, wishes = Store(tmp_path), wishes_for(TEXTS)
    assert truncation.foreseen(store, wishes, [30, 100]) == (PROBLEMS, 0, PROBLEMS * 100)
    make(store, wishes, [])
    total, done, tokens = truncation.foreseen(store, wishes, [30, 100])
    assert (total, done, tokens) == (PROBLEMS + len(LONG), PROBLEMS, len(LONG) * 80)
    make(store, wishes, [30])
    longer = [text for text in LONG if len(words(f"user: {text}\n")) > 30]
    total, done, tokens = truncation.foreseen(store, wishes, [30, 100])
    assert (total, done, tokens) == (PROBLEMS + len(LONG) + len(longer), PROBLEMS + len(LONG), len(longer) * 70)
    make(store, wishes, [30, 100])
    assert truncation.foreseen(store, wishes, [30, 100]) == (total, total, 0)


def test_the_columns_of_a_prefilled_cut_and_continued_response(tmp_path: Path) -> None:
    """Forced tokens are marked, and the sampled text is whole."""
    store, text = Store(tmp_path), LONG[0]
    prefix = "".join(words(f"user: {text}\n")[:3])
    asked = Asked(problem(text).messages, prefix)
    wish = wanted([("k", problem(text))], "m", Sampling(max_tokens=20), 1, lambda _: asked)
    (key,) = make(store, wish, [100])
    first, second = store.rows("SELECT * FROM traces ORDER BY max_tokens")
    assert (first["prefix"], first["forced"], first["continues"]) == (prefix, [0, 1, 2], None)
    assert second["prefix"] == first["cut"] == "".join(words(f"user: {text}\n")[:20])
    assert (second["trace_key"], second["continues"], second["cut"]) == (key, first["trace_key"], None)
    assert second["forced"] == list(range(20))
    assert first["prompt_key"] == second["prompt_key"] == keys.prompt_key(problem(text))


def test_a_response_cut_by_the_models_positions_is_not_continued(tmp_path: Path) -> None:
    store, wishes = Store(tmp_path), wishes_for(LONG)
    engine = WordsEngine("m", positions=15)
    assert make(store, wishes, [100], engine) == [wish.key for wish in wishes]
    assert truncation.foreseen(store, wishes, [100]) == (len(LONG), len(LONG), 0)


@pytest.mark.parametrize(
    ("cut", "text"), [("<think>\na b ", "<think>\na b "), ("half a letter \ufffd", "half a letter ")]
)
def test_half_a_letter_at_the_end_of_a_cut_response_is_sampled_again(cut: str, text: str) -> None:
    assert truncation.text_of({"cut": cut}) == text


# As a stage.

PIPELINE = """\
name: small
stages:
  problems: {sources: [{file: p.jsonl, prompt: q, reference: a, verifier: exact}]}
  generate:
    problems: problems
    teacher: "embedded:teacher"
    sampling: {max_tokens: 20}
"""
CONTINUE = "    truncated: continue\n    continue_tokens: [30, 100]\n"


def project(directory: Path, texts: list[str], more: str = "") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "p.jsonl").write_text("\n".join(json.dumps({"q": text, "a": "42"}) for text in texts))
    (directory / "p.yaml").write_text(PIPELINE + more)
    return directory


def run_here(directory: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, Any]:
    """Run the pipeline in this process with the engine of words; return the figures of ``generate``."""
    monkeypatch.setitem(catalog.ENGINES, "transformers", "words_engine:open_engine")
    monkeypatch.chdir(directory)
    spec = config.load(Path("p.yaml"), catalog.stage, overrides=overrides)
    workspace = Workspace(spec.workspace)
    runner.run(spec, workspace, Listener(), lambda: False)
    (found,) = [item for item in plan(spec, workspace) if item.spec.name == "generate"]
    assert found.status == "cached"
    return dict(found.figures)


def test_the_outcomes_under_each_policy_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = ["please refuse this", "be silent", "be silent again"]
    directory = project(tmp_path / "p", [*LONG, *others, SHORT])
    kept = run_here(directory, monkeypatch)
    count = len(LONG) + 4
    assert (kept["members"], kept["truncated"], kept["refused"], kept["empty"]) == (count, len(LONG), 1, 2)
    dropped = run_here(directory, monkeypatch, "generate.truncated=drop")
    assert (dropped["members"], dropped["truncated"], dropped["left_out"]) == (4, len(LONG), len(LONG))
    whole = run_here(directory, monkeypatch, "generate.truncated=continue", "generate.continue_tokens=100")
    assert (whole["members"], whole["truncated"], whole["continued"]) == (count, 0, len(LONG))
    store = Store(directory / "runs/small")
    (row,) = store.rows("SELECT * EXCLUDE (model, difficulty) FROM outcomes")
    assert row == {
        "source": "p", "traces": count + len(LONG), "finished": len(LONG) + 1, "truncated": len(LONG),
        "continued": len(LONG), "refused": 1, "empty": 2,
    }  # fmt: skip


def test_a_stage_whose_responses_were_all_cut_fails_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = project(tmp_path / "p", LONG[:2])
    with pytest.raises(PipelineError, match=r"stage generate: every response was cut at 20 tokens"):
        run_here(directory, monkeypatch, "generate.truncated=drop")
    assert len(rows_of(directory)) == 2
    assert run_here(directory, monkeypatch, "generate.truncated=keep")["members"] == 2


def test_show_names_the_prefix_and_the_continuation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = LONG[0]
    directory = project(tmp_path / "p", [text])
    run_here(directory, monkeypatch, "generate.truncated=continue", "generate.continue_tokens=100")
    (link,) = Store(directory / "runs/small").rows("SELECT * FROM continuations")
    cli_traces.show(link["trace_key"], Path("p.yaml"), None, False)
    assert f"['{link['continued_by']}']" in capsys.readouterr().out
    cli_traces.show(link["continued_by"], Path("p.yaml"), None, False)
    shown = capsys.readouterr().out
    assert f"continues        {link['trace_key']}" in shown
    assert f"--- prompt\nuser: {text}\n\n\n--- given after it: the beginning of the response\n<think>\nw" in shown
    cli_traces.stats(Path("p.yaml"), None, True)
    stats = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (stats["traces"], stats["truncated"], stats["refused"], stats["empty"]) == (2, 1, 0, 0)


UNTIL = "    until: {accepted: 1, most: 3, verifier: {regex: {pattern: '42', search: true}}}\n"


def test_until_drops_cut_tries_without_judging_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = project(tmp_path / "p", TEXTS, UNTIL)
    setting = ("generate.sampling.temperature=1.0", "generate.truncated=drop")
    found = run_here(directory, monkeypatch, *setting)
    short = PROBLEMS - len(LONG)
    assert (found["members"], found["accepted"]) == (short, short)
    assert (found["truncated"], found["left_out"], found["hopeless_problems"]) == (3 * len(LONG),) * 2 + (len(LONG),)
    store = Store(directory / "runs/small")
    assert store.rows("SELECT count(*) AS n FROM verdicts") == [{"n": short}]
    more = run_here(directory, monkeypatch, *setting, "generate.until.most=4")
    assert more["truncated"] == 4 * len(LONG) and len(rows_of(directory)) == short + 4 * len(LONG)


def test_until_judges_a_cut_try_after_it_was_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier cut tries are continued; each problem gets its one accepted try, however often it was cut."""
    directory = project(tmp_path / "p", [*TEXTS, TEXTS[0]], UNTIL)
    hot = "generate.sampling.temperature=1.0"
    run_here(directory, monkeypatch, hot)
    kept = len(rows_of(directory))
    assert kept > PROBLEMS  # cut tries were judged, and others made
    whole = ("generate.truncated=continue", "generate.continue_tokens=[30, 100]")
    found = run_here(directory, monkeypatch, hot, *whole)
    assert (found["members"], found["accepted"], found["truncated"]) == (PROBLEMS, PROBLEMS, 0)
    rows = rows_of(directory)
    very = [text for text in LONG if len(words(f"user: {text}\n")) > 30]
    assert len(rows) == kept + len(LONG) + len(very)
    judged = Store(directory / "runs/small").rows(
        "SELECT t.thinking, t.answer FROM traces t JOIN verdicts v USING (trace_key) WHERE v.outcome = 'correct'"
    )
    parts = [split_thinking("".join(words(f"user: {text}\n"))) for text in TEXTS]
    assert sorted(map(tuple, map(dict.values, judged))) == sorted((p.thinking, p.answer) for p in parts)
    fresh = project(tmp_path / "fresh", TEXTS, UNTIL)
    assert run_here(fresh, monkeypatch, hot, *whole)["accepted"] == PROBLEMS
    assert len(rows_of(fresh)) == PROBLEMS + len(LONG) + len(very)


@pytest.mark.parametrize("what", ["answer", "text"])
def test_until_counts_equal_tries_once(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = project(tmp_path / "p", [SHORT], UNTIL)
    setting = ("generate.sampling.temperature=1.0", "generate.until.accepted=2")
    assert run_here(directory, monkeypatch, *setting)["accepted"] == 2
    found = run_here(directory, monkeypatch, *setting, f"generate.until.distinct={what}")
    assert (found["members"], found["accepted"], found["repeated"], found["short_problems"]) == (3, 1, 2, 1)


# Killed.

MANY = [f"question {i}" for i in range(60)]


def start(directory: Path, killed_at: int = 0) -> Command:
    return Command(directory, "run", "--pipeline", "p.yaml", "--json", first=Installed(killed_at))


def asked_in(directory: Path) -> list[str]:
    log = directory / LOG
    return log.read_text().split("\n")[:-1] if log.exists() else []


def kept_in(directory: Path) -> set[str]:
    """The keys of durable traces, in shards or in the store."""
    files = [str(path) for path in (directory / "runs/small").glob("*/traces/[!.]*.parquet")]
    return (
        {row[0] for row in duckdb.execute("SELECT trace_key FROM read_parquet(?)", [files]).fetchall()}
        if files
        else set()
    )


def rows_of(directory: Path) -> list[dict[str, Any]]:
    rows = Store(directory / "runs/small").rows("SELECT * FROM traces ORDER BY trace_key")
    return [{name: value for name, value in row.items() if name not in TIME_COLUMNS} for row in rows]


def members_of(directory: Path) -> list[dict[str, Any]]:
    return Store(directory / "runs/small").rows("SELECT * FROM members ORDER BY ALL")


@pytest.mark.slow
def test_a_run_killed_while_continuing_cut_responses_makes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, killed = (project(tmp_path / name, MANY, CONTINUE) for name in ("alone", "killed"))
    run_here(alone, monkeypatch)
    total = len(rows_of(alone))
    assert total > len(MANY) + 20
    for at in (len(MANY) + 20, total - 5):
        before, asked = kept_in(killed), len(asked_in(killed))
        run = start(killed, killed_at=at - asked)
        said = run.communicate()
        assert run.returncode == -signal.SIGKILL, said
        assert not before & set(asked_in(killed)[asked:])
    before, asked = kept_in(killed), len(asked_in(killed))
    assert before
    start(killed).ended()
    assert not before & set(asked_in(killed)[asked:])
    assert rows_of(killed) == rows_of(alone)
    assert members_of(killed) == members_of(alone)
