"""`distill prune` on the command line, in a workspace filled by real trainings with two settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, Command

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
YAML = """\
name: small
stages:
  problems: {sources: [{family: calc, train: 16, heldout: 4}]}
  generate: {problems: problems, teacher: "embedded:teacher", sampling: {max_tokens: 96}}
  verify: {traces: generate}
  select: {verdicts: verify}
  sft: {data: select, student: "embedded:student-base", lora: {rank: 4}, batch_size: 4, epochs: 2}
"""
OTHER = ("--set", "sft.epochs=3")
SPACE = Path("runs/small")
pytestmark = pytest.mark.slow


def distill(directory: Path, *arguments: str, code: int = 0) -> str:
    """The output on stdout, or with an exit code the line on stderr."""
    out, err = Command(directory, *arguments).ended(code)
    if code:
        assert len(err.strip().splitlines()) == 1, err
    return err if code else out


def rows(directory: Path, command: str, *arguments: str) -> list[dict[str, Any]]:
    out = distill(directory, command, "-p", "p.yaml", "--json", *arguments)
    return [json.loads(line) for line in out.splitlines()]


def statuses(directory: Path, *arguments: str) -> dict[str, str]:
    return {row["stage"]: row["status"] for row in rows(directory, "plan", *arguments)}


def tree(directory: Path) -> dict[str, str]:
    """Each file and link of the workspace with its content, except the lock and the cache of hashes."""
    space, found = directory / SPACE, {}
    for path in (path for path in space.rglob("*") if path.name not in (".lock", ".hashes.json")):
        if path.is_symlink():
            found[str(path.relative_to(space))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(space))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def of(files: dict[str, str], *places: str) -> dict[str, str]:
    return {name: value for name, value in files.items() if name.split("/")[0] in places}


def stop_in_training(directory: Path, *arguments: str) -> None:
    """Send SIGTERM after the first step, so that a checkpoint is written."""
    process = Command(directory, "run", "-p", "p.yaml", "--json", *arguments)
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["stage"] == "sft":
            os.killpg(process.pid, signal.SIGTERM)
            break
    _, err = process.communicate()
    assert process.returncode == 75, err


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("filled")
    (directory / "p.yaml").write_text(YAML)
    distill(directory, "run", "-p", "p.yaml")
    distill(directory, "run", "-p", "p.yaml", *OTHER)
    return directory


@pytest.fixture
def project(filled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(filled, tmp_path / "p", symlinks=True)


def test_without_yes_nothing_is_deleted_and_both_settings_stay_cached(project: Path) -> None:
    before = tree(project)
    (row,) = rows(project, "prune")
    assert row["path"].startswith("artifacts/sft-")
    assert row["why"] == "sft with other settings, inputs or version (epochs: 3 -> 2)"
    assert row["bytes"] == sum(f.stat().st_size for f in (project / SPACE / row["path"]).rglob("*") if f.is_file())
    assert "1 to delete" in (out := distill(project, "prune", "-p", "p.yaml")) and "--yes deletes" in out
    assert tree(project) == before
    assert set(statuses(project).values()) == set(statuses(project, *OTHER).values()) == {"cached"}


def test_plan_reports_a_pruned_result_as_gone(project: Path) -> None:
    before = tree(project)
    distill(project, "prune", "-p", "p.yaml", "--yes")
    after = tree(project)
    gone = before.keys() - after.keys()
    assert after.items() <= before.items()
    assert {name.split("/")[0] for name in gone} == {"artifacts", "sft"}  # with the link to the newest result
    assert set(statuses(project).values()) == {"cached"}
    assert rows(project, "prune") == []
    planned = {row["stage"]: row for row in rows(project, "plan", *OTHER)}
    assert (planned["select"]["status"], planned["sft"]["status"]) == ("cached", "will run")
    assert re.fullmatch(r"its artifact artifacts/sft-\w+ is gone", planned["sft"]["reasons"][0])
    lineage = distill(project, "traces", "sql", "-w", str(SPACE), "--json", "SELECT count(*) AS n FROM lineage")
    assert json.loads(lineage.splitlines()[0])["n"] > 0
    assert "made no student yet" in distill(project, "ask", "1 + 1", "-p", "p.yaml", "-m", "sft", code=2)


def test_results_that_a_named_pipeline_needs_and_young_ones_are_kept(project: Path) -> None:
    (project / "other.yaml").write_text(
        re.sub(r"  sft: {", "  trained: {kind: sft, ", YAML).replace("epochs: 2", "epochs: 3")
    )
    assert rows(project, "prune", "-p", "other.yaml") == []
    (project / "without.yaml").write_text(YAML[: YAML.index("  sft:")])
    out = distill(project, "prune", "-p", "without.yaml", "--json")
    assert [json.loads(line)["why"] for line in out.splitlines()] == ["sft: no named pipeline has this stage"] * 2
    assert rows(project, "prune", "--keep-days", "1") == []
    (row,) = rows(project, "prune")
    for file in (project / SPACE / row["path"]).rglob("*"):
        os.utime(file, (time.time() - 2 * 86400,) * 2)
    assert [found["path"] for found in rows(project, "prune", "--keep-days", "1")] == [row["path"]]


def test_results_that_a_waiting_stage_may_still_need_are_kept(project: Path) -> None:
    """More samples may select the same traces in the end, but other epochs are known not to be needed."""
    (row,) = rows(project, "prune", "--set", "generate.samples=2")
    assert row["why"] == "sft with other settings or inputs"
    assert row["path"] == rows(project, "prune")[0]["path"]
    assert "stages wait for others" in distill(project, "prune", "-p", "p.yaml", "--set", "generate.samples=2")


def test_a_stopped_training_resumes_after_a_prune(project: Path) -> None:
    """Even one that makes again what an earlier prune deleted, as its checkpoints are not those of a finished stage. It
    ends with the same files."""
    before = tree(project)
    distill(project, "prune", "-p", "p.yaml", "--yes")
    stop_in_training(project, *OTHER)
    begun = of(tree(project), "work")
    assert any(name.endswith("/COMPLETE") for name in begun)
    rows(project, "prune", "--yes", *OTHER)
    assert of(tree(project), "work") == begun
    (row,) = rows(project, "prune")
    assert (
        row["path"].startswith("work/sft-")
        and row["why"] == "unfinished: sft with other settings, inputs or version (epochs: 3 -> 2)"
    )
    out = distill(project, "run", "-p", "p.yaml", "--json", *OTHER)
    steps = [e["done"] for e in map(json.loads, out.splitlines()) if e["event"] == "progress" and e["stage"] == "sft"]
    assert min(steps) > 1, "it began anew"
    made = of(tree(project), "artifacts", "sft")
    assert made and made.items() <= before.items()


def test_checkpoints_of_other_settings_are_deleted(project: Path) -> None:
    stop_in_training(project, "--set", "sft.epochs=4")
    found = {row["path"].split("-")[0]: row["why"] for row in rows(project, "prune", "--yes")}
    assert found.keys() == {"work/sft", "artifacts/sft"}
    assert found["work/sft"] == "unfinished: sft without a record"
    assert not of(tree(project), "work")


def test_prune_does_not_start_beside_a_run(project: Path) -> None:
    process = Command(project, "run", "-p", "p.yaml", "--json", "--set", "sft.epochs=9")
    for line in process.stdout:
        if json.loads(line)["event"] == "start":
            break
    try:
        assert f"process {process.pid}" in distill(project, "prune", "-p", "p.yaml", "--yes", code=75)
    finally:
        process.kill()


KILLED = """
import os, signal, sys
def unlink(event, arguments, left=[50]):
    if event == "os.remove" and os.path.basename(arguments[0]).isdigit():
        left[0] -= 1
        if left[0] < 0:
            os.killpg(0, signal.SIGKILL)
