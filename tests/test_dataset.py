"""Traces out of a store and into one: the data set, its card, the filters, the commands, also beside a writing run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import keys
from distill.cli.main import main
from distill.dataset import card, facts, write
from distill.dataset.choice import Choice
from distill.sources.published import TraceColumns
from distill.sources.tables import read
from distill.store import Store
from distill.store.records import problem_row, record_members, record_rejections, trace_row, verdict_row
from distill.types import Finish, Problem, Sampling, Trace, Verdict
from pipeline.errors import InputError

ROOT = Path(__file__).parents[1]
START = datetime(2026, 1, 1, tzinfo=UTC)


def trace(problem: Problem, index: int, thinking: str, answer: str, closed: bool = True) -> Trace:
    return Trace(
        key=keys.trace_key(problem, "teacher", Sampling(), index), model="teacher", engine="test",
        sampling=Sampling(), sample_index=index, prompt=f"<user>{problem.prompt}", thinking=thinking, answer=answer,
        closed=closed, thinking_tokens=len(thinking), answer_tokens=len(answer), prompt_ids=(1,), token_ids=(2, 3),
        logprobs=None, finish=Finish.STOP if closed else Finish.LENGTH,
    )  # fmt: skip


def put(store: Store, judged: list[tuple[Problem, Trace, Verdict | None]], first: int = 0) -> None:
    """Store traces, created one second apart, with their problems and verdicts."""
    problems, traces, verdicts = {}, [], []
    for number, (problem, one, verdict) in enumerate(judged, first):
        row = problem_row(problem)
        problems[row["problem_key"]] = row
        traces.append(trace_row(one, row["prompt_key"]) | {"created": START + timedelta(seconds=number)})
        if verdict:
            verdicts.append(verdict_row(f"v-{one.key}", one.key, row["problem_key"], verdict, "math"))
    store.append("problems", list(problems.values()))
    store.append("traces", traces)
    store.append("verdicts", verdicts)
    store.ingest()


def right(score: float = 1.0) -> Verdict:
    return replace(Verdict.correct("equal"), verifier="math", version="1", score=score)


WRONG = replace(Verdict.incorrect("another"), verifier="math", version="1")
ADD = Problem("sums/add", "2 + 2", "4", "math", "sums", licence="MIT", difficulty=1, system="Be brief.")
TIMES = Problem("products/times", "2 * 3", "6", "math", "products", licence="CC0-1.0")
SAID: list[tuple[Problem, Trace, Verdict | None]] = [
    (ADD, trace(ADD, 0, "two and two", "4"), right()),
    (ADD, trace(ADD, 1, "two and two, or so", "5"), WRONG),
    (TIMES, trace(TIMES, 0, "on and on", "", closed=False), None),
    (TIMES, trace(TIMES, 1, "", "6"), right()),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "w")
    put(made, SAID)
    return made


def distill(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, as a new one takes seconds to import what it needs."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["distill", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    result = subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())
    assert result.returncode == code, result.stdout + result.stderr
    return result


def refused(*arguments: str, cwd: Path) -> str:
    """The last line of the command on stderr, which must be its only message."""
    lines = distill(*arguments, cwd=cwd, code=2).stderr.strip().splitlines()
    said = [line for line in lines if line.startswith("distill: ")]
    assert len(said) == 1 and lines[-1] == said[0], lines
    return said[0]


# -- out ----------------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(str.strip)


@settings(max_examples=8, deadline=None)
@given(texts=st.lists(st.tuples(words, words, st.booleans()).filter(lambda s: s[0] or s[1]), min_size=1, max_size=4))
def test_exported_traces_are_imported_with_the_same_texts(
    texts: list[tuple[str, str, bool]], tmp_path_factory: Any
) -> None:
    """Through the conversation and through the columns. (Texts with think tags in them are left out.)"""
    texts = [
        (t, a if closed else "", closed) for t, a, closed in texts if "<think>" not in t + a and "</think>" not in t + a
    ]
    texts = [(t, a, closed or not t) for t, a, closed in texts if t or a]
    if not texts:
        return
    directory = tmp_path_factory.mktemp("round")
    store = Store(directory / "w")
    put(store, [(ADD, trace(ADD, i, t, a, closed), None) for i, (t, a, closed) in enumerate(texts)])
    assert write.export(store, Choice(), directory / "out.parquet") == len(texts)
    for columns in (TraceColumns(messages="messages"), TraceColumns(answer="answer", thinking="thinking")):
        back = [columns.read(row) for row in read(directory / "out.parquet")]
        assert sorted((b.thinking, b.answer) for b in back) == sorted((t, a) for t, a, _ in texts)


def test_the_datasets_library_reads_an_export(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(write, "ROWS_A_FILE", 3)
    from datasets import load_dataset

    assert write.export(store, Choice(), tmp_path / "out") == 4
    assert sorted(p.name for p in (tmp_path / "out/data").iterdir()) == [
        "train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
    ]  # fmt: skip
    rows = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert [row["id"] for row in rows] == [one.key for _, one, _ in SAID]
    assert rows[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4"},
    ]
    assert [row["outcome"] for row in rows] == ["correct", "incorrect", None, "correct"]
    assert (rows[0]["thinking"], rows[0]["answer"], rows[0]["reference"]) == ("two and two", "4", "4")


def test_exports_of_one_store_are_identical_files(store: Store, tmp_path: Path) -> None:
    for n in range(30):
        put(store, [(ADD, trace(ADD, 100 * n + i, f"thought {i}", f"{n}"), None) for i in range(2, 42)])
    for name in ("a", "b", "c"):
        write.export(store, Choice(), tmp_path / f"{name}.parquet")
    assert len({(tmp_path / f"{name}.parquet").read_bytes() for name in ("a", "b", "c")}) == 1


def test_an_export_to_a_name_of_another_format_is_refused(store: Store, tmp_path: Path) -> None:
    for name in ("out.csv", "out.jsonl", "out.parquet.gz"):
        with pytest.raises(InputError, match=rf"{name}: .*\.parquet file or a directory"):
            write.export(store, Choice(), tmp_path / name)
    assert write.export(store, Choice(), tmp_path / "out-v1.5") == 4


def test_only_an_earlier_export_is_overwritten_and_only_with_force(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for force, why in ((False, "exists already"), (True, "is not an earlier export")):
        with pytest.raises(InputError, match=why):
            write.export(store, Choice(), mine, force)
    for target in (tmp_path / "out", tmp_path / "out.parquet"):
        write.export(store, Choice(), target)
        with pytest.raises(InputError, match="--force to replace it"):
            write.export(store, Choice(), target)
        assert write.export(store, Choice(outcome="correct"), target, force=True) == 2
    with pytest.raises(InputError, match="no trace to export with source: nowhere"):
        write.export(store, Choice(source="nowhere"), tmp_path / "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out", "out.parquet", "w"]


def count(store: Store, choice: Choice) -> int:
    with store.reading() as connection:
        return write.choose(connection, choice)


def test_a_trace_kept_by_one_of_two_references_is_exported_with_that_one(tmp_path: Path) -> None:
    """Problems with one prompt share their traces. The first of these two has a wrong reference."""
    wrong, one, store = replace(ADD, reference="5"), SAID[0][1], Store(tmp_path)
    put(store, [(wrong, one, None), (ADD, one, None)])
    problem_keys = [problem_row(problem)["problem_key"] for problem in (wrong, ADD)]
    rows = [
        verdict_row(key, one.key, problem, verdict, "math")
        for key, problem, verdict in zip("wr", problem_keys, (WRONG, right()), strict=True)
    ]
    store.append("verdicts", rows)
    judged = record_members(store, [("verdict", "w"), ("verdict", "r")])
    selection = record_members(store, [("rejected", one.key), ("kept", one.key)])
    write.export(store, Choice(selection, verdicts=judged), tmp_path / "out.parquet")
    (row,) = read(tmp_path / "out.parquet")
    assert (row.get("outcome"), row.get("reference")) == ("correct", "4")


def test_filters(store: Store) -> None:
    selection = record_members(store, [("kept", SAID[0][1].key), ("rejected", SAID[1][1].key)])
    judged = record_members(store, [("verdict", f"v-{SAID[1][1].key}")])
    asked: list[tuple[dict[str, Any], int]] = [
        ({}, 4), ({"outcome": "correct"}, 2), ({"source": "sums"}, 2), ({"finish": "length"}, 1), ({"model": "each"}, 4),
        ({"model": "student"}, 0), ({"problem": "prod"}, 2), ({"where": "thinking_tokens > 5"}, 3),
        ({"collection": selection}, 1), ({"collection": judged}, 1), ({"collection": judged, "outcome": "correct"}, 0),
    ]  # fmt: skip
    for choice, expected in asked:
        assert count(store, Choice(**choice)) == expected, choice
    with pytest.raises(InputError, match="expected correct, incorrect"):
        Choice(outcome="right")
    with pytest.raises(InputError, match=r"--where nonsense > 1: .*nonsense"):
        count(store, Choice(where="nonsense > 1"))


def test_rollouts_are_left_out_unless_requested(store: Store) -> None:
    store.append("rollouts", [{"trace_key": SAID[0][1].key, "run": "r", "step": 0}])
    store.ingest()
    assert (count(store, Choice()), count(store, Choice(rollouts=True))) == (3, 4)


# -- the card -----------------------------------------------------------------------------------


def facts_of(store: Store, choice: Choice) -> dict[str, Any]:
    with store.reading() as connection:
        write.choose(connection, choice)
        return facts.gather(connection, choice, store.path.parent, None)


def test_the_card_describes_what_is_in_the_store(store: Store) -> None:
    found = facts_of(store, Choice())
    assert found["totals"]["traces"] == 4
    assert [(p["source"], p["licence"], p["traces"]) for p in found["problems"]] == [
        ("products", "CC0-1.0", 2), ("sums", "MIT", 2),
    ]  # fmt: skip
    assert {f["outcome"]: f["traces"] for f in found["funnel"]} == {"correct": 2, "incorrect": 1, "not judged": 1}
    assert found["verifiers"] == [
        {"verifier": "math", "version": "1", "settings": '"math"', "correct": 2, "incorrect": 1, "unverifiable": 0}
    ]
    thinking = next(row for row in found["lengths"] if row["tokens"] == "thinking")
    assert (thinking["min"], thinking["max"]) == (0, len("two and two, or so"))
    text = card.render(found)
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == ["cc0-1.0", "mit"] and header["size_categories"] == ["n<1K"]
    for part in ("Be brief.", "```\n<user>2 ", "| math | 1 |", "not checked", "No bill is recorded"):
        assert part in text, part


def test_the_card_gives_each_model_its_own_names(store: Store) -> None:
    """A store also holds the samples of students, and the card of a whole store lists them."""
    store.append(
        "traces", [trace_row(replace(trace(ADD, 7, "", "4"), model="student"), problem_row(ADD)["prompt_key"])]
    )
    names = {"teacher": ("org/big", "stage:copy"), "student": ("stage:sft",)}
    store.append("models", [{"model": model, "name": name} for model, those in names.items() for name in those])
    store.ingest()
    found = {row["model"]: row["name"] for row in facts_of(store, Choice())["teachers"]}
    assert found == {"teacher": "org/big, stage:copy", "student": "stage:sft"}


def test_the_card_of_a_selection_shows_what_was_rejected_and_why(store: Store) -> None:
    members = [("kept", SAID[0][1].key), ("rejected", SAID[1][1].key), ("rejected", SAID[2][1].key)]
    selection = record_members(store, members)
    record_rejections(store, "this", selection, [None, "incorrect", "truncated"])
    record_rejections(store, "another", selection, [None, "truncated", "truncated"])
    found = facts_of(store, Choice(selection, run="this"))
    assert [(f["outcome"], f["traces"]) for f in found["funnel"]] == [("kept", 1), ("incorrect", 1), ("truncated", 1)]
    assert "with what was rejected" in card.render(found)


def test_a_long_cell_of_a_table_shows_that_it_was_cut() -> None:
    long = "a | b < c " * 40
    (row,) = card.table([{"system": long}]).splitlines()[2:]
    assert row.endswith("… |") and row.replace("\\|", "|").replace("&lt;", "<") == f"| {long[:299]}… |"


def test_the_card_counts_duplicates_and_heldout_problems(store: Store) -> None:
    put(store, [(TIMES, trace(TIMES, 5, "", "6"), None)])
    record_members(store, [("heldout", problem_row(ADD)["problem_key"]), ("train", problem_row(TIMES)["problem_key"])])
    found = facts_of(store, Choice())
    assert found["duplicates"]["same_text"] == 1
    assert found["heldout"] == {"heldout": 1, "shared": 1}


# -- the commands -------------------------------------------------------------------------------


def listed(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    out = distill("traces", "list", "-w", "w", "--json", *options, cwd=tmp_path).stdout
    return [json.loads(line) for line in out.splitlines()]


def test_pages_of_a_listing_do_not_shift_while_traces_are_added(store: Store, tmp_path: Path) -> None:
    newest = [one.key[:12] for _, one, _ in reversed(SAID)]
    first = listed(tmp_path, "--limit", "2")
    put(store, [(ADD, trace(ADD, 9, "later", "4"), None)], first=99)
    second = listed(tmp_path, "--limit", "2", "--after", first[-1]["trace"])
    assert [row["trace"] for row in [*first, *second]] == newest


def test_a_failure_of_the_verifier_is_not_shown_after_a_later_verdict(store: Store, tmp_path: Path) -> None:
    one = SAID[0][1]
    failed = replace(Verdict.unverifiable("took too long", failure="timeout"), verifier="math", version="1")
    row = verdict_row(keys.failed_key(f"v-{one.key}"), one.key, problem_row(ADD)["problem_key"], failed, "math")
    store.append("verdicts", [row])
    store.ingest()
    assert [r["outcome"] for r in listed(tmp_path) if r["trace"] == one.key[:12]] == ["correct"]
    shown = distill("traces", "show", one.key[:12], "-w", "w", cwd=tmp_path).stdout
    assert "took too long" not in shown and "equal" in shown


def test_a_huge_result_is_not_held_in_memory(store: Store, tmp_path: Path) -> None:
    query = "SELECT repeat('x', 16000) || range AS x FROM range(70000)"
    code = "import re, sys; from distill.__main__ import main\n"  # (ru_maxrss would include the peak of this process)
    code += "try: main()\nfinally: print(int(re.search('VmHWM: *(.*) kB', open('/proc/self/status').read())[1]) // 1024, file=sys.stderr)"
    for options in (["--json"], ["--output", "x.parquet"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "traces", "sql", query, "-w", "w", *options], cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert int(done.stderr) < 900, (
            "1,100 MB of rows were held"
        )  # 550 MB are buffers and libraries, depending on the machine
    assert sum(1 for _ in read(tmp_path / "x.parquet")) == 70_000


def test_the_result_of_a_query_is_written_to_a_file(store: Store, tmp_path: Path) -> None:
    sql = ("traces", "sql", "SELECT problem_id, difficulty FROM problems ORDER BY 1", "-w", "w")
    for name in ("p.csv", "p.jsonl", "p.parquet"):
        assert "wrote 2 rows" in distill(*sql, "--output", name, cwd=tmp_path).stdout
        assert [row.get("problem_id") for row in read(tmp_path / name)] == ["products/times", "sums/add"]
    said = distill(*sql, "--output", "told.csv", "--json", cwd=tmp_path).stdout
    assert json.loads(said) == {"rows": 2, "target": "told.csv"}
    assert "exists already" in refused(*sql, "--output", "p.csv", cwd=tmp_path)
    assert "should end in" in refused(*sql, "--output", "p.xlsx", cwd=tmp_path)
    assert len(distill(*sql, "--limit", "1", "--json", cwd=tmp_path).stdout.splitlines()) == 1


def test_a_file_of_rows_has_the_columns_and_types_of_the_query(store: Store, tmp_path: Path) -> None:
    def written(query: str, name: str) -> Path:
        distill("traces", "sql", query, "-w", "w", "--output", name, cwd=tmp_path)
        return tmp_path / name

    late = pq.read_table(written("SELECT CASE WHEN range > 4000 THEN 'x' END AS late FROM range(4002)", "late.parquet"))
    assert late.schema.field("late").type == pa.string() and late["late"].to_pylist()[4000:] == [None, "x"]
    total = pq.read_table(written("SELECT sum(range) AS a, 1 AS a FROM range(4)", "sum.parquet"))
    assert total.to_pylist() == [{"a": 6, "a_1": 1}]
    assert pq.read_table(written("SELECT 1 AS n WHERE false", "none.parquet")).schema.names == ["n"]
    assert written("SELECT 1 AS n, 2 AS m WHERE false", "none.csv").read_text() == "n,m\n"
    failing = "SELECT CASE WHEN range > 4000 THEN 'x' ELSE '1' END::INTEGER FROM range(5000)"
    for query, why in ((failing, "Could not convert string 'x'"), ("SELECT INTERVAL 1 DAY", "cast it in the query")):
        assert why in refused("traces", "sql", query, "-w", "w", "--output", "no.parquet", cwd=tmp_path)
    assert not (tmp_path / "no.parquet").exists()


def test_an_export_that_is_imported_is_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path / "w")
    hard, unknown = ADD, replace(TIMES, difficulty=None, source=ADD.source, licence=ADD.licence)
    cut = replace(trace(unknown, 1, "so", "then 4"), finish=Finish.LENGTH)
    put(
        store,
        [(hard, trace(hard, 0, "hm", "3"), None), (unknown, cut, None), (hard, trace(hard, 1, "so", "", False), None)],
    )
    distill("traces", "export", "out", "-w", "w", cwd=tmp_path)
    options = ("--form", "distill", "--teacher", "r1", "--source", ADD.source, "--licence", ADD.licence)
    distill("traces", "import", "out", "-w", "again", *options, "--verifier", ADD.verifier, cwd=tmp_path)
    sql = (
        "SELECT p.* EXCLUDE (problem_id, origin), t.thinking, t.answer, t.closed, t.finish FROM traces t "
        "JOIN problems p USING (prompt_key) ORDER BY ALL"
    )
    there = [distill("traces", "sql", sql, "-w", name, "--json", cwd=tmp_path).stdout for name in ("w", "again")]
    assert there[0] == there[1] and there[0].count("\n") == 3
    twice = pa.concat_tables([pq.read_table(file) for file in (tmp_path / "out/data").iterdir()] * 2)
    pq.write_table(twice, tmp_path / "twice.parquet")
    said = distill("traces", "import", "twice.parquet", "-w", "third", *options, cwd=tmp_path).stdout
    assert "3 traces of twice.parquet are in third (3 repeats left out):" in said


def test_the_commands_for_import_export_and_card(tmp_path: Path) -> None:
    rows = [{"q": "2 + 2", "r": f"<think>\nlet me see {n}\n</think>\n\n{n}", "a": "4"} for n in range(6)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    take = (
        "traces",
        "import",
        "t.jsonl",
        "-w",
        "w",
        "--teacher",
        "r1",
        "--prompt",
        "q",
        "--answer",
        "r",
        "--reference",
        "a",
    )
    for _ in range(2):
        assert "6 traces of t.jsonl are in w:" in distill(*take, cwd=tmp_path).stdout
    assert len(listed(tmp_path)) == 6
    distill("traces", "export", "out", "-w", "w", cwd=tmp_path)
    assert "# w\n\n6 reasoning traces on 1 problems, imported" in (tmp_path / "out/README.md").read_text()
    back = ("traces", "import", "out", "-w", "again", "--teacher", "r1", "--source", "t")
    output = distill(*back, "--messages", "messages", "--reference", "reference", cwd=tmp_path).stdout
    assert "`distill traces list --workspace again --model imported:r1`" in output
    sql = "SELECT trace_key, thinking, answer FROM traces ORDER BY 1"
    there = [distill("traces", "sql", sql, "-w", name, "--json", cwd=tmp_path).stdout for name in ("w", "again")]
    assert there[0] == there[1] and there[0].count("\n") == 6
    for name in ("DeepSeek-R1", "DeepSeek-V3"):
        distill(*("traces", "import", "t.jsonl", "-w", "w", "--prompt", "q", "--answer", "r", "--teacher", name),
                "--reference", "a", cwd=tmp_path)  # fmt: skip
    rows_of_stats = [
        json.loads(line) for line in distill("traces", "stats", "-w", "w", "--json", cwd=tmp_path).stdout.splitlines()
    ]
    assert [row["model"] for row in rows_of_stats if row["kind"] == "traces"] == [
        "imported:DeepSeek-R1", "imported:DeepSeek-V3", "imported:r1",
    ]  # fmt: skip
    assert distill("card", "-w", "w", "--json", cwd=tmp_path).stdout.startswith('{"name"')
    for wrong, why in (
        (("traces", "import", "none.jsonl", "--teacher", "x", "--prompt", "q", "--answer", "r"), "no such file"),
        (("traces", "import", "t.jsonl", "--teacher", "x", "--prompt", "q"), "prompt and answer"),
        (
            ("traces", "import", "t.jsonl", "--teacher", "x", "--prompt", "z", "--answer", "r"),
            "t.jsonl:1: has no column 'z'",
        ),
        (
            ("traces", "import", "t.jsonl", "--teacher", "x", "--prompt", "z", "--answer", "r", "--on-bad-row", "skip"),
            "t.jsonl:1: has no column 'z'; it has q, r, a; no row can be read",
        ),
        (("traces", "import", "t.jsonl", "--teacher", "x", "--set", "promt=q"), "did you mean 'prompt'"),
        (("traces", "import", "t.jsonl", "--teacher", "x", "--form", "r1-mat"), "did you mean 'r1-math'"),
        (("traces", "import", "t.jsonl", "--teacher", "x", "--form", "r1-math"), "t.jsonl:1: has no column 'problem'"),
        (("traces", "export", "out"), "exists already"),
        (("traces", "export", "new", "--selection", "selekt"), "no stage 'selekt'"),
        (("traces", "export", "new", "--where", "x ="), "--where x ="),
        (("card", "--source", "nowhere"), "holds no such trace"),
    ):
        assert why in refused(*wrong, "-w", "w", cwd=tmp_path), wrong


def test_a_full_disk_stops_import_and_export_with_one_line_and_no_loss(store: Store, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        text = "".join(json.dumps({"q": f"{n}", "r": os.urandom(400).hex(), "a": "1"}) + "\n" for n in range(400))
        (tmp_path / "t.jsonl").write_text(text)
        take = ("traces", "import", "t.jsonl", "--teacher", "x", "--prompt", "q", "--answer", "r", "--reference", "a")
        assert "no space left" in refused(*take, "-w", "disk/w", cwd=tmp_path).lower()
        distill(*take, "-w", "w", cwd=tmp_path)
        assert "no space left" in refused("traces", "export", "disk/out", "-w", "w", cwd=tmp_path).lower()
        assert not (disk / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        distill(*take, "-w", "disk/w", cwd=tmp_path)
        distill("traces", "export", "disk/out", "-w", "disk/w", cwd=tmp_path)
        assert sum(1 for _ in read(next((disk / "out/data").iterdir()))) == 400
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_dataset import ADD, put, right, trace
from distill.store import Store
store = Store(Path(sys.argv[1]))
for n in range(100, 10_000):
    put(store, [(ADD, trace(ADD, n, f"thought {n}", f"{n}"), right())])
    print(n, flush=True)
"""


def test_every_command_works_while_another_process_writes(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "w"), str(Path(__file__).parent)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        assert writer.stdout
        before = [int(writer.stdout.readline()) for _ in range(3)][-1] - 99 + 4
        for command in (["list"], ["stats"], ["show", SAID[0][1].key], ["sql", "SELECT count(*) FROM traces"]):
            distill("traces", *command, "-w", "w", cwd=tmp_path)
        distill("card", "-w", "w", cwd=tmp_path)
        exported = json.loads(distill("traces", "export", "out", "-w", "w", "--json", cwd=tmp_path).stdout)["traces"]
        assert exported >= before
        assert writer.poll() is None, "the writer was stopped by a reader"
    finally:
        writer.kill()
        writer.communicate()
    there_before = {one.key for _, one, _ in SAID}
    rows = list(read(next((tmp_path / "out/data").iterdir())))
    assert there_before <= {row.get("id") for row in rows}
    assert all(r.get("id") in there_before or r.get("thinking") == f"thought {r.get('answer')}" for r in rows)
