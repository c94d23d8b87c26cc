"""`distill verify`: one line per row in the file's order, whatever the rows contain and whenever it is stopped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from distill.answers import MOST_REASONS, AnswerColumns, Tally, judge_rows
from distill.cli.verify import _bar
from distill.sources.tables import Row
from distill.types import Outcome
from distill.verifiers import VerifierPool, build, judge

ROOT = Path(__file__).parents[1]
HOSTILE = "hostile_verifiers:Hostile"
GSM8K = ROOT.parent / "shared/data/gsm8k_test.jsonl"
ROWS = [
    {"id": "a", "answer": "42", "response": r"<think>\boxed{41}?</think> so \boxed{42}"},
    {"id": "b", "answer": 42, "response": "43"},
    {"id": "c", "answer": "}{", "response": "42"},
    {"id": "d", "answer": "7", "response": ""},
]
VERDICTS = ["correct", "incorrect", "unverifiable", "incorrect"]


def start(*arguments: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-m", "distill", "verify", *arguments], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}, **options,
    )  # fmt: skip


def verify(*arguments: str, cwd: Path, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    """(the lines of stdout, the text of stderr)"""
    out, err = Command(cwd, "verify", *arguments).ended(code)
    return [json.loads(line) for line in out.splitlines()], err


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_every_row_gets_its_line_in_order(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS)
    lines, said = verify("a.jsonl", "--verifier", "math", cwd=tmp_path)
    assert [line["verdict"] for line in lines] == VERDICTS
    assert [(line["row"], line["id"]) for line in lines] == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    assert [line["score"] for line in lines] == [1.0, 0.0, None, 0.0]
    assert lines[0]["evidence"]["judged"] == "the text after thinking"
    assert (lines[0]["verifier"], lines[0]["version"]) == ("math", build("math").version)
    assert "correct 1 (25.0%), incorrect 2 (50.0%), unverifiable 1 (25.0%)" in said
    assert "abstained 1" in said


@pytest.mark.parametrize("form", ["jsonl.gz", "json", "csv", "parquet"])
def test_every_file_format_is_read(form: str, tmp_path: Path) -> None:
    path, rows = tmp_path / f"a.{form}", [{**row, "answer": str(row["answer"])} for row in ROWS]
    if form == "jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif form == "json":
        path.write_text(json.dumps(rows))
    elif form == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    lines, _ = verify(path.name, "--verifier", "math", cwd=tmp_path)
    assert [line["verdict"] for line in lines] == VERDICTS


def test_options_name_columns_and_settings(tmp_path: Path) -> None:
    row = {"q": "?", "key": 7, "gold": "so it is #### 5", "said": r"\boxed{5}", "thought": "hm"}
    jsonl(tmp_path / "a.jsonl", [row, {**row, "said": "5"}])
    names = ("--answer-key", "gold", "--response-key", "said", "--prompt-key", "q", "--thinking-key", "thought")
    more = ("--answer-pattern", "#### (.+)", "--id-key", "key")
    spec = "{all: [math, {format: {boxed: true}}]}"
    lines, _ = verify("a.jsonl", *names, *more, "--verifier", spec, cwd=tmp_path)
    assert [(line["id"], line["verdict"]) for line in lines] == [(7, "correct"), (7, "incorrect")]
    assert lines[0]["verifier"] == "all(math,format)"
    lines, _ = verify("a.jsonl", "--response-key", "said", "--no-answer", "--verifier", "format", cwd=tmp_path)
    assert [line["verdict"] for line in lines] == ["correct", "correct"]
    lines, _ = verify("a.jsonl", "--verifier", "format", "--think-opened", "--no-answer", "--response-key", "said", cwd=tmp_path)  # fmt: skip
    assert [line["verdict"] for line in lines] == ["incorrect", "incorrect"]


def test_a_user_verifier_beside_the_file_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from distill.types import Verdict\n"
        "class Long:\n    name, version = 'long', '3'\n"
        "    def verify(self, problem, trace):\n"
        "        return Verdict.correct('long') if len(trace.answer) > 2 else Verdict.incorrect('short')\n"
    )
    jsonl(tmp_path / "a.jsonl", [{"answer": "x", "response": "abc"}, {"answer": "x", "response": "ab"}])
    lines, _ = verify("a.jsonl", "--verifier", "mine:Long", cwd=tmp_path)
    assert [(line["verdict"], line["version"]) for line in lines] == [("correct", "3"), ("incorrect", "3")]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"answer": "1"}, "a.jsonl:2: has no column 'response'; it has answer"),
        ({"answer": "1", "response": None}, "a.jsonl:2: column 'response' holds null; expected text"),
        ({"answer": "1", "response": ["1"]}, "a.jsonl:2: column 'response' holds list; expected text"),
        ({"answer": "", "response": "1"}, "a.jsonl:2: column 'answer' is empty"),
        ("[1, 2]", "a.jsonl:2: expected an object"),
        ('{"answer": "1"', "a.jsonl:2: not valid JSON"),
        ('{"answer": NaN, "response": "NaN"}', "a.jsonl:2: column 'answer' holds NaN or infinity"),
        ('{"answer": 1e999, "response": "Infinity"}', "a.jsonl:2: column 'answer' holds NaN or infinity"),
    ],
)
def test_a_bad_row_stops_the_command_first_or_is_skipped_with_a_reason(bad: Any, message: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [ROWS[0], bad, ROWS[1]])
    lines, said = verify("a.jsonl", "--verifier", "math", cwd=tmp_path, code=2)
    assert lines == [] and message in said and len(said.splitlines()) == 1 and "--on-bad-row skip" in said
    lines, said = verify("a.jsonl", "--verifier", "math", "--on-bad-row", "skip", cwd=tmp_path)
    assert [line["verdict"] for line in lines] == ["correct", "unverifiable", "incorrect"]
    assert [line["row"] for line in lines] == [1, 2, 3]
    assert message in lines[1]["reason"] and lines[1]["evidence"] == {"failure": "input"}
    assert "bad rows 1" in said
    jsonl(tmp_path / "a.jsonl", [bad, bad])
    lines, said = verify("a.jsonl", "--verifier", "math", "--on-bad-row", "skip", cwd=tmp_path, code=2)
    assert lines == [] and message.replace(":2:", ":1:") in said and "none of the 2 rows can be read" in said


def test_the_progress_bar_has_room_for_count_and_time_in_80_columns() -> None:
    drawn = io.StringIO()
    console = Console(width=80, file=drawn, force_terminal=True, color_system=None)
    with _bar(1_000_000, 0, console) as show:
        tally = Tally()
        tally.update({Outcome.CORRECT: 333_333, Outcome.INCORRECT: 333_333, Outcome.UNVERIFIABLE: 12})
        show(tally)
    assert "666678/1000000" in drawn.getvalue() and "right 50% wrong 50% none 0%" in drawn.getvalue()


def test_bad_arguments_are_an_error_of_one_line(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS)
    for name in ("empty.jsonl", "a.txt"):
        (tmp_path / name).touch()
    (tmp_path / "broken.py").write_text("x = y\n")
    for arguments, message in [
        (("a.jsonl", "--verifier", "maths"), "did you mean 'math'?"),
        (("a.jsonl", "--verifier", "broken:X"), "cannot be loaded: NameError: name 'y' is not defined"),
        (("a.jsonl", "--verifier", "{format: {boxes: true}}"), "boxes"),
        (("b.jsonl", "--verifier", "math"), "b.jsonl: no such file"),
        (("a.txt", "--verifier", "math"), "unknown form"),
        (("empty.jsonl", "--verifier", "math"), "has no rows"),
        (("a.jsonl", "--verifier", "math", "--output", "./a.jsonl"), "is the file to be judged"),
        (("a.jsonl", "--verifier", "math", "--on-bad-row", "cry"), "expected stop or skip"),
        (("a.jsonl", "--verifier", "math", "--answer-pattern", "#### .+"), "has 0 groups in parentheses"),
    ]:
        lines, said = verify(*arguments, cwd=tmp_path, code=2)
        assert lines == [] and message in said and len(said.splitlines()) == 1, said
    assert (tmp_path / "a.jsonl").read_text().count("\n") == len(ROWS)


def test_json_on_stderr_is_one_object(tmp_path: Path) -> None:
    acts = ["fine", "exit", "raise", "memory", "fine"]
    jsonl(tmp_path / "a.jsonl", [{"answer": "x", "response": act} for act in acts])
    lines, said = verify("a.jsonl", "--verifier", HOSTILE, "--json", "--workers", "1", cwd=tmp_path)
    failures = [line["evidence"].get("failure") for line in lines]
    assert failures == [None, "crash", "error", "memory", None]
    summary = json.loads(said)
    assert summary["restarts"] == 2 and summary["rows"] == 5 and summary["verifier"] == "hostile"
    counts = ("correct", "unverifiable", "abstained", "crashes", "errors", "out_of_memory", "timeouts", "bad_rows")
    assert [summary[name] for name in counts] == [2, 3, 0, 1, 1, 1, 0, 0]
    _, said = verify("nothing.jsonl", "--verifier", "math", "--json", cwd=tmp_path, code=2)
    assert json.loads(said)["event"] == "error"


def test_lines_do_not_depend_on_workers_or_time(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    pairs = [(r, a) for r in ("42", r"\sqrt{12}", "1/3") for a in ("42", r"\boxed{2\sqrt{3}}", "0.33", "x")]
    jsonl(tmp_path / "a.jsonl", [{"answer": r, "response": a} for r, a in pairs])
    runs = [verify("a.jsonl", "--verifier", "math", "--workers", n, cwd=tmp_path)[0] for n in ("1", "2")]
    assert runs[0] == runs[1] and len(runs[0]) == len(pairs)


def test_a_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [ROWS[0]] * 5000)
    process = start("a.jsonl", "--verifier", "math", cwd=tmp_path)
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0


def test_closed_streams_are_no_error_and_their_numbers_go_to_no_file(tmp_path: Path) -> None:
    """Some schedulers start a job with stdout and stderr closed. What a library prints must not get into its files."""
    (tmp_path / "loud.py").write_text(
        "import os\nfrom distill.types import Verdict\n"
        "class Loud:\n    name, version = 'loud', '1'\n"
        "    def quick(self, problem, trace):\n"
        "        os.write(1, b'printed '), os.write(2, b'warned ')\n"
        "        return Verdict.correct('yes')\n"
        "    verify = quick\n"
    )
    jsonl(tmp_path / "a.jsonl", ROWS)
    command = "python -m distill verify a.jsonl --verifier ./loud.py:Loud --output out.jsonl >&- 2>&-"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    assert subprocess.run(command, shell=True, cwd=tmp_path, env=environment).returncode == 0
    assert [json.loads(line)["verdict"] for line in (tmp_path / "out.jsonl").open()] == ["correct"] * len(ROWS)


def test_the_output_file_appears_only_when_complete(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS)
    lines, said = verify("a.jsonl", "--verifier", "math", "--output", "new/out.jsonl", cwd=tmp_path)
    assert lines == [] and "wrote new/out.jsonl" in said
    written = [json.loads(line) for line in (tmp_path / "new/out.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in written] == VERDICTS
    assert os.listdir(tmp_path / "new") == ["out.jsonl"]


def test_output_never_replaces_a_link_pipe_or_device(tmp_path: Path) -> None:
    """A link, a pipe or a device with that name is neither replaced nor written to."""
    jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "link").symlink_to("elsewhere.jsonl")
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (
        ("link", "a link"),
        ("pipe", "no regular file"),
        (".", "a directory"),
        ("/dev/null", "no regular"),
    ):
        _, said = verify("a.jsonl", "--verifier", "math", "--output", name, cwd=tmp_path, code=2)
        assert f"--output {name}: is {kind}" in said and said.count("\n") == 1
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "elsewhere.jsonl").exists()


def test_the_summary_says_why_there_is_no_verdict(tmp_path: Path) -> None:
    """For a user's verifier that forgets to return, raises or ends the process, each with its own reason."""
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    name = 'mine'\n    version = '1'\n\n    def verify(self, problem, trace):\n"
        "        if trace.answer == 'raise':\n            return 1 / 0\n"
        "        if trace.answer == 'leave':\n            raise SystemExit(3)\n"
        "        if trace.answer == 'interrupt':\n            raise KeyboardInterrupt\n"
    )
    jsonl(
        tmp_path / "a.jsonl", [{"answer": "", "response": text} for text in ("forget", "raise", "leave", "interrupt")]
    )
    lines, said = verify("a.jsonl", "--verifier", "./mine.py:Mine", "--no-answer", cwd=tmp_path, code=1)
    assert said.splitlines()[-1].startswith(
        "distill: verifier mine: failed on every answer (4) and judged none; the first"
    )
    reasons = [line["reason"] for line in lines]
    assert all(line["evidence"]["failure"] == "error" for line in lines)
    assert "returned NoneType, not a Verdict" in reasons[0]
    assert "division by zero (mine.py:7)" in reasons[1]
    assert "SystemExit: 3 (mine.py:9)" in reasons[2] and "KeyboardInterrupt" in reasons[3]
    assert f"1 x {reasons[0]}" in said


