"""select: the rules that make traces a training set, their reasons, and how much easier that set is than the problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import catalog
from distill.evaluation import difficulty
from distill.stages.select import SelectSettings
from distill.store import Store
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.stage import result_settings
from pipeline.workspace import Workspace

quick = settings(deadline=None, max_examples=30, database=None)


def trace(problem: int, right: bool, thinking: str, source: int = 0) -> dict[str, Any]:
    answer = problem if right else problem + 1
    return {
        "prompt": f"What is {problem}?",
        "reasoning_content": thinking,
        "content": f"\\boxed{{{answer}}}",
        "a": str(problem),
        "level": problem,
    }


LONG = "First we take the number as it is, then we look at it again, and then we say what it is. " * 3
CHINESE = "我们先把这个数字写下来，然后再看一遍，最后说出它是什么。" * 3
ROWS = [
    trace(1, True, LONG), trace(1, True, LONG + "So it is."), trace(1, True, "It is said in the question itself."),
    trace(2, True, "Two is two, as everybody knows."), trace(2, False, "I think that it may be three, or so."),
    trace(3, False, "No idea at all, so I guess now."), trace(3, True, CHINESE), trace(3, False, "Perhaps four?"),
    trace(3, False, "Perhaps it is five in the end?"),
    trace(4, False, "Nobody can know such a thing."), trace(4, False, "It is not known to me at all."),
]  # fmt: skip

SELECTS: dict[str, tuple[str, dict[str, int]]] = {
    "plain": ("", {"kept": 5, "incorrect": 6}),
    "hard": ("pass_rate: {most: 0.5}", {"kept": 2, "incorrect": 6, "pass rate above 0.5": 3}),
    "window": (
        "pass_rate: {least: 0.3, most: 0.9}",
        {"kept": 1, "incorrect": 6, "pass rate above 0.9": 3, "pass rate below 0.3": 1},
    ),
    "long": ("min_tokens: 15", {"kept": 3, "incorrect": 6, "shorter than 15 tokens": 2}),
    "as-long": ("min_tokens: 16", {"kept": 3, "incorrect": 6, "shorter than 16 tokens": 2}),
    "middle": (
        "min_tokens: 12, max_tokens: 60",
        {"kept": 2, "incorrect": 6, "longer than 60 tokens": 2, "shorter than 12 tokens": 1},
    ),
    "english": ("language: en", {"kept": 4, "incorrect": 6, "not in en": 1}),
    "varied": ("max_similarity: 0.6", {"kept": 4, "incorrect": 6, "similar to another of its problem": 1}),
    "short": ("prefer: shortest, per_problem: 1", {"kept": 3, "incorrect": 6, "more than 1 of its problem": 2}),
    "quota": ("per_source: 2", {"kept": 2, "incorrect": 6, "more than 2 of source t": 3}),
    "named": ("per_source: {t: 3, other: 0}", {"kept": 3, "incorrect": 6, "more than 3 of source t": 2}),
    "even": ("per_difficulty: 1", {"kept": 3, "incorrect": 6, "more than 1 of difficulty 1": 2}),
    "all": ("keep: all, pass_rate: {least: 0.1}", {"kept": 9, "pass rate below 0.1": 2}),
}


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], Store]:
    """One run with a select stage for each case."""
    place = tmp_path_factory.mktemp("select")
    (place / "t.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    stages = "".join(
        f"  {name}: {{kind: select, verdicts: verify{rules and ', ' + rules}}}\n"
        for name, (rules, _) in SELECTS.items()
    )
    (place / "p.yaml").write_text(
        f"name: p\nstages:\n  import: {{file: {place}/t.jsonl, form: deepseek, teacher: r1, reference: a, difficulty: level}}\n"
        f"  verify: {{traces: import}}\n{stages}"
    )
    workspace = Workspace(place / "run")
    spec = config.load(place / "p.yaml", catalog.stage, workspace=workspace.path)
    done = runner.run(spec, workspace, Listener(), lambda: False)
    return {
        d.manifest.stage: {**d.manifest.figures, "digest": d.manifest.digest, "run": d.manifest.fingerprint}
        for d in done
    }, Store(workspace.path)


@pytest.mark.parametrize("name", SELECTS)
def test_each_rule_keeps_its_traces_and_records_why_others_were_dropped(name: str, selected: Any) -> None:
    figures, store = selected
    assert {"kept": figures[name]["kept"], **figures[name]["rejected"]} == SELECTS[name][1]
    rows = store.rows(
        "SELECT outcome, sum(traces)::INTEGER AS n FROM funnel WHERE run = ? GROUP BY 1", [figures[name]["run"]]
    )
    assert {row["outcome"]: row["n"] for row in rows} == SELECTS[name][1]


def test_the_shortest_is_taken_first(selected: Any) -> None:
    figures, store = selected
    (row,) = store.rows(
        "SELECT t.thinking FROM members m JOIN traces t ON m.row_key = t.trace_key "
        "WHERE collection = ? AND label = 'kept' AND starts_with(t.prompt, 'What is 1?')",
        [figures["short"]["digest"]],
    )
    assert row["thinking"] == "It is said in the question itself."


def test_the_easy_bias_is_reported(selected: Any) -> None:
    bias = selected[0]["plain"]["bias"]
    assert bias["by"] == "difficulty"
    assert [(b["bin"], b["problems"], b["generated"], b["correct"], b["kept"]) for b in bias["bins"]] == [
        ("1", 1, 3, 3, 3), ("2", 1, 2, 1, 1), ("3", 1, 4, 1, 1), ("4", 1, 2, 0, 0),
    ]  # fmt: skip
    assert bias["bins"][3]["kept_tokens"] is None
    assert bias["says"].startswith(
        "The kept traces are easier than what was asked: mean difficulty of their problems 1.60 against 2.50, "
    )
    assert selected[0]["even"]["bias"]["says"].startswith(
        "The kept traces are easier than what was asked: mean difficulty of their problems 2.00"
    )


def test_a_quota_for_a_source_that_has_no_trace_is_noted(tmp_path: Path) -> None:
    said: list[str] = []

    class Notes(Listener):
        def note(self, stage: str, text: str) -> None:
            said.append(text)

    (tmp_path / "sums.jsonl").write_text(json.dumps(trace(1, True, LONG)))
    (tmp_path / "p.yaml").write_text(
        f"name: p\nstages:\n  import: {{file: {tmp_path}/sums.jsonl, form: deepseek, teacher: r1, reference: a}}\n"
        "  verify: {traces: import}\n  select: {verdicts: verify, per_source: {sum: 3, sums: 3}}\n"
    )
    workspace = Workspace(tmp_path / "run")
    spec = config.load(tmp_path / "p.yaml", catalog.stage, workspace=workspace.path)
    runner.run(spec, workspace, Notes(), lambda: False)
    found = [note for note in said if note.startswith("per_source")]
    assert found == ["per_source: no trace is of source 'sum'; did you mean 'sums'?"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"pass_rate": {"least": 0.9, "most": 0.1}}, "is more than most"),
        ({"pass_rate": {"lest": 0.9}}, "Extra inputs"),
        ({"language": "klingon"}, "language is one of"),
        ({"max_similarity": 1.5}, "less than 1"),
    ],
)
def test_impossible_rules_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectSettings.model_validate({"verdicts": "verify", **rules})


def test_unused_rules_are_not_in_the_fingerprint() -> None:
    """What was selected before these rules existed stays cached."""
    plain = result_settings(SelectSettings(verdicts="verify"))
    assert plain == {
        "verdicts": None, "keep": "correct", "per_problem": None, "prefer": "first", "distinct": True,
        "truncated": "drop", "max_tokens": None, "take": None,
    }  # fmt: skip
    assert result_settings(SelectSettings(verdicts="verify", min_tokens=3))["min_tokens"] == 3


def test_a_wrong_rule_is_reported_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nstages:\n  select:\n    verdicts: verify\n    language: xx\n")
    with pytest.raises(InputError, match=r"p\.yaml:5: stages\.select\.language: language is one of"):
        config.load(tmp_path / "p.yaml", catalog.stage)


# -- difficulty -------------------------------------------------------------------------------

judged = st.tuples(st.integers(0, 5), st.sampled_from(["correct", "incorrect", "unverifiable"]), st.integers(1, 99))


def rows_of(found: list[tuple[int, str, int]], known: bool) -> list[dict[str, Any]]:
    return [
        {"problem_key": str(p), "outcome": outcome, "tokens": tokens, "difficulty": p if known else None}
        for p, outcome, tokens in found
    ]


@quick
@given(st.lists(judged, min_size=1, max_size=40), st.booleans(), st.data())
def test_the_bins_count_everything_once(found: list[tuple[int, str, int]], known: bool, data: st.DataObject) -> None:
    rows = rows_of(found, known)
    kept = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    bias = difficulty.bias(rows, kept)
    for name, total in (
        ("generated", len(rows)),
        ("kept", sum(kept)),
        ("problems", len({r["problem_key"] for r in rows})),
    ):
        assert sum(row[name] for row in bias["bins"]) == total
        assert sum(difficulty.shares(bias, name)) == pytest.approx(1.0 if total else 0.0)
    assert bias["by"] == ("difficulty" if known else "pass rate")
    everything = difficulty.bias(rows, [True] * len(rows))["says"]
    one_each = len({r["problem_key"] for r in rows}) == len(rows)
    assert not one_each or "as hard as" in everything or "unknown" in everything


def test_the_summary_counts_the_problems_of_unknown_difficulty() -> None:
    """As of a file beside a generated family. That none of its traces was kept must not read as `no bias`."""
    rows = rows_of([(3, "correct", 9), (3, "correct", 9), (8, "incorrect", 90), (9, "incorrect", 90)], True)
    rows = [row | {"difficulty": None} if row["problem_key"] > "3" else row for row in rows]
    says = difficulty.bias(rows, [True, True, False, False])["says"]
    assert "as hard as" in says and says.endswith(
        " This leaves out 2 of 3 problems, whose difficulty is unknown: 0 of their 2 traces are kept, of the others 2 of 2."
    )


def test_pass_rates_leave_out_unverifiable_samples() -> None:
    rows = rows_of([(1, "correct", 1), (1, "incorrect", 1), (1, "unverifiable", 1), (2, "unverifiable", 1)], False)
    assert difficulty.pass_rates(rows) == {"1": 0.5, "2": None}
    rates = (1.0, 0.99, 0.75, 0.74, 0.5, 0.49, 0.25, 0.24, 0.01, 0.0, None)
    assert [difficulty.rate_bin(rate) for rate in rates] == [
        "100%", "75 to 99%", "75 to 99%", "50 to 74%", "50 to 74%", "25 to 49%", "25 to 49%", "1 to 24%", "1 to 24%",
        "0%", "unknown",
    ]  # fmt: skip


def test_rules_that_select_the_same_traces_keep_their_own_reasons(selected: Any) -> None:
    figures, store = selected
    assert figures["long"]["digest"] == figures["as-long"]["digest"]
    sql = "SELECT DISTINCT outcome FROM funnel WHERE run = ? AND starts_with(outcome, 'shorter')"
    reasons = [store.rows(sql, [figures[name]["run"]]) for name in ("long", "as-long")]
    assert reasons == [[{"outcome": f"shorter than {least} tokens"}] for least in (15, 16)]