sys.addaudithook(unlink)
sys.argv = ["distill", "prune", "-p", "p.yaml", "--yes"]
from distill.__main__ import main
main()
"""
"""Killed after it has deleted 50 files."""


def test_a_killed_prune_leaves_no_partial_result_and_can_be_run_again(project: Path, tmp_path: Path) -> None:
    (row,) = rows(project, "prune")
    artifact = project / SPACE / row["path"]
    (artifact / "many").mkdir()
    for number in range(100):
        (artifact / "many" / str(number)).touch()
    undisturbed = shutil.copytree(project, tmp_path / "undisturbed", symlinks=True)
    distill(undisturbed, "prune", "-p", "p.yaml", "--yes")
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=project, env=ENVIRONMENT, start_new_session=True)
    assert killed.returncode == -signal.SIGKILL
    left = list((project / SPACE / "artifacts").glob(".tmp-*/sft-*"))
    assert left and len(list(left[0].glob("many/*"))) == 50
    assert statuses(project, *OTHER)["sft"] == "will run"
    assert [found["why"] for found in rows(project, "prune")] == ["left by a killed run"]
    distill(project, "prune", "-p", "p.yaml", "--yes")
    assert tree(project) == tree(undisturbed)


def test_files_that_distill_did_not_make_are_kept(project: Path) -> None:
    space = project / SPACE
    shutil.copytree(space / rows(project, "prune")[0]["path"], space / "artifacts/my-favourite")
    (space / "artifacts/sft-0123456789ab").symlink_to(project)
    (space / "best").symlink_to("artifacts/my-favourite")
    assert len(rows(project, "prune", "--yes")) == 1
    assert (space / "best/model/config.json").is_file() and (space / "artifacts/sft-0123456789ab/p.yaml").is_file()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "name the pipelines whose results to keep"),
        (("-p", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("-p", "p.yaml", "-w", "nowhere"), "nowhere: no such workspace"),
        (("-p", "p.yaml", "-p", "far.yaml"), "their workspaces are runs/small and runs/far"),
        (("-p", "p.yaml", "--set", "sft.epoch=3"), "did you mean 'epochs'"),
    ],
)
def test_bad_input_is_one_line(filled: Path, arguments: tuple[str, ...], expected: str) -> None:
    (filled / "far.yaml").write_text(YAML.replace("name: small", "name: far"))
    assert expected in distill(filled, "prune", *arguments, code=2)
    assert not (filled / "nowhere").exists()


LIGHT = """
import sys
sys.argv = ["distill", "prune", "--pipeline", "p.yaml", "--json"]
from distill.cli.main import main
try:
    main()
finally:
    print([name for name in ("torch", "transformers", "duckdb", "pyarrow") if name in sys.modules], file=sys.stderr)
"""


def test_prune_loads_no_heavy_library(filled: Path) -> None:
    result = subprocess.run([sys.executable, "-c", LIGHT], cwd=filled, capture_output=True, text=True, env=ENVIRONMENT)
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.strip() == "[]"