def test_a_verdict_with_an_invalid_outcome_or_score_is_a_failure(tmp_path: Path) -> None:
    """A NaN score would be invalid JSON here, and in GRPO it would spoil the rewards of a whole group."""
    (tmp_path / "mine.py").write_text(
        "from distill.types import Verdict\n\n\nclass Mine:\n    name = 'mine'\n    version = '1'\n\n"
        "    def verify(self, problem, trace):\n"
        "        return eval(trace.answer, {'Verdict': Verdict, 'nan': float('nan')})\n"
    )
    said = ["'correct', nan, ''", "'correct', 7, ''", "'correct', None, ''", "'right', 1.0, ''", "'correct', 0.5, ''"]
    jsonl(tmp_path / "a.jsonl", [{"response": f"Verdict({text})"} for text in said])
    lines, _ = verify("a.jsonl", "--verifier", "./mine.py:Mine", "--no-answer", cwd=tmp_path)
    assert [line["verdict"] for line in lines] == ["unverifiable"] * 4 + ["correct"]
    assert [line["score"] for line in lines] == [None] * 4 + [0.5]
    assert [line["reason"].partition("its ")[2] for line in lines[:4]] == [
        "score is nan, no number from 0 to 1",
        "score is 7, no number from 0 to 1",
        "score is None, no number from 0 to 1",
        "outcome is 'right', none of correct, incorrect, unverifiable",
    ]


