"""Another verifier, or another version of one, judges again: nothing is generated and no verdict is lost."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import Command
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import keys
from distill.evaluation import agreement
from distill.evaluation.agreement import Version
from distill.evaluation.statistics import wilson
from distill.store import Store
from distill.store.records import problem_row, verdict_row
from distill.types import Failure, Problem, Verdict
from distill.verifiers import build
from pipeline.errors import InputError
from pipeline.fingerprint import canonical

ROOT = Path(__file__).parents[1]


def distill(*arguments: str, cwd: Path, code: int = 0) -> str:
    out, err = Command(cwd, *arguments, "-p", "p.yaml").ended(code)
    return out if code == 0 else err


def run(cwd: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The result of each stage: its figures, and whether it was cached."""
    lines = distill("run", *arguments, "--json", cwd=cwd).splitlines()
    stages: dict[str, dict[str, Any]] = json.loads(lines[-1])["stages"]
    return stages


def rows(cwd: Path, sql: str) -> list[dict[str, Any]]:
    return Store(cwd / "runs/small").rows(sql)


SHORT = """
from distill.types import Verdict
class Short:
    name, version = "short", "{version}"
    def verify(self, problem, trace):
        return Verdict.correct("short") if len(trace.answer) {rule} else Verdict.incorrect("long")
"""
GENERATED = """\
name: small
stages:
  problems: {sources: [{family: calc, train: 4}]}
  generate: {problems: problems, teacher: "embedded:teacher", sampling: {max_tokens: 96, temperature: 0}}
  verify: {traces: generate, verifier: "mine:Short"}
"""


def test_a_new_version_judges_again_and_both_verdicts_are_kept(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(GENERATED)
    (tmp_path / "mine.py").write_text(SHORT.format(version=1, rule="< 1000"))
    assert run(tmp_path)["verify"]["figures"]["correct"] == 4
    traces = rows(tmp_path, "SELECT * FROM traces ORDER BY trace_key")
    (tmp_path / "mine.py").write_text(SHORT.format(version=2, rule="< 0"))
    plan = [json.loads(line) for line in distill("plan", "--json", cwd=tmp_path).splitlines()]
    assert [row["status"] for row in plan] == ["cached", "cached", "will run"]
    assert plan[2]["reasons"] == ['verifier "mine:Short": version 1 -> 2']
    ended = run(tmp_path)
    assert [ended[s]["cached"] for s in ("problems", "generate", "verify")] == [True, True, False]
    assert rows(tmp_path, "SELECT * FROM traces ORDER BY trace_key") == traces
    found = rows(tmp_path, "SELECT version, outcome, count(*) AS n FROM verdicts GROUP BY ALL ORDER BY ALL")
    assert found == [
        {"version": "1", "outcome": "correct", "n": 4},
        {"version": "2", "outcome": "incorrect", "n": 4},
    ]

    text = distill("traces", "diff-verifiers", cwd=tmp_path)
    assert "contradictions: 100.00%" in text and "same verdict on 0.0% of 4 traces" in text
    difference = json.loads(
        distill("traces", "diff-verifiers", "--a", "short@2", "--b", "short@1", "--json", cwd=tmp_path)
    )
    assert (difference["traces"], difference["judged_by_both"], difference["disagreement"]) == (4, 4, 1.0)
    assert difference["table"]["incorrect"]["correct"] == 4
    assert {d["trace"] for d in difference["differences"]} == {t["trace_key"] for t in traces}

    run(tmp_path, "--set", "verify.verifier=exact")
    assert len(rows(tmp_path, "SELECT * FROM traces")) == 4
    assert len(rows(tmp_path, "SELECT * FROM verdicts")) == 12
    assert "name two of the verifiers" in distill("traces", "diff-verifiers", cwd=tmp_path, code=2)
    both = json.loads(distill("traces", "diff-verifiers", "--a", "exact", "--b", "short@2", "--json", cwd=tmp_path))
    assert both["traces"] == 4 and both["b"] == '"mine:Short"@2'
    contradicted = distill("traces", "disagreements", "--json", cwd=tmp_path).splitlines()
    right = rows(tmp_path, "SELECT * FROM verdicts WHERE verifier = 'exact' AND outcome = 'correct'")
    assert len(contradicted) == len(right) > 0  # by the newest version of `short`, which calls everything incorrect

    stats = [json.loads(line) for line in distill("traces", "stats", "--json", cwd=tmp_path).splitlines()]
    assert [row["traces"] for row in stats if row["kind"] == "traces"] == [4]
    assert [(row["verifier"], row["version"]) for row in stats if row["kind"] == "verifier"] == [
        ("exact", build("exact").version), ("short", "1"), ("short", "2"),
    ]  # fmt: skip


CRASHES = """
import os
from distill.types import Verdict
class Crashes:
    name, version = "crashes", "1"
    def verify(self, problem, trace):
        if trace.answer == problem.reference == "2" and os.path.exists("broken"):
            os._exit(9)
        return Verdict.correct("here") if trace.answer == problem.reference else Verdict.incorrect("elsewhere")
"""
IMPORTED = """\
name: small
stages:
  import: {file: a.jsonl, teacher: someone, prompt: q, answer: said, reference: a}
  verify: {traces: import, verifier: "mine:Crashes"}
  select: {verdicts: verify}
"""


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("crashed")
    (tmp_path / "p.yaml").write_text(IMPORTED)
    (tmp_path / "mine.py").write_text(CRASHES)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"q": f"{i}?", "said": str(i), "a": str(i)}) + "\n" for i in range(4))
    )
    (tmp_path / "broken").touch()
    ended = run(tmp_path)
    assert ended["verify"]["figures"].items() >= {"correct": 3, "unverifiable": 1, "crash": 1, "failed_once": 1}.items()
    assert ended["select"]["figures"]["kept"] == 3
    assert "judged once more" in distill("plan", cwd=tmp_path)
    return tmp_path


