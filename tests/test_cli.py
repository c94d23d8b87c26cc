"""The command line as a user meets it: exit codes, one clear line for bad input, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from command import ROOT, Command

from distill.cli import display, table
from distill.cli.live import Live
from pipeline.plan import StagePlan
from pipeline.stopping import Stopper

SMALL = """\
name: small
stages:
  problems: {sources: [{family: calc, train: 6, heldout: 3}, {family: logic, train: 6, heldout: 3}]}
  generate: {problems: problems, teacher: "embedded:teacher", sampling: {max_tokens: 96}}
  verify: {traces: generate}
"""


class Printed(NamedTuple):
    stdout: str
    stderr: str


def distill(*arguments: str, cwd: Path, code: int = 0) -> Printed:
    return Printed(*Command(cwd, *arguments).ended(code))


def refused(*arguments: str, cwd: Path) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    lines = distill(*arguments, cwd=cwd, code=2).stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "p.yaml").write_text(SMALL)
    return tmp_path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("done")
    (directory / "p.yaml").write_text(SMALL)
    distill("run", "-p", "p.yaml", cwd=directory)
    return directory


def test_help_ends_with_an_example(tmp_path: Path) -> None:
    assert "Example: distill run" in distill("--help", cwd=tmp_path).stdout
    commands = ["run"], ["plan"], ["status"], ["prune"], ["list"], ["init"], ["doctor"], ["ask"], ["traces", "sql"]
    for command in commands:
        assert "Example: distill" in distill(*command, "--help", cwd=tmp_path).stdout


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert distill("--version", cwd=tmp_path).stdout == f"distill {version('distill-reasoning')}\n"


def test_status_with_the_same_limit_shows_a_limited_run_as_complete(project: Path) -> None:
    distill("run", "-p", "p.yaml", "--limit", "2", cwd=project)
    rows = distill("status", "-p", "p.yaml", "--limit", "2", "--json", cwd=project).stdout.splitlines()
    assert [json.loads(row)["state"] for row in rows] == [done := json.loads(rows[0])["state"]] * 3
    assert done not in distill("status", "-p", "p.yaml", cwd=project).stdout


def test_plan_status_and_dry_run_before_anything_ran(project: Path) -> None:
    rows = [json.loads(line) for line in distill("plan", "-p", "p.yaml", "--json", cwd=project).stdout.splitlines()]
    assert [(r["stage"], r["status"]) for r in rows] == [(s, "will run") for s in ("problems", "generate", "verify")]
    assert rows[1]["total"] == 12
    assert rows[1]["figures"]["max_tokens"] == 12 * 96
    assert "will run" in distill("run", "-p", "p.yaml", "--dry-run", cwd=project).stdout
    assert "waiting" in distill("status", "-p", "p.yaml", "--limit", "3", cwd=project).stdout
    assert not (project / "runs").exists()


def test_an_edited_setting_is_named_by_the_plan(done: Path) -> None:
    out = distill("plan", "-p", "p.yaml", "--set", "generate.samples=2", "--json", cwd=done).stdout
    rows = {row["stage"]: row for row in map(json.loads, out.splitlines())}
    assert rows["problems"]["status"] == "cached"
    assert rows["generate"]["reasons"] == ["samples: 1 -> 2"]
    assert (rows["generate"]["status"], rows["generate"]["done"], rows["generate"]["total"]) == ("partly done", 12, 24)


def test_a_run_names_the_first_few_of_many_edited_settings(project: Path) -> None:
    distill("run", "problems", "-p", "p.yaml", cwd=project)
    edits = ["sources.0.train=7", "sources.0.heldout=4", "sources.1.train=7", "sources.1.heldout=4", "seed=3"]
    edited = [part for edit in edits for part in ("--set", f"problems.{edit}")]
    planned = distill("plan", "problems", "-p", "p.yaml", "--json", *edited, cwd=project).stdout
    assert len(json.loads(planned)["reasons"]) == 5
    out = distill("run", "problems", "-p", "p.yaml", *edited, cwd=project).stdout
    line_of_run = next(line for line in out.splitlines() if "running (" in line)
    assert line_of_run.endswith("; and 2 more)") and line_of_run.count(" -> ") == 3


def test_the_plan_of_a_new_stage_counts_what_another_stage_has_made(done: Path) -> None:
    more = (
        SMALL.splitlines()[3]
        .replace("generate:", "more:")
        .replace("{problems", "{kind: generate, samples: 2, problems")
    )
    (done / "more.yaml").write_text(f"{SMALL}{more}\n")
    rows = distill("plan", "more", "-p", "more.yaml", "--json", cwd=done).stdout.splitlines()
    row = json.loads(rows[-1])
    assert (row["status"], row["done"], row["total"]) == ("partly done", 12, 24)
    assert row["reasons"] == ["never run, but a part exists already"]


def test_the_traces_commands_read_the_store(done: Path) -> None:
    out = distill("traces", "list", "-p", "p.yaml", "--json", cwd=done).stdout
    listed = [json.loads(line) for line in out.splitlines()]
    assert len(listed) == 12 and {row["model"] for row in listed} == {"embedded:teacher"}
    one = f"SELECT DISTINCT name FROM models WHERE model = '{listed[0]['identity']}'"
    assert "embedded:teacher" in distill("traces", "sql", one, "-p", "p.yaml", cwd=done).stdout
    assert distill("traces", "list", "-p", "p.yaml", "--json", "--model", "d:teach", cwd=done).stdout == out
    shown = distill("traces", "show", listed[0]["trace"], "-p", "p.yaml", cwd=done).stdout
    assert "--- thinking" in shown
    assert "<|im_start|>user" in shown  # the prompt as it was rendered
    sql = "SELECT outcome, count(*) AS n FROM verdicts GROUP BY 1"
    counted = distill("traces", "sql", sql, "-p", "p.yaml", "--json", cwd=done).stdout
    assert sum(json.loads(line)["n"] for line in counted.splitlines()) == 12
    assert "embedded:teacher " in distill("traces", "stats", "-p", "p.yaml", cwd=done).stdout
    long = "SELECT repeat('x', 61) AS one, 'short' AS other"
    assert "cut at 60 characters; --json" in distill("traces", "sql", long, "-p", "p.yaml", cwd=done).stderr
    assert "cut at" not in distill("traces", "sql", long.replace("61", "60"), "-p", "p.yaml", cwd=done).stderr
    assert "does not exist" in refused("traces", "sql", "SELECT * FROM nothing", "-p", "p.yaml", cwd=done)
    assert "read-only" in refused("traces", "sql", "DELETE FROM verdicts", "-p", "p.yaml", cwd=done)
    assert "no trace begins with" in refused("traces", "show", "zzz", "-p", "p.yaml", cwd=done)


def test_ask_shows_thinking_only_when_asked(tmp_path: Path) -> None:
    question = ("ask", "Compute left to right: 12 + 7 - 4", "--model", "embedded:teacher")
    plain = distill(*question, "-p", str(ROOT / "configs/quickstart.yaml"), cwd=tmp_path).stdout
    shown = distill(*question, "-p", str(ROOT / "configs/quickstart.yaml"), "--show-thinking", cwd=tmp_path).stdout
    assert shown.endswith(plain)
    assert len(shown) > len(plain) > 1


def test_list_init_doctor(tmp_path: Path) -> None:
    listed = distill("list", "--json", cwd=tmp_path).stdout.splitlines()
    names = {(row["kind"], row["name"]) for row in map(json.loads, listed)}
    assert {("stages", "grpo"), ("verifiers", "math"), ("models", "embedded:teacher"), ("families", "calc")} <= names
    assert "…" not in distill("list", "verifiers", cwd=tmp_path).stdout, "nothing is cut in a pipe"
    assert "wrote mine.yaml" in distill("init", "mine.yaml", cwd=tmp_path).stdout
    assert "exists already" in refused("init", "mine.yaml", cwd=tmp_path)
    assert "did you mean 'quickstart'" in refused("init", "x.yaml", "--from", "quickstrat", cwd=tmp_path)
    assert "embedded:teacher" in distill("doctor", cwd=tmp_path).stdout


def test_the_settings_of_a_stage_are_listed(tmp_path: Path) -> None:
    out = distill("list", "stages", "sft", cwd=tmp_path).stdout
    assert "\nheldout.every: integer, default 50\n    Optimizer steps between measurements." in out
    assert '\nschedule: cosine | linear | constant, default "cosine"\n' in out and "\nstudent: text, required\n" in out
    keys = {
        row["name"]: row
        for row in map(json.loads, distill("list", "stages", "sft", "--json", cwd=tmp_path).stdout.splitlines())
    }
    assert keys["lora.rank"] == {"name": "lora.rank", "type": "integer", "default": "32", "what": ""}
    assert "did you mean 'grpo'?" in refused("list", "stages", "grppo", cwd=tmp_path)
    assert "`distill list stages sft`" in refused("list", "engines", "vllm", cwd=tmp_path)


def test_bad_input_is_a_one_line_error(project: Path) -> None:
    assert "nothing.yaml: no such file" in refused("run", "-p", "nothing.yaml", cwd=project)
    assert "did you mean 'generate'?" in refused("run", "generat", "-p", "p.yaml", cwd=project)
    for more in ([], ["--dry-run"]):
        assert "write it as 3h50m" in refused("run", "-p", "p.yaml", "--max-time", "soon", *more, cwd=project)
        assert "did you mean 'generate'?" in refused("run", "-p", "p.yaml", "--force", "generat", *more, cwd=project)
    assert "no such workspace" in refused("traces", "stats", "-p", "p.yaml", cwd=project)
    assert "has no student yet" in refused("ask", "hello", "-p", "p.yaml", cwd=project)
    exam = (
        "  evaluate: {problems: problems, models: {a: embedded:teacher}, samples: 4, pass_at: [8], budgets: [0, 8]}\n"
    )
    (project / "exam.yaml").write_text((project / "p.yaml").read_text().rstrip("\n") + "\n" + exam)
    assert "needs at least 8 samples" in refused("plan", "evaluate", "-p", "exam.yaml", cwd=project)
    (project / "list.yaml").write_text("- problems\n- generate\n")
    assert "list.yaml:1: is a list" in refused("run", "-p", "list.yaml", cwd=project)
    for words in (("run", "--limit", "0"), ("traces", "list", "--nothing"), ("sleep",), ("verify", "a.jsonl")):
        assert "--help` tells what there is" in refused(*words, cwd=project)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("model.safetensors", "it has no weights"), ("config.json", "has no config.json"), ("tokenizer", "no tokenizer")],
)
def test_an_incomplete_model_directory_is_refused_before_anything_is_loaded(
    missing: str, message: str, project: Path
) -> None:
    shutil.copytree(ROOT / "distill/models/teacher", project / "model")
    for path in (project / "model").glob(f"{missing}*"):
        path.unlink()
    assert message in refused("run", "-p", "p.yaml", "--set", "generate.teacher=./model", cwd=project)


def test_a_workspace_that_cannot_be_made_is_a_one_line_error(project: Path) -> None:
    (project / "runs").write_text("a file")
    assert "is in place of a directory" in refused("run", "-p", "p.yaml", cwd=project)


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of one megabyte."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_is_a_one_line_error_and_nothing_is_lost(small_disk: Path, project: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 700_000)
    message = refused("run", "-p", "p.yaml", "--workspace", str(small_disk / "w"), cwd=project)
    assert "no space left" in message.lower() and str(small_disk / "w") in message
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    distill("run", "-p", "p.yaml", "--workspace", str(small_disk / "w"), cwd=project)


def test_a_read_only_workspace_is_a_one_line_error(small_disk: Path, project: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    message = refused("run", "-p", "p.yaml", "--workspace", str(small_disk / "w"), cwd=project)
    assert "cannot be written" in message


def test_a_read_only_store_is_exported(
    small_disk: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    shutil.copytree(done / "runs/small", small_disk / "w", symlinks=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    printed = distill("traces", "export", "x.parquet", "--workspace", str(small_disk / "w"), cwd=tmp_path).stdout
    assert printed == "wrote 12 traces to x.parquet\n"
    assert list(temporary.iterdir()) == []


def test_a_second_run_is_told_who_holds_the_workspace(project: Path) -> None:
    from pipeline.lock import workspace_lock

    with workspace_lock(project / "runs/small", wait=False, stopping=lambda: False, command="the first"):
        said = [distill("run", "-p", "p.yaml", cwd=project, code=75).stderr]
        said.append(distill("status", "-p", "p.yaml", cwd=project).stderr)
    for text in said:
        assert f"in use by process {os.getpid()}" in text
        assert "(the first)" in text


def test_status_says_where_it_looked_when_there_is_nothing(project: Path) -> None:
    """A relative workspace depends on the current directory, and cron starts in the home directory."""
    assert f"runs/small: no such workspace (yet) in {project}" in distill("status", "-p", "p.yaml", cwd=project).stderr


def test_a_stage_is_running_while_its_run_holds_the_workspace(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process id of a killed run may be reused, so a living process with that id proves nothing."""
    from distill.cli.plan import plan
    from distill.cli.status import status
    from pipeline.lock import workspace_lock

    def states(command: Callable[..., None], *more: Any) -> dict[str, Any]:
        command(*more, Path("p.yaml"), None, (), None, True)
        return {row["stage"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}

    monkeypatch.chdir(project)
    fingerprint = states(plan, ())["problems"]["fingerprint"]
    beat = project / "runs/small/work" / f"problems-{fingerprint[:12]}" / "heartbeat.json"
    beat.parent.mkdir(parents=True)
    beat.write_text(json.dumps({"pid": os.getpid(), "seconds": 1.5, "done": 1, "total": 2, "figures": {}}))
    assert states(status)["problems"]["state"] == "interrupted"
    with workspace_lock(project / "runs/small", wait=False, stopping=lambda: False):
        assert states(status)["problems"]["state"] == "running"


@pytest.mark.parametrize("wrong", [("-p", "nothing.yaml"), ("--limit", "0")])
def test_an_error_is_json_when_json_was_asked_for(wrong: tuple[str, str], project: Path) -> None:
    result = distill("run", *wrong, "--json", cwd=project, code=2)
    assert json.loads(result.stdout.splitlines()[-1]) | {"message": ""} == {
        "event": "error",
        "message": "",
        "exit_code": 2,
    }


def test_an_unexpected_failure_is_json_too_when_json_was_asked_for(project: Path) -> None:
    code = (
        "import sys; import distill.cli.status as status; from distill.cli.main import main\n"
        "def load(*_): raise ZeroDivisionError('by surprise')\n"
        "status.load = load; sys.argv = ['distill', 'status', '--json']; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert json.loads(result.stdout) == {
        "event": "error", "message": "ZeroDivisionError: by surprise", "exit_code": 1
    }  # fmt: skip
    assert "Traceback" in result.stderr, "for whoever is to mend it"


def test_a_prompt_longer_than_the_context_is_reported_with_its_problem(project: Path) -> None:
    rows = [{"q": "Compute left to right: 1 + 2", "a": "3"}, {"q": "1 + " * 9000 + "1", "a": "9001"}]
    (project / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = "{sources: [{file: long.jsonl, prompt: q, reference: a}]}"
    (project / "p.yaml").write_text(SMALL.replace(SMALL.splitlines()[2].split(": ", 1)[1], source))
    said = distill("run", "-p", "p.yaml", cwd=project, code=2).stderr.strip().splitlines()[-1]
    assert (
        said.startswith("distill: ")
        and "problem long/" in said
        and "(long.jsonl:2): a prompt of " in said
        and "leaves no room" in said
    )


def use_problem_file(project: Path, rows: str | bytes, **changes: str) -> None:
    """Let the project read its problems from a file."""
    (project / "p.jsonl").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    source = {"file": "p.jsonl", "prompt": "q", "reference": "a"} | changes
    listed = ", ".join(f"{key}: {value}" for key, value in source.items())
    (project / "p.yaml").write_text(SMALL.replace(SMALL.splitlines()[2], f"  problems: {{sources: [{{{listed}}}]}}"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sft.lora.rank=abc"], "--set sft.lora.rank=abc: "),
        (["generate.engine={kind: openai}"], "--set generate.engine={kind: openai}: base_url is missing"),
        (["sft.lora.rnk=3"], "--set sft.lora.rnk=3: unknown key; did you mean 'rank'?"),
        (["sft.rank=3"], "--set sft.rank=3: unknown key; did you mean 'lora.rank'?"),
        (["grpo.problems=[{stage: problems, weight: 0}]"], "weight: 0}]: should be greater than 0, found 0"),
        (["grpo.problems=[]"], "--set grpo.problems=[]: should hold at least 1, holds 0"),
        (["grpo.loss=rloo"], "--set grpo.loss=rloo: rloo is a baseline: set `baseline: leave_one_out`"),
        (["grpo.steps=4", "grpo.lengths=[{until: 30, max_tokens: 20}]"], "lengths: a stage ends at step 30, but there"),
        (["sft.student=embedded:student-bse"], "shipped models: embedded:student-base, embedded:teacher"),
        (["sft.student=nowhere"], "expected embedded:NAME, stage:NAME, a directory, or a hub name"),
        (["generate.teacher=./nowhere"], "nowhere is not a directory"),
        (["evaluate.pass_at=[8]"], "pass@8 needs at least 8 samples per problem"),
        (["problems.sources=[{foo: 1}]"], "problems.sources"),
        (["problems.sources.0.file=x"], "problems.sources.0.file=x: cannot be combined with the other keys here"),
        (["problems.sources=[calc]"], "should be a mapping of keys to values, found 'calc'"),
        (["generate.engine=openai"], "generate.engine=openai: base_url is missing"),
        (["generate.teacher="], "should be text, found None"),
        (["evaluate.models.headline=embedded:teacher"], "cannot be labelled 'headline': report.json uses that word"),
        (["evaluate.models.sft/greedy=embedded:teacher"], "would be taken for a part of 'sft'"),
    ],
)
def test_overrides_that_cannot_work_are_refused_before_anything_is_made(
    overrides: list[str], said: str, tmp_path: Path
) -> None:
    options = [word for text in overrides for word in ("--set", text)]
    line = refused("run", *options, "--workspace", "w", cwd=tmp_path)
    assert said in line and ".family.family" not in line and ".file.file" not in line
    assert not list((tmp_path / "w").glob("manifests/*/*.json"))


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        ("", {}, "p.jsonl: holds no usable problem"),
        ('{"q": "1", "a": "2"}', {"reference": "b", "on_bad_row": "skip"}, "column 'b'; it has q, a; no row can be read"),
        ('{"q": "1 + 1", "a": "2"}\n{"q": \n', {}, "p.jsonl:2: not valid JSON (Expecting value, column 6"),
        ('{"q": {"x": 1}, "a": "2"}', {}, "p.jsonl:1: column 'q' is not text"),
        ('{"q": "1", "a": "2"}', {"reference_pattern": "'####('"}, "p.yaml:3: stages.problems.sources.0.reference_pattern: "),
        ('{"q": "1", "a": "2"}', {"reference_pattern": "'#+ .+'"}, "has 0 groups in parentheses"),
        ("q\xe9".encode("latin-1"), {}, "p.jsonl:1: not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_problem_file_that_cannot_be_used_is_a_one_line_error(
    rows: str | bytes, changes: dict[str, str], said: str, project: Path
) -> None:
    use_problem_file(project, rows, **changes)
    assert said in refused_after_lines("run", "-p", "p.yaml", cwd=project)


def refused_after_lines(*arguments: str, cwd: Path) -> str:
    return distill(*arguments, cwd=cwd, code=2).stderr.strip().splitlines()[-1]


def test_a_file_with_a_byte_order_mark_is_read(project: Path) -> None:
    use_problem_file(project, b'\xef\xbb\xbf{"q": "1 + 1", "a": "2"}\n')
    assert "train 1" in distill("run", "problems", "-p", "p.yaml", cwd=project).stdout


def test_an_empty_heldout_set_is_reported_before_the_teacher_samples(project: Path) -> None:
    use_problem_file(project, '{"q": "1 + 1", "a": "2"}\n')
    with (project / "p.yaml").open("a") as file:
        file.write('  evaluate: {problems: problems, models: {teacher: "embedded:teacher"}}\n')
    line = refused_after_lines("run", "-p", "p.yaml", cwd=project)
    assert line == "distill: stage evaluate: problems holds no heldout problem to measure on"
    assert not list(project.glob("runs/small/manifests/generate/*.json"))


def test_another_programs_database_is_left_alone(project: Path) -> None:
    import duckdb

    store = project / "runs/small/store.duckdb"
    store.parent.mkdir(parents=True)
    with duckdb.connect(str(store)) as connection:
        connection.execute("CREATE TABLE traces (mine INTEGER)")
    for command in (["run"], ["traces", "stats"]):
        assert "another program's database" in refused_after_lines(*command, "-p", "p.yaml", cwd=project)
    with duckdb.connect(str(store)) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("traces",)]


@pytest.mark.parametrize(
    "made",
    [
        "DROP TABLE schema_versions; CREATE TABLE migrations (name VARCHAR, checksum VARCHAR, applied TIMESTAMP)",
        "UPDATE schema_versions SET checksum = 'of another version 1'",
    ],
)
def test_a_store_of_a_development_version_is_refused(made: str, project: Path) -> None:
    import duckdb

    use_problem_file(project, '{"q": "1 + 1", "a": "2"}\n')
    distill("run", "problems", "-p", "p.yaml", cwd=project)
    with duckdb.connect(str(project / "runs/small/store.duckdb")) as connection:
        connection.execute(made)
    changed = ["plan", "--limit", "1"]  # reads no trace, as the problems would be made anew
    for command in (["run"], ["run", "--dry-run"], ["plan"], changed, ["traces", "stats"]):
        line = refused_after_lines(*command, "-p", "p.yaml", cwd=project)
        assert "store.duckdb: made by a development version of distill" in line
        assert "move the workspace away or remove it" in line


@pytest.mark.parametrize("workspace", ["x" * 300, "/proc/xx", "dangling"])
def test_an_impossible_workspace_is_a_one_line_error(workspace: str, project: Path) -> None:
    (project / "dangling").symlink_to(project / "unmounted")
    refused("run", "-p", "p.yaml", "--workspace", workspace, cwd=project)


def test_a_run_needs_no_locale_that_has_its_characters(tmp_path: Path) -> None:
    jsonl = '{"q": "2 + 2", "a": "4"}\n{"q": "3 + 3", "a": "6"}\n'
    (tmp_path / "p.jsonl").write_text(jsonl)
    source = "{file: p.jsonl, prompt: q, reference: a, verifier: exact, instruction: Ответ}"
    text = f"name: small\nstages:\n  задачи: {{kind: problems, sources: [{source}]}}\n"
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    latin = {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    latin |= {"PYTHONIOENCODING": "latin-1"}
    for expected in ("done in", "cached"):
        result = subprocess.run(
            [sys.executable, "-m", "distill", "run", "-p", "p.yaml"], cwd=tmp_path, env=os.environ | latin,
            capture_output=True, text=True,
        )  # fmt: skip
        assert (result.returncode, expected in result.stdout, result.stderr) == (0, True, "")
        assert "\\u0437\\u0430" in result.stdout


def test_a_command_may_be_started_without_stdout(done: Path) -> None:
    command = f"{sys.executable} -m distill card -p p.yaml >&-"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, shell=True, cwd=done, env=environment, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_closed_pipe_does_not_end_a_run(project: Path) -> None:
    command = f"{sys.executable} -m distill run problems -p p.yaml | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command], cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 1), result.stderr
    assert list(project.glob("runs/small/manifests/problems/*.json"))


def test_the_last_line_of_each_run_in_a_log_has_a_date(project: Path) -> None:
    """Of a run that is done, one that stopped and one that failed, as a cron job appends them."""
    run = f"{sys.executable} -m distill run problems -p p.yaml >> night.log 2>&1"
    jobs = f"{run}; {run} --force problems --max-time 0s; {run} --limit 0"
    subprocess.run(["bash", "-c", jobs], cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    ends = ["1 stage up to date in ", "distill: stopped ", "distill: Invalid value for '--limit'"]
    log = (project / "night.log").read_text()
    assert re.findall(f"^{date}({'|'.join(ends)})", log, re.MULTILINE) == ends, log


@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
def test_a_log_that_cannot_be_written_does_not_end_a_run(where: str, project: Path) -> None:
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m distill run problems -p p.yaml {where}"],
        cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0
    lines = result.stderr.splitlines()
    assert ["distill: nothing more can be printed (No space left" in line for line in lines] == [True] * (
        where != ">&-"
    )
    assert list(project.glob("runs/small/manifests/problems/*.json"))


@dataclass(frozen=True)
class Terminal:
    """Makes a terminal standard output."""

    name: str

    def __call__(self) -> None:
        os.dup2(os.open(self.name, os.O_RDWR | os.O_NOCTTY), 1)


def test_a_terminal_that_closes_does_not_end_a_run_in_another_session(project: Path) -> None:
    """With the live display, which draws from its own thread."""
    ours, theirs = os.openpty()
    run = Command(project, "run", "-p", "p.yaml", "--limit", "1", first=Terminal(os.ttyname(theirs)))
    os.read(ours, 1)
    os.close(theirs)
    os.close(ours)
    _, said = run.ended()
    assert said.startswith("distill: nothing more can be printed (")
    assert len(said.splitlines()) == 1
    assert list(project.glob("runs/small/manifests/verify/*.json"))


def test_a_table_on_a_terminal_fits_its_width_and_loses_nothing() -> None:
    row = {
        "stage": "select-unverified",
        "why": "waits for verify-hot and " * 5,
        "work": "3,000 traces, " * 4,
        "n": 1234,
    }
    wide = table.render([row, row], width=1000)
    assert len(wide.splitlines()) == 4  # in a pipe a row is a line
    for columns in (60, 80, 100):
        lines = table.render([row, row], width=1000, columns=columns).splitlines()
        assert max(map(len, lines)) <= columns
        assert sorted(" ".join(lines[2:]).split()) == sorted(" ".join(wide.splitlines()[2:]).split())
        assert sum(line.startswith("select-unverified") for line in lines) == 2
    assert table.render([row, row], width=1000, columns=30) == wide  # too narrow for it


def test_the_lines_of_a_log_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    lines = display.PlainLines()
    lines.begin(["sft", "select-unverified"])
    lines.note("sft", "one")
    lines.note("select-unverified", "two")
    one, two = capsys.readouterr().out.splitlines()
    assert one.index("one") == two.index("two")


def test_the_live_display_says_that_a_run_is_stopping(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the request on. And ^C, which the terminal writes after the last row, fits into that row's line."""
    for name, value in (("TTY_COMPATIBLE", "1"), ("TERM", "xterm"), ("COLUMNS", "80"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    stopper = Stopper()
    shown = Live(stopper)
    shown.begin(["generate"])
    shown.start("generate", cast(StagePlan, None))
    shown.progress("generate", 3, 9, {"tokens_per_second": 123_456_789, "and": "a long text, " * 9})
    shown.note("generate", "before")
    stopper.reason = "SIGINT"
    shown.note("generate", "after")
    before, after = capsys.readouterr().out.split("after")
    assert "running" in before and "stopping" not in before
    assert "stopping" in after and "Ctrl-C again" in after
    rows = [re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", line) for line in before.splitlines()]
    assert max(len(line) for line in rows if "running" in line) == 78
    shown.close()


@pytest.mark.parametrize("command", [(), ("traces", "list")])
def test_help_has_a_short_option(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert distill(*command, "-h", cwd=tmp_path).stdout == distill(*command, "--help", cwd=tmp_path).stdout != ""


def test_the_shell_completes_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("_DISTILL_COMPLETE", "complete_bash"),
        ("COMP_WORDS", "distill traces l"),
        ("COMP_CWORD", "2"),
    ):
        monkeypatch.setenv(name, value)
    assert distill(cwd=tmp_path).stdout.split() == ["list"]


def test_a_command_stopped_before_it_began_exits_with_75(project: Path) -> None:
    """The pipeline file is a pipe that nobody writes to, so the command is certainly still reading it."""
    os.mkfifo(project / "pipe.yaml")
    run = subprocess.Popen(
        [sys.executable, "-m", "distill", "run", "-p", "pipe.yaml"],
        cwd=project, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with open(project / "pipe.yaml", "w"):
        run.terminate()
        _, said = run.communicate()
    assert (run.returncode, said) == (75, "distill: interrupted; what was made is kept, run the same command again\n")


def test_a_signal_after_the_end_of_a_command_changes_nothing(tmp_path: Path) -> None:
    code = (
        "import atexit, os, signal, sys; from distill.__main__ import main\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM); sys.argv = ['distill', '--version']; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")


def test_json_rows_have_null_for_nan_and_unique_column_names(done: Path) -> None:
    query = "SELECT 1/0 AS x, [0.5, 'nan'::DOUBLE] AS x, NULL AS y, 1 AS x"
    printed = distill("traces", "sql", query, "-p", "p.yaml", "--json", cwd=done).stdout
    assert printed == '{"x": null, "x_1": [0.5, null], "y": null, "x_2": 1}\n'


def test_an_empty_query_is_refused(done: Path) -> None:
    assert "the query is empty" in refused("traces", "sql", " ; ", "-p", "p.yaml", cwd=done)


def test_the_line_of_a_stage_shows_nested_counts_and_no_more_than_fits() -> None:
    figures = {"members": 120, "kept": 62, "rejected": {"duplicate": 54, "incorrect": 4}, "bias": {"by": "level"}}
    assert display.phrase(figures) == "kept 62, rejected duplicate 54, rejected incorrect 4"
    assert display.phrase({"heldout_pass_at_1": 0.5}) == "heldout pass@1 0.5"
    assert display.phrase({"loss": math.nan, "perplexity": math.inf}) == "loss nan, perplexity inf"
    assert display.phrase({f"clip_{n}": n for n in range(30)}).endswith("clip 6 6, clip 7 7, …")