def test_a_judge_needs_a_prompt_column(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS)
    spec = "{judge: {model: 'embedded:teacher'}}"
    _, said = verify("a.jsonl", "--verifier", spec, cwd=tmp_path, code=2)
    assert "--prompt-key" in said and said.count("\n") == 1


def test_two_columns_with_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("answer,answer,response\n1,2,2\n")
    _, said = verify("a.csv", "--verifier", "math", cwd=tmp_path, code=2)
    assert "a.csv:1: has two columns called 'answer'" in said


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_resumes_where_it_was(how: signal.Signals, tmp_path: Path) -> None:
    """The first run hangs at row 4 until it is stopped. The second finds the file that row 4 waits for."""
    gate = tmp_path / "gate"
    acts = ["pid", "pid", "pid", f"wait for {gate}", "pid", "pid"]
    jsonl(tmp_path / "a.jsonl", [{"answer": "x", "response": act} for act in acts])
    command = ("a.jsonl", "--verifier", HOSTILE, "--output", "out.jsonl", "--workers", "1")
    process = start(*command, cwd=tmp_path)
    partial = lambda: b"".join(p.read_bytes() for p in tmp_path.glob(".tmp-out.jsonl-*"))  # noqa: E731
    deadline = time.monotonic() + 60
    while partial().count(b"\n") < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (75 if how != signal.SIGKILL else -signal.SIGKILL), err
    assert how == signal.SIGKILL or "stopped cleanly after 3 of 6 rows" in err
    assert not (tmp_path / "out.jsonl").exists()
    kept = partial()
    next(tmp_path.glob(".tmp-out.jsonl-*")).write_bytes(kept + b'{"row": 4, "torn')
    gate.touch()
    verify(*command, cwd=tmp_path)
    written = (tmp_path / "out.jsonl").read_bytes()
    assert written.startswith(kept)  # the process ids in it are the first run's
    assert [json.loads(line)["row"] for line in written.splitlines()] == [1, 2, 3, 4, 5, 6]