@pytest.fixture
def crashing(crashed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(crashed, tmp_path / "copy", symlinks=True)


def rates(cwd: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in distill("traces", "stats", "--json", cwd=cwd).splitlines()]
    return next(line for line in lines if line["kind"] == "verifier")


def test_a_failed_verdict_is_judged_once_more_and_later_stages_follow(crashing: Path) -> None:
    assert rates(crashing).items() >= {"verdicts": 4, "crashes": 1, "abstained": 0, "unverifiable_share": 0.25}.items()
    (crashing / "broken").unlink()
    ended = run(crashing)
    assert ended["verify"]["figures"].items() >= {"correct": 4}.items()
    assert ended["select"]["figures"]["kept"] == 4
    assert all(stage["cached"] for stage in run(crashing).values())
    assert rates(crashing).items() >= {"verdicts": 4, "crashes": 0, "correct": 4}.items()
    assert len(rows(crashing, "SELECT * FROM verdicts")) == 5  # the failure is kept, too
    journal = crashing / "runs/small/journal/verdicts/*.parquet"
    assert rows(crashing, f"SELECT count(*) AS kept FROM read_parquet('{journal}')") == [{"kept": 5}]


def test_a_second_failure_becomes_the_verdict(crashing: Path) -> None:
    ended = run(crashing)
    assert ended["verify"]["figures"].items() >= {"unverifiable": 1, "crash": 1}.items()
    assert "failed_once" not in ended["verify"]["figures"]
    assert all(stage["cached"] for stage in run(crashing).values())
    assert rates(crashing).items() >= {"verdicts": 4, "crashes": 1}.items()


def test_a_verifier_that_fails_on_every_trace_fails_the_stage_until_fixed(crashing: Path) -> None:
    """A missing package or service is no property of the traces, so the exceptions it causes never become verdicts, in the
    first run or the second."""
    (crashing / "mine.py").write_text(CRASHES.replace('"1"', '"2"').replace("os._exit(9)", "pass").replace(
        "        if trace", "        open('needed').close()\n        if trace"))  # fmt: skip
    for _ in range(2):
        error = distill("run", cwd=crashing, code=1).splitlines()[-1]
        assert "stage verify: verifier crashes failed on every answer (4) and judged none; the first: " in error
        assert "No such file or directory: 'needed' (mine.py:7)" in error
    (crashing / "needed").touch()
    assert run(crashing)["verify"]["figures"].items() >= {"members": 4, "correct": 4}.items()
    assert all(stage["cached"] for stage in run(crashing).values())


def test_answers_that_all_crash_the_verifier_twice_are_unverifiable(crashing: Path) -> None:
    """As with a single hard trace, the machine may be to blame the first time, but not the second."""
    (crashing / "mine.py").write_text(
        CRASHES.replace('"1"', '"3"').replace('problem.reference == "2"', "problem.reference")
    )
    assert "failed on every answer (4)" in distill("run", "verify", cwd=crashing, code=1)
    assert run(crashing, "verify")["verify"]["figures"].items() >= {"unverifiable": 4, "crash": 4}.items()


# -- the comparison itself, on rows made by hand ------------------------------------------------

A, B = Version("math", "1", '"math"'), Version("exact", "1", '"exact"')
VERDICTS = {
    "correct": Verdict.correct("r"), "incorrect": Verdict.incorrect("w"), "unverifiable": Verdict.unverifiable("u"),
}  # fmt: skip


Judged = tuple[str, Problem, Version, Verdict]


def judged(store: Store, *judgements: Judged, failed: bool = False) -> None:
    verdicts = []
    for trace, problem, version, verdict in judgements:
        problem_key = keys.problem_key(problem)
        key = keys.verdict_key(trace, problem_key, version.verifier, version.version, version.settings)
        signed = replace(verdict, verifier=version.verifier, version=version.version)
        key = keys.failed_key(key) if failed else key
        verdicts.append(verdict_row(key, trace, problem_key, signed, json.loads(version.settings)))
    store.append("problems", [problem_row(problem) for _, problem, _, _ in judgements])
    store.append("verdicts", verdicts)
    store.ingest()


def problem(name: str, verifier: str = "math") -> Problem:
    return Problem(name, name, "42", verifier, "test")


@settings(max_examples=10, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.sampled_from(list(VERDICTS)), st.sampled_from(list(VERDICTS))), min_size=1, max_size=8)
)
def test_the_comparison_counts_pairs_and_is_symmetric(pairs: list[tuple[str, str]], tmp_path_factory: Any) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    # Each by its own problem, as after changing the problems' verifier in YAML: what counts is that the reference is the same.
    judged(store, *((f"t{i}", problem(str(i)), A, VERDICTS[a]) for i, (a, _) in enumerate(pairs)),
           *((f"t{i}", problem(str(i), "exact"), B, VERDICTS[b]) for i, (_, b) in enumerate(pairs)))  # fmt: skip
    there, back = agreement.compare(store, A, B), agreement.compare(store, B, A)
    for x in VERDICTS:
        for y in VERDICTS:
            assert there.table[x][y] == back.table[y][x] == pairs.count((x, y))
    settled = [pair for pair in pairs if "unverifiable" not in pair]
    contradictions = sum(a != b for a, b in settled)
    assert there.agreement == back.agreement == sum(a == b for a, b in pairs) / len(pairs)
    assert there.disagreement == back.disagreement == (contradictions / len(settled) if settled else None)
    assert there.ci95 == (wilson(contradictions / len(settled), len(settled)) if settled else (0.0, 1.0))
    assert len(there.differences) == sum(a != b for a, b in pairs)


