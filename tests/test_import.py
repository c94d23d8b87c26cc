"""Published traces through import, verify and select, and into the student's training rows."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from distill import catalog
from distill.sources import problems as sources
from distill.sources.columns import ProblemColumns
from distill.sources.published import TraceColumns
from distill.sources.tables import Row
from distill.stages.problems import ProblemsSettings
from distill.store import Store
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.manifest import Manifest
from pipeline.plan import Status
from pipeline.plan import plan as make_plan
from pipeline.workspace import Workspace

SAMPLE = Path(__file__).parents[2] / "shared/data/r1_traces_sample.json"

PIPELINE = """\
name: published
stages:
  import: {{file: {file}, teacher: r1, {columns}}}
  verify: {{{verify}}}
  select: {{verdicts: verify, prefer: shortest}}
"""

ROWS: list[dict[str, Any]] = [
    {"q": "2 + 2", "thought": "two and two", "said": "\\boxed{4}", "a": "#### 4"},
    {"q": "2 + 2", "thought": "<think>\n" + "long, " * 9 + "</think>", "said": "It is \\boxed{4}.", "a": "#### 4"},
    {"q": "2 + 3", "thought": "hm", "said": "\\boxed{6}", "a": "#### 5"},
    {"q": "2 + 4", "thought": "on and on", "said": "", "a": "#### 6"},
    {"q": "2 + 2", "thought": "two and two", "said": "\\boxed{4}", "a": "#### 4"},
]
COLUMNS = 'prompt: q, thinking: thought, answer: said, reference: a, reference_pattern: "#### (.+)"'


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


class RecordingListener(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, stage: str, text: str) -> None:
        self.notes.append(text)


def run(
    tmp_path: Path, file: Path, columns: str, verify: str = "traces: import", listener: Listener | None = None
) -> tuple[list[Manifest], Store]:
    yaml = tmp_path / "pipeline.yaml"
    tmp_path.mkdir(exist_ok=True)
    yaml.write_text(PIPELINE.format(file=file, columns=columns, verify=verify))
    workspace = Workspace(tmp_path / "run")
    spec = config.load(yaml, catalog.stage, workspace=workspace.path)
    manifests = [done.manifest for done in runner.run(spec, workspace, listener or Listener(), lambda: False)]
    assert all(plan.status is Status.CACHED for plan in make_plan(spec, workspace))
    return manifests, Store(workspace.path)


def test_traces_in_columns_are_imported_verified_and_selected(tmp_path: Path) -> None:
    (imported, verified, selected), store = run(tmp_path, write(tmp_path / "t.jsonl.gz", ROWS), COLUMNS)
    assert imported.figures == {"members": 4, "traces": 4, "repeats": 1}
    assert {k: verified.figures[k] for k in ("correct", "incorrect")} == {"correct": 2, "incorrect": 2}
    assert selected.figures["kept"] == 2
    rows = store.rows("SELECT * EXCLUDE (created) FROM traces ORDER BY sample_index, answer_tokens")
    assert {(r["model"], r["engine"], r["temperature"], r["seed"]) for r in rows} == {
        ("imported:r1", "imported", None, None)
    }
    assert sorted(r["sample_index"] for r in rows) == [0, 0, 0, 1]
    assert [r["finish"] for r in rows if not r["answer"]] == ["length"]
    assert not any("<think>" in r["thinking"] or "</think>" in r["thinking"] for r in rows)
    assert all(r["thinking_tokens"] + r["answer_tokens"] > 0 for r in rows)
    assert store.rows("SELECT count(DISTINCT prompt_key) AS n FROM traces")[0]["n"] == 3


@pytest.mark.parametrize(
    ("text", "noted"), [("<think>one</think>\\boxed{4}", False), ("<mull>one</mull>\\boxed{4}", True)]
)
def test_traces_without_thinking_are_noted(tmp_path: Path, text: str, noted: bool) -> None:
    """For example because their tags are not ours: a student would learn, unnoticed, to answer without reasoning."""
    rows = [{"q": "2 + 2", "said": text, "a": "#### 4"}, {"q": "1 + 3", "said": "<think>b</think>4", "a": "#### 4"}]
    listener = RecordingListener()
    run(tmp_path, write(tmp_path / "t.jsonl", rows), COLUMNS.replace("thinking: thought, ", ""), listener=listener)
    assert any("1 of 2 traces hold no thinking" in note and "`tags`" in note for note in listener.notes) == noted


def test_the_order_of_the_file_does_not_change_the_keys_of_traces(tmp_path: Path) -> None:
    keys = []
    for name, rows in (("a", ROWS), ("b", ROWS[::-1])):
        (tmp_path / name).mkdir()
        _, store = run(tmp_path / name, write(tmp_path / name / "t.jsonl", rows), COLUMNS)
        keys.append({row["trace_key"] for row in store.rows("SELECT trace_key FROM traces")})
    assert keys[0] == keys[1]


@pytest.mark.skipif(not SAMPLE.is_file(), reason="../shared/data/r1_traces_sample.json is not there")
def test_real_r1_traces_are_imported_verified_and_selected(tmp_path: Path) -> None:
    columns = "prompt: problem, thinking: message_thinking, answer: message_content, reference: gtruth_answer"
    (imported, verified, selected), store = run(tmp_path, SAMPLE, columns)
    assert imported.figures["members"] == 5
    assert verified.figures["correct"] == selected.figures["kept"] == 5
    assert all(row["closed"] and row["thinking"] for row in store.rows("SELECT closed, thinking FROM traces"))


@pytest.mark.parametrize("names", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_conversations_are_read_under_both_naming_schemes(names: tuple[str, ...]) -> None:
    role, content, user, assistant = names
    turns = [
        {role: "system", content: "Be brief."},
        {role: user, content: "2 + 2"},
        {role: assistant, content: "<think>\ntwo\n</think>\n\n4"},
    ]
    columns = TraceColumns(messages="m")
    for value in (turns, json.dumps(turns)):
        found = columns.read(Row(Path("f.jsonl"), 7, {"m": value}))
        assert (found.system, found.prompt, found.thinking, found.answer, found.closed) == (
            "Be brief.",
            "2 + 2",
            "two",
            "4",
            True,
        )


def test_thinking_inside_the_answer_column_is_split_off() -> None:
    columns = TraceColumns(answer="a")
    closed = columns.read(Row(Path("f"), 1, {"a": "<think>two</think>4"}))
    cut = columns.read(Row(Path("f"), 1, {"a": "<think>two and"}))
    plain = columns.read(Row(Path("f"), 1, {"a": "4"}))
    assert [(s.thinking, s.answer, s.closed) for s in (closed, cut, plain)] == [
        ("two", "4", True), ("two and", "", False), ("", "4", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        "no JSON",
        {"role": "user"},
        [],
        [{"role": "user", "content": "2 + 2"}],
        [{"role": "user", "content": " "}, {"role": "assistant", "content": "4"}],
        [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": ""}],
        [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": ["4"]}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2,
    ],
)
def test_an_invalid_conversation_is_reported_with_its_line(value: Any) -> None:
    with pytest.raises(InputError, match=r"^f\.jsonl:7: "):
        TraceColumns(messages="m").read(Row(Path("f.jsonl"), 7, {"m": value}))


def test_bad_rows_stop_the_run_or_are_skipped(tmp_path: Path) -> None:
    file = write(
        tmp_path / "t.jsonl", [ROWS[0], {"q": "x", "thought": "", "said": "", "a": "#### 1"}, {"q": "y"}, ROWS[2]]
    )
    with pytest.raises(InputError, match=r"t\.jsonl:2: the trace is empty"):
        run(tmp_path, file, COLUMNS)
    (imported, *_), _ = run(tmp_path, file, f"{COLUMNS}, on_bad_row: skip")
    assert imported.figures == {"members": 2, "traces": 2, "skipped": 2}


def test_of_very_many_bad_rows_only_the_first_are_named(tmp_path: Path) -> None:
    rows = write(tmp_path / "t.jsonl", [{"q": f"{n} + 1", "r": "1", "a": "" if n else "\\boxed{1}"} for n in range(60)])
    listener = RecordingListener()
    run(tmp_path, rows, "prompt: q, reference: r, answer: a, on_bad_row: skip", listener=listener)
    said = [note for note in listener.notes if note.startswith("skipped")]
    assert len(said) == 21 and said[19].startswith(f"skipped {rows}:21:")
    assert said[20] == "skipped 59 in all; the first 20 are named"
    notes: list[str] = []
    text = {
        "sources": [{"file": str(rows), "prompt": "q", "reference": "a", "verifier": "exact", "on_bad_row": "skip"}]
    }
    (source,) = ProblemsSettings.model_validate(text).sources
    assert len(list(sources.problems_of(source, "train", 0, None, notes.append))) == 1
    assert len(notes) == 21 and notes[20] == f"skipped 59 rows of {rows} in all; the first 20 are named"


@pytest.mark.parametrize("columns", ["messages: m, answer: a", "prompt: q", "answer: a"])
def test_an_incomplete_mapping_of_columns_is_refused_when_the_yaml_is_read(tmp_path: Path, columns: str) -> None:
    with pytest.raises(InputError, match="import"):
        run(tmp_path, write(tmp_path / "t.jsonl", ROWS), columns)


def test_tests_of_code_are_gathered_from_columns() -> None:
    row = Row(
        Path("f.jsonl"), 1, {"prompt": "def f(): ...", "test": "def check(c): assert c(1) == 2", "entry_point": "f"}
    )
    columns = ProblemColumns("prompt", {"test": "test", "entry_point": "entry_point"})
    reference = json.loads(columns.problem(row, "code", "s", "train", "MIT").reference)
    assert reference == {"test": "def check(c): assert c(1) == 2", "entry_point": "f"}


def test_a_code_reference_without_tests_is_reported_with_its_row() -> None:
    row = Row(Path("f.jsonl"), 7, {"q": "Add them.", "a": "4"})
    with pytest.raises(InputError, match=r"^f\.jsonl:7: the verifier 'code' cannot judge any answer .*: .*no tests"):
        ProblemColumns("q", "a").problem(row, "code", "s", "train", "MIT")
    assert ProblemColumns("q", "a").problem(row, "math", "s", "train", "MIT").reference == "4"


def test_a_verify_stage_whose_verifier_can_judge_nothing_is_refused(tmp_path: Path) -> None:
    rows = [{"q": "1 + 1", "a": "It is 2.", "r": "2"}, {"q": "2 + 2", "a": "It is 4.", "r": "4"}]
    path = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(InputError, match=r"^stage verify: 2 of 2 problems have no answer that code could judge; t/"):
        run(tmp_path, path, "prompt: q, answer: a, reference: r", verify="traces: import, verifier: code")


def test_a_row_of_generations_is_several_traces_and_a_bad_one_is_named(tmp_path: Path) -> None:
    response = "<think>\nso\n</think>\n\\boxed{%d}"
    rows = [
        {"q": "1 + 1", "r": "2", "g": [response % 2, response % 3, "", response % 2], "ok": [True, False, True, True]},
        {"q": "2 + 2", "r": "4", "g": json.dumps([response % 4]), "ok": None},
        {"q": "3 + 3", "r": "6", "g": [response % 6], "ok": [True, False]},
        {"q": "", "r": "8", "g": [response % 8, response % 9], "ok": [True, True]},
    ]
    columns = "prompt: q, reference: r, generations: g, flags: ok"
    with pytest.raises(InputError, match=r"t\.jsonl:1: column 'g', item 3: is empty"):
        run(tmp_path / "stop", write(tmp_path / "t.jsonl", rows), columns)
    (imported, verified, _), store = run(tmp_path, tmp_path / "t.jsonl", f"{columns}, on_bad_row: skip")
    assert imported.figures == {"members": 3, "traces": 3, "repeats": 1, "skipped": 3}
    assert {k: verified.figures[k] for k in ("correct", "incorrect")} == {"correct": 2, "incorrect": 1}
    assert store.rows("SELECT outcome, reason FROM verdicts WHERE verifier = 'published' ORDER BY outcome") == [
        {"outcome": "correct", "reason": "the set says so in ok"},
        {"outcome": "incorrect", "reason": "the set says so in ok"},
    ]


def test_a_response_that_its_publisher_says_was_cut_off_is_not_selected(tmp_path: Path) -> None:
    rows = [{"q": "1 + 1", "r": "2", "g": ["\\boxed{2}", "so, 2"], "f": ["stop", "length"]}]
    rows += [{"q": "2 + 2", "r": "4", "g": ["\\boxed{4}"], "f": None}]
    (*_, selected), _ = run(
        tmp_path, write(tmp_path / "t.jsonl", rows), "prompt: q, reference: r, generations: g, finish: f"
    )
    assert (selected.figures["kept"], selected.figures["rejected"]) == (2, {"truncated": 1})
    rows = [{"q": "1 + 1", "r": "2", "a": "\\boxed{2}", "f": end} for end in ("end_turn", "max_tokens")]
    (*_, selected), _ = run(
        tmp_path / "plain", write(tmp_path / "p.jsonl", rows), "prompt: q, reference: r, answer: a, finish: f"
    )
    assert (selected.figures["kept"], selected.figures["rejected"]) == (1, {"truncated": 1})


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            COLUMNS.replace("prompt: q", "prompt: nothere"),
            "t.jsonl:1: has no column 'nothere'; it has q, thought, said, a",
        ),
        (COLUMNS.replace("reference: a", "reference: {test: b}"), "t.jsonl:1: has no column 'b'"),
        (
            COLUMNS.replace("reference: a", "reference: b, on_bad_row: skip"),
            "has no column 'b'; it has q, thought, said, a;",
        ),
        (COLUMNS.replace("prompt: q", 'prompt: "{{ query }}"'), "t.jsonl:1: '{{ query }}': 'query' is undefined"),
    ],
)
def test_a_missing_column_is_refused_before_anything_runs(columns: str, said: str, tmp_path: Path) -> None:
    first = "  first: {kind: problems, sources: [{family: calc, train: 2}]}\n"
    text = PIPELINE.format(file=write(tmp_path / "t.jsonl", ROWS), columns=columns, verify="traces: import")
    (tmp_path / "p.yaml").write_text(text.replace("stages:\n", f"stages:\n{first}"))
    workspace = Workspace(tmp_path / "run")
    spec = config.load(tmp_path / "p.yaml", catalog.stage, workspace=workspace.path)
    with pytest.raises(InputError, match=re.escape(said)):
        runner.run(spec, workspace, Listener(), lambda: False)
    assert not list(workspace.path.glob("manifests/*/*.json"))


def test_take_counts_traces_and_reads_no_further(tmp_path: Path) -> None:
    rows = [{"q": "1 + 1", "r": "2", "g": ["\\boxed{2}", "\\boxed{3}"]}, {"q": "2 + 2", "r": "4", "g": "none"}]
    columns = "prompt: q, reference: r, generations: g, take: 2"
    (imported, *_), _ = run(tmp_path, write(tmp_path / "t.jsonl", rows), columns)
    assert imported.figures["members"] == 2