def test_output_of_another_verifier_is_not_resumed(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS)
    verify("a.jsonl", "--verifier", "math", "--output", "out.jsonl", cwd=tmp_path)
    first = (tmp_path / "out.jsonl").read_text()
    verify("a.jsonl", "--verifier", "exact", "--output", "out.jsonl", cwd=tmp_path)
    assert (tmp_path / "out.jsonl").read_text() != first


@pytest.fixture(scope="module")
def pool() -> Any:
    with VerifierPool(workers=1) as pool:
        yield pool


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.tuples(st.text(max_size=20), st.text(st.characters(codec=None), max_size=20)), max_size=20),
    first=st.integers(1, 5),
)
def test_a_file_gives_the_verdicts_of_single_calls(
    texts: list[tuple[str, str]], first: int, pool: VerifierPool
) -> None:
    rows = [Row(Path("f"), i, {"answer": a, "response": r}) for i, (a, r) in enumerate(texts)]
    found = list(judge_rows(rows, AnswerColumns(), "exact", pool, first=first))
    assert [judged.row for judged in found] == list(range(first, first + len(rows)))
    for (answer, response), judged in zip(texts, found, strict=True):
        line = json.loads(judged.line().encode("utf-8", "backslashreplace"))
        assert line["evidence"] == judged.verdict.evidence
        if answer.strip():
            assert judged.verdict.outcome == judge(build("exact"), answer.strip(), response).outcome
        else:
            assert judged.verdict.failure == "input"