def test_verdicts_by_different_references_are_not_compared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = replace(problem("p"), reference="41")
    judged(store, ("t", problem("p"), A, VERDICTS["correct"]), ("t", other, B, VERDICTS["incorrect"]))
    assert agreement.compare(store, A, B).traces == 0
    assert store.rows("SELECT * FROM disagreements") == []


def test_a_verdict_replaces_an_earlier_failure_in_the_views(tmp_path: Path) -> None:
    store = Store(tmp_path)
    judged(store, ("t", problem("p"), A, Verdict.failed(Failure.TIMEOUT, "late")), failed=True)
    (row,) = store.rows("SELECT * FROM judgements")
    assert (row["failure"], row["outcome"]) == ("timeout", "unverifiable")
    judged(store, ("t", problem("p"), A, VERDICTS["correct"]))
    (row,) = store.rows("SELECT * FROM judgements")
    assert (row["failure"], row["outcome"]) == (None, "correct")
    assert len(store.rows("SELECT * FROM verdicts")) == 2


def test_a_verifier_that_contradicts_itself_counts_as_a_disagreement(tmp_path: Path) -> None:
    store = Store(tmp_path)
    own = Verdict.unverifiable("equal by algebra alone", disagreement=True)
    parts = Verdict.unverifiable("math: so", parts=[{"evidence": {"disagreement": True}}, {"evidence": {}}])
    whole = Version("all(math,exact)", "1(1,1)", canonical({"all": ["math", "exact"]}))
    no = Verdict.unverifiable("no", disagreement=False)
    judged(store, ("t1", problem("p"), A, own), ("t2", problem("p"), whole, parts), ("t3", problem("p"), A, no))
    found = store.rows("SELECT trace_key, kind, verifier FROM disagreements ORDER BY trace_key")
    assert [(row["trace_key"], row["kind"]) for row in found] == [("t1", "one verifier"), ("t2", "one verifier")]


def test_a_version_is_found_by_any_of_its_names() -> None:
    form = Version("format", "2", canonical({"format": {"boxed": True}}))
    old = replace(form, version="1")
    known = [A, B, form, old]
    assert agreement.choose(known, "math", "exact@1") == (A, B)
    assert agreement.choose(known, "format@1", "{format: {boxed: true}}@2") == (old, form)
    assert agreement.choose([A, B], None, None) == (A, B)
    with_library = replace(A, version="2/0.9.0")
    assert agreement.choose([A, with_library], "math@1", "math@2") == (A, with_library)
    for a, b, message in [
        ("mth", "math", "no verifier in the store is called 'mth'"),
        ("format", "math", "several verifiers in the store are called 'format'"),
        ("math", "math@1", "both mean math@1"),
        ("math", None, "go together"),
        (None, None, "name two of the verifiers"),
    ]:
        with pytest.raises(InputError, match=message):
            agreement.choose(known, a, b)