def test_verdicts_of_an_opened_verifier_come_in_the_order_of_the_rows(pool: VerifierPool) -> None:
    said = [{"o": outcome, "r": rule} for outcome in VERDICTS for rule in VERDICTS]
    values: list[dict[str, str]] = [{"answer": "x", "response": json.dumps(what)} for what in said]
    rows = [Row(Path("f"), n, value) for n, value in enumerate([*values[:3], {"answer": "x"}, *values[3:]])]
    oracle, rule = ({f"asked_verifiers:{name}": {"of": of}} for name, of in (("Oracle", "o"), ("Rule", "r")))
    found = list(judge_rows(rows, AnswerColumns(), {"all": [rule, oracle]}, pool))
    assert [judged.row for judged in found] == list(range(1, len(rows) + 1))
    assert found.pop(3).verdict.failure == "input"
    for what, judged in zip(said, found, strict=True):
        expected = "incorrect" if "incorrect" in what.values() else max(what.values())
        assert judged.verdict.outcome == expected


LIGHT = """
import sys
sys.argv = ["distill", "verify", "a.jsonl", "--verifier", "math", "--output", "out.jsonl"]
from distill.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code
print([name for name in ("torch", "transformers", "duckdb", "pyarrow", "sympy") if name in sys.modules])
"""


def test_verify_loads_no_heavy_library(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS)
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not here")
def test_the_solutions_of_gsm8k_are_all_correct(tmp_path: Path) -> None:
    lines, said = verify(
        str(GSM8K), "--verifier", "math", "--response-key", "answer", "--answer-pattern", "####(.+)", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert {line["verdict"] for line in lines} == {"correct"} and json.loads(said)["rows"] == len(lines) == 1319


def test_a_known_reason_is_counted_however_long_it_is_and_however_many_there_are() -> None:
    tally = Tally()
    for name in [*map(str, range(MOST_REASONS)), "0"]:
        tally.add(Outcome.UNVERIFIABLE, None, name.rjust(100, "-") + "-" * 100)
    assert len(tally.reasons) == MOST_REASONS and tally.reasons.most_common(1)[0][1] == 2
