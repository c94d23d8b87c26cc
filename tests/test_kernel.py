"""The stage kernel, tested with stages that count letters: it knows nothing of language models."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from recording import RecordingListener

from pipeline import config, fingerprint, runner
from pipeline.errors import Busy, Exit, InputError, PipelineError, Stopped
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.forking import held_back
from pipeline.mistakes import nearest
from pipeline.plan import plan as make_plan
from pipeline.stage import File, Forecast, Input, Operational, Output, Settings, Stage
from pipeline.stopping import Stopper, parse_duration
from pipeline.workspace import Clock, Workspace


class TextSettings(Settings):
    file: Annotated[str, File()]
    also: Annotated[str | None, File()] = None
    limit: int | None = None


class CountSettings(Settings):
    text: Annotated[str, Input(accepts=("text",))]
    letter: str = "a"
    batch: Annotated[int, Operational()] = 1
    seed: int = 0


class SumSettings(Settings):
    counts: Annotated[list[str], Input(accepts=("count",)), Field(min_length=1)]
    model: Annotated[str, Input(accepts=("count",), prefix="stage:")] = "given:7"


class ShowSettings(Settings):
    counted: Annotated[str, Input(accepts=("count",), figures=True)]


class LetterSettings(Settings):
    letter: str


class NestedSettings(Settings):
    of: list[LetterSettings]


def read_text(context: Any, settings: TextSettings) -> Output:
    built = context.work / "built"
    built.mkdir(exist_ok=True)
    (built / "text").write_text(Path(settings.file).read_text().strip()[: settings.limit])
    return Output(context.publish(built))


def count(context: Any, settings: CountSettings) -> Output:
    directory = context.workspace / context.inputs[settings.text].artifact
    found = (directory / "text").read_text().count(settings.letter)
    return Output(content_hash(found), {"count": found, "length": len((directory / "text").read_text())})


def total(context: Any, settings: SumSettings) -> Output:
    return Output("sum", {"sum": sum(context.inputs[name].figures["count"] for name in settings.counts)})


STAGES = {
    "text": Stage("text", "", TextSettings, "text", read_text, forecast=lambda c, s, e: Forecast("texts", 1)),
    "count": Stage("count", "", CountSettings, "count", count),
    "sum": Stage("sum", "", SumSettings, "sum", total),
    "show": Stage("show", "", ShowSettings, "page", lambda c, s: Output(str(c.inputs[s.counted].figures["length"]))),
}

YAML = """\
name: letters
seed: 3
stages:
  text: {file: input.txt}
  a: {kind: count, text: text}
  b: {kind: count, text: text, letter: b}
  sum: {counts: [a, b]}
"""


def lookup(kind: str) -> Stage:
    if kind not in STAGES:
        raise InputError(f"no stage is called {kind!r}{nearest(kind, STAGES)}")
    return STAGES[kind]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input.txt").write_text("banana bread")
    (tmp_path / "p.yaml").write_text(YAML)
    return tmp_path


def load(text: str | None = None, **options: Any) -> config.PipelineSpec:
    if text is not None:
        Path("p.yaml").write_text(text)
    return config.load(Path("p.yaml"), lookup, **options)


def run(
    spec: config.PipelineSpec,
    targets: tuple[str, ...] = (),
    stopping: Callable[[], bool] = lambda: False,
    force: tuple[str, ...] = (),
) -> list[str]:
    listener = RecordingListener()
    runner.run(spec, Workspace(spec.workspace), listener, stopping, targets, force)
    return listener.ran


def plans(spec: config.PipelineSpec) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {p.spec.name: (str(p.status), p.reasons) for p in make_plan(spec, Workspace(spec.workspace))}


# -- running and caching -----------------------------------------------------------------------


def test_a_second_run_does_nothing(project: Path) -> None:
    assert run(load()) == ["text", "a", "b", "sum"]
    assert run(load()) == []
    assert Path("runs/letters/text/text").read_text() == "banana bread"  # the link by stage name


def test_a_stage_runs_with_what_it_needs(project: Path) -> None:
    assert run(load(), ("b",)) == ["text", "b"]
    assert run(load()) == ["a", "sum"]


def test_a_changed_setting_reruns_that_stage_and_says_why(project: Path) -> None:
    run(load())
    changed = load(overrides=["b.letter=n"])
    assert plans(changed)["b"] == ("will run", ('letter: "b" -> "n"',))
    assert plans(changed)["a"][0] == "cached"
    assert plans(changed)["sum"] == ("will run", ("waits for b",))
    assert run(changed) == ["b"]  # "banana bread" has as many n as b: the same digest, so `sum` does not run again
    assert run(load()) == []  # going back costs nothing


def test_comments_key_order_names_and_operational_settings_rerun_nothing(project: Path) -> None:
    run(load())
    same = """\
# another comment
stages:
  sum: {counts: [first, b]}
  b: {letter: b, kind: count, text: text, batch: 99}
  first: {text: text, kind: count}
  text: {file: input.txt}
seed: 3
name: letters
"""
    assert run(load(same)) == []


def test_a_renamed_stage_is_shown_by_its_new_name(project: Path) -> None:
    run(load())
    renamed = YAML.replace("  a:", "  first:").replace("[a, b]", "[first, b]")
    done = runner.run(load(renamed), Workspace(load().workspace), RecordingListener(), lambda: False)
    assert [made.stage for made, _ in done] == ["text", "first", "b", "sum"] and all(cached for _, cached in done)
    changed = load(renamed, overrides=["first.letter=n"])
    assert plans(changed)["first"] == ("will run", ('letter: "a" -> "n"',))


def test_an_edited_input_file_is_detected_by_content(project: Path) -> None:
    run(load())
    Path("input.txt").touch()
    assert run(load()) == []
    Path("input.txt").write_text("bandana bread")
    assert plans(load())["text"] == ("will run", ("content of file[0] changed",))
    assert run(load()) == ["text", "a", "b"]  # the counts are the same, so `sum` does not run again


def test_a_file_that_is_no_longer_read_is_not_reported_as_changed(project: Path) -> None:
    run(load(YAML.replace("{file: input.txt}", "{file: input.txt, also: input.txt}")))
    _, reasons = plans(load(YAML))["text"]
    assert "also[0] is no longer read" in reasons and not [reason for reason in reasons if "content of" in reason]


def test_a_failed_attempt_that_left_nothing_does_not_count_as_partly_done(project: Path) -> None:
    (project / "input.txt").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        run(load())
    assert plans(load())["text"] == ("will run", ("never finished",))


def test_a_lost_artifact_is_made_again(project: Path) -> None:
    run(load())
    shutil.rmtree("runs/letters/artifacts")
    assert "is gone" in plans(load())["text"][1][0]
    assert run(load()) == ["text"]


def test_a_changed_artifact_is_made_again_unless_only_its_readme_changed(project: Path) -> None:
    run(load())
    (file,) = Path("runs/letters/artifacts").rglob("text")
    file.with_name("README.md").write_text("mine")
    assert run(load()) == []
    file.write_text("changed")
    assert "was changed: text" in plans(load())["text"][1][0]
    assert run(load()) == ["text"]
    file.unlink()
    assert "lacks text" in plans(load())["text"][1][0]


def test_a_stage_that_reads_figures_runs_again_when_they_change(project: Path) -> None:
    run(load())
    yaml = YAML + "  show: {counted: a}\n"
    assert run(load(yaml)) == ["show"]
    Path("input.txt").write_text("banana bead")  # the same counts and so the same digests, but another length
    assert run(load(yaml)) == ["text", "a", "b", "show"]
    assert run(load(yaml)) == []


def test_an_incomplete_result_is_not_recorded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = replace(STAGES["count"], check=lambda context, manifest: "it has 1 of its 2 rows")
    monkeypatch.setitem(STAGES, "count", half)
    with pytest.raises(
        PipelineError, match="stage a: its result is incomplete and was not recorded: it has 1 of its 2"
    ):
        run(load())
    assert not list(Path("runs/letters/manifests/count").glob("*.json"))


def test_a_stage_that_the_settings_make_impossible_is_refused_before_anything_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the impossible stage comes after others, which would run for nothing."""
    picky = replace(STAGES["count"], refuse=lambda own, figures: f"{figures[own.text]['texts']} is too few")
    monkeypatch.setitem(STAGES, "picky", replace(picky, kind="picky"))
    listener, spec = (
        RecordingListener(),
        load(YAML + "  late: {kind: text, file: input.txt}\n  c: {kind: picky, text: late}\n"),
    )
    with pytest.raises(InputError, match="stage c: 1 is too few"):
        runner.run(spec, Workspace(spec.workspace), listener, lambda: False)
    assert listener.ran == []
    assert run(spec, ("sum",)) == ["text", "a", "b", "sum"]


def test_a_stage_that_has_nothing_to_do_is_not_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example because it was made on a machine that has what this one lacks."""
    spec = load()
    run(spec, ("b",))
    lacking = replace(STAGES["count"], refuse=lambda own, _: "no b is known here" if own.letter == "b" else None)
    monkeypatch.setitem(STAGES, "count", lacking)
    assert run(load()) == ["a", "sum"]
    listener = RecordingListener()
    with pytest.raises(InputError, match="stage b: no b is known here"):  # when forced, it has something to do
        runner.run(load(), Workspace(spec.workspace), listener, lambda: False, force=("a", "b"))
    assert listener.ran == []
    Path("input.txt").write_text("other letters")
    with pytest.raises(InputError, match="stage b: no b is known here"):
        run(load())


@pytest.mark.parametrize("fault", ["gone", "again"])
def test_a_stage_that_must_be_made_again_is_refused_before_others_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """For example a deleted student, on a machine that cannot train it, while another branch of stages has work."""
    monkeypatch.setitem(STAGES, "last", replace(STAGES["text"], kind="last"))
    spec = load("name: letters\nstages:\n  a: {kind: text, file: input.txt}\n  b: {kind: last, file: input.txt}\n")
    run(spec, ("b",))
    if fault == "gone":
        shutil.rmtree("runs/letters/artifacts")
    again = (lambda found: "a part of it failed") if fault == "again" else None
    lacking = replace(STAGES["last"], refuse=lambda own, _: "no b is known here", again=again)
    monkeypatch.setitem(STAGES, "last", lacking)
    listener, spec = RecordingListener(), load()
    with pytest.raises(InputError, match="stage b: no b is known here"):
        runner.run(spec, Workspace(spec.workspace), listener, lambda: False)
    assert listener.ran == []


def test_a_stage_with_a_name_that_the_workspace_uses_is_refused_before_it_runs(project: Path) -> None:
    listener = RecordingListener()
    spec = load(YAML.replace("  a:", "  work:").replace("[a, b]", "[work, b]"))
    with pytest.raises(InputError, match=r"work: is in the way of a link .* rename the stage"):
        runner.run(spec, Workspace(spec.workspace), listener, lambda: False)
    assert listener.ran == []


def test_a_stage_with_a_damaged_manifest_runs_again(project: Path) -> None:
    run(load())
    for path in Path("runs/letters/manifests/count").glob("*.json"):
        path.write_text(path.read_text()[:-40])
    assert run(load()) == ["a", "b"]


def test_force_runs_a_stage_again(project: Path) -> None:
    run(load())
    assert run(load(), force=("a",)) == ["a"]
    with pytest.raises(InputError, match="did you mean 'sum'"):
        load().closure(["summ"])


def test_seed_and_limit_reach_the_stages_that_have_them(project: Path) -> None:
    run(load())
    assert run(load(overrides=["seed=4"])) == ["a", "b"]
    assert run(load(limit=3)) == ["text", "a", "b", "sum"]
    assert Path("runs/letters/text/text").read_text() == "ban"


def test_an_input_edited_during_the_run_is_not_recorded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit_while_running(context: Any, settings: TextSettings) -> Output:
        output = read_text(context, settings)
        Path(settings.file).write_text("edited meanwhile")
        return output

    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "text", Stage("text", "", TextSettings, "text", edit_while_running))
        with pytest.raises(PipelineError, match="was changed while the stage ran"):
            run(load(), ("text",))
    assert run(load(), ("text",)) == ["text"]


def test_a_request_to_stop_is_checked_before_each_stage(project: Path) -> None:
    answers = iter([False, True])
    with pytest.raises(Stopped):
        run(load(), stopping=lambda: next(answers))
    assert run(load()) == ["a", "b", "sum"]


# -- mistakes in the YAML ----------------------------------------------------------------------

MISTAKES = {
    "list": ("- a\n- b\n", "p.yaml:1: is a list; expected a mapping"),
    "empty": ("# nothing\n", "p.yaml:1: the file is empty"),
    "syntax": ("name: x\nstages: [a, b\n", "not valid YAML"),
    "no date": ("name: x\nseed: 2024-13-45\n", "not valid YAML: month must be in 1..12"),
    "in itself": ("stages: &a [*a]\n", "not valid YAML: something in it contains itself"),
    "key": ("? [a]\n: b\n", "p.yaml:1: a key must be a single value"),
    "twice": (YAML.replace("seed: 3", "name: y"), "p.yaml:2: name: duplicate key (first on line 1)"),
    "top key": (YAML.replace("seed:", "sede:"), "p.yaml:2: sede: unknown key; did you mean 'seed'?"),
    "a path as name": (
        YAML.replace("name: letters", "name: ../up"),
        "'../up' cannot be a directory name; `workspace` takes",
    ),
    "top type": (YAML.replace("seed: 3", "seed: three"), "p.yaml:2: seed: expected a whole number, found 'three'"),
    "no stages": ("name: x\n", "stages: is missing"),
    "kind": (
        YAML.replace("kind: count, text: text}", "kind: cuont, text: text}"),
        "p.yaml:5: stages.a.kind: no stage is called 'cuont'; did you mean 'count'?",
    ),
    "unknown key": (
        YAML.replace("letter: b", "leter: b"),
        "p.yaml:6: stages.b.leter: unknown key; did you mean 'letter'?",
    ),
    "unknown keys": (
        YAML.replace("letter: b", "leter: b, more: 1, again: 2"),
        "p.yaml:6: stages.b.leter: unknown key; did you mean 'letter'? (unknown here too: more, again)",
    ),
    "unknown for a needed one": (
        YAML.replace("{file: input.txt}", "{flie: input.txt}"),
        "p.yaml:4: stages.text.flie: unknown key; did you mean 'file'?",
    ),
    "type": (YAML.replace("letter: b", "letter: 5"), "p.yaml:6: stages.b.letter: should be text, found 5"),
    "no name": (YAML.replace("letters", "''", 1), "p.yaml:1: name: '' cannot be a directory name"),
    "name elsewhere": (YAML.replace("letters", "../x", 1), "p.yaml:1: name: '../x' cannot be a directory name"),
    "no workspace": ('workspace: ""\n' + YAML, "p.yaml:1: workspace: '' cannot be a directory name"),
    "workspace": ('workspace: "a\\0b"\n' + YAML, "cannot be a directory name"),
    "directory": (YAML.replace("input.txt", "."), "p.yaml:4: stages.text.file: .: is not a file"),
    "stage name": ("stages:\n  1: {}\n", "p.yaml:2: stages.1: a stage name has only letters"),
    "no kind": (YAML.replace("kind: count, text: text}", "text: text}"), "set its `kind`"),
    "no list": (
        YAML.replace("[a, b]", "a"),
        "p.yaml:7: stages.sum.counts: should be a list, found 'a'; write [a]",
    ),
    "too few": (YAML.replace("[a, b]", "[]"), "p.yaml:7: stages.sum.counts: should hold at least 1, holds 0"),
    "file": (YAML.replace("input.txt", "inptu.txt"), "p.yaml:4: stages.text.file: inptu.txt: no such file"),
    "nothing feeds": (
        YAML.replace("kind: count, text: text}", "kind: count}"),
        "p.yaml:5: stages.a.text: is missing: nothing feeds this stage; name one that makes text",
    ),
    "unknown stage": (YAML.replace("[a, b]", "[a, c]"), "p.yaml:7: stages.sum.counts.1: no stage is called 'c'"),
    "wrong kind": (YAML.replace("[a, b]", "[a, text]"), "stage 'text' makes text; needed: count, made by a, b"),
    "cycle": (
        "name: x\nstages:\n  sum: {counts: [a], model: 'stage:a'}\n  a: {kind: loop, text: sum}\n",
        "feed each other in a cycle",
    ),
    "settings": (
        YAML.replace("{file: input.txt}", "5"),
        "p.yaml:4: stages.text: expected a mapping of settings, found 5",
    ),
}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "learning_rate"),
        ("num_train_epochs", "epochs"),
        ("device_train_batch_size", "batch_size"),
        ("temp", "temperature"),
    ],
)
def test_a_shorter_or_longer_form_of_a_name_is_suggested(name: str, meant: str) -> None:
    valid = ["lora", "norm_learning_rate", "epochs", "size", "learning_rate", "batch_size", "temperature"]
    assert nearest(name, valid) == f"; did you mean {meant!r}?"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_one_line_error_with_its_place(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LoopSettings(Settings):
        text: Annotated[str, Input(accepts=("sum",))]

    monkeypatch.setitem(STAGES, "loop", Stage("loop", "", LoopSettings, "count", count))
    text, expected = MISTAKES[name]
    with pytest.raises(InputError) as caught:
        load(text)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert caught.value.exit_code is Exit.INPUT


def test_a_file_that_is_not_utf8_is_an_error_with_the_line(project: Path) -> None:
    (project / "p.yaml").write_bytes(YAML.replace("letters", "letters  # für").encode("latin-1"))
    with pytest.raises(InputError, match=r"p\.yaml:1: is not UTF-8 text; save it as UTF-8"):
        config.load(project / "p.yaml", lookup)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("b.leter=r", "unknown key; did you mean 'letter'?"),
        ("bb.letter=r", "no stage is called 'bb'"),
        ("letter", "expected stage.key=value"),
        ("b.letter.x=r", "'letter' holds a single value, not keys"),
        ("sum.counts.2=a", "a list of 2 items has no item '2', counting from 0"),
        ("sum.counts.0=c", "--set sum.counts.0=c: no stage is called 'c'"),
        ("b.letter=[", "not valid YAML"),
    ],
)
def test_a_mistaken_override_is_a_one_line_error(override: str, expected: str, project: Path) -> None:
    with pytest.raises(InputError, match=expected.replace("?", r"\?")):
        load(overrides=[override])


def test_an_override_changes_an_item_of_a_list_and_only_one_use_of_an_alias(project: Path) -> None:
    lists = "stages:\n  text: {kind: nested, of: &of [{letter: a}, {letter: b}]}\n  other: {kind: nested, of: *of}\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STAGES, "nested", Stage("nested", "", NestedSettings, "text", read_text))
        spec = load(lists, overrides=["text.of.1.letter=z"])
    letters = {name: [part.letter for part in stage.settings.of] for name, stage in spec.stages.items()}  # type: ignore[attr-defined]
    assert letters == {"text": ["a", "z"], "other": ["a", "b"]}


def test_a_workspace_may_lie_in_the_home_directory(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load("workspace: ~/runs\n" + YAML).workspace == Path("/home/me/runs")


def test_exponents_without_a_dot_are_numbers(project: Path) -> None:
    from pipeline.document import parse_value

    assert parse_value("5e-4") == 5e-4
    assert parse_value("1e3") == 1000.0
    assert parse_value("e5") == "e5"


# -- laws ----------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), plain, max_size=6))
def test_a_content_hash_does_not_depend_on_key_order(data: dict[str, Any]) -> None:
    assert content_hash(data) == content_hash(dict(reversed(list(data.items()))))


def test_remembered_file_hashes_notice_edits(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x").write_text("1")
    first = FileHashes(tmp_path / "memory")
    before = first.of(tmp_path / "d")
    first.save()
    assert FileHashes(tmp_path / "memory").of(tmp_path / "d") == before
    (tmp_path / "d/x").write_text("2 now")
    after = FileHashes(tmp_path / "memory").of(tmp_path / "d")
    assert after != before
    for damaged in ("", "[]", "3", '{"a": 1}', json.dumps({str(tmp_path / "d/x"): 1})):
        (tmp_path / "memory").write_text(damaged)
        assert FileHashes(tmp_path / "memory").of(tmp_path / "d") == after
        assert Clock.resume(tmp_path / "memory").before == 0.0


def test_hashing_a_large_file_is_noted_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    class Noted(RecordingListener):
        def note(self, stage: str, text: str) -> None:
            notes.append(f"{stage}: {text}")

    def again() -> list[str]:
        spec = load(YAML.replace("input.txt}", "input.txt, limit: 5}"))
        runner.run(spec, Workspace(spec.workspace), Noted(), lambda: False)
        return notes

    Path("input.txt").write_text("n" * (1 << 20))
    monkeypatch.setattr(fingerprint, "MUCH", 1 << 20)
    assert again() == ["text: reading input.txt for its content hash, once: 0.0 GiB"]
    assert again() == notes[:1]
    Path("input.txt").write_text("n" * ((1 << 20) - 1))
    assert again() == notes[:1]  # just below the limit


def test_file_hashes_are_saved_even_if_the_run_stops(project: Path) -> None:
    spec = load()
    with pytest.raises(Stopped):
        runner.run(spec, Workspace(spec.workspace), RecordingListener(), lambda: True)
    assert str(Path("input.txt").resolve()) in json.loads((spec.workspace / ".hashes.json").read_text())


def test_an_edit_that_keeps_size_and_time_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("1")
    hashes, status = FileHashes(), file.stat()
    before = hashes.of(file)
    file.write_text("2")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hashes.of(file) != before


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("3h50m", 13800), ("1.5m", 90)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "3x", "h", "-5s"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(InputError, match="write it as"):
        parse_duration(text)


# -- processes ------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.lock import workspace_lock
with workspace_lock(Path(sys.argv[1]), wait=False, stopping=lambda: False, command="holder"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_workspace_names_its_holder_and_a_killed_one_is_free(tmp_path: Path) -> None:
    from pipeline.lock import running, workspace_lock

    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(Busy, match=rf"in use by process {holder.pid} .*\(holder\)") as caught,
            workspace_lock(tmp_path, wait=False, stopping=lambda: False),
        ):
            pass
        assert caught.value.exit_code is Exit.AGAIN
        assert running(tmp_path) == holder.pid
        messages: list[str] = []
        with (
            pytest.raises(Busy, match="run this again when it has ended, or stop it"),
            workspace_lock(tmp_path, wait=True, stopping=lambda: bool(messages), waiting=messages.append),
        ):
            pass
        assert f"for process {holder.pid}" in messages[0]
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert running(tmp_path) is None, "whoever has its number now"
    with workspace_lock(tmp_path, wait=True, stopping=lambda: False, command="next"):
        assert "next" in (tmp_path / ".lock").read_text()


def test_a_file_system_without_locks_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like some network and user-space file systems, which cannot be mounted here."""
    from pipeline import lock

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with (
        pytest.raises(InputError, match=r"supports no locks .*choose a workspace on another"),
        lock.workspace_lock(tmp_path, wait=False, stopping=lambda: False),
    ):
        pass


FORKING = HOLDER.replace(
    '    print("held", flush=True)\n',
    """\
    import os
    if os.fork() == 0:  # says so itself: before that it may still be on its way to letting go
        print("held", flush=True)
""",
)


def test_a_child_that_outlives_a_killed_run_does_not_hold_the_workspace(tmp_path: Path) -> None:
    from pipeline.lock import workspace_lock

    holder = subprocess.Popen(
        [sys.executable, "-c", FORKING, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with workspace_lock(tmp_path, wait=False, stopping=lambda: False):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


FORKED = """
import os, signal
from pipeline.forking import fork
def wait(): signal.pause()
child = fork(wait, ())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    os.kill(child.pid, number)
child.join(0.2)
print(child.is_alive(), flush=True)
"""


def test_a_forked_child_leaves_signals_to_its_parent_and_ends_with_it() -> None:
    """It is not closed and ignores the SIGTERM of multiprocessing; the interpreter must still not wait for it."""
    result = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr, result.returncode) == ("True\n", "", 0)


HANGING = """
import ctypes, os, threading
from contextlib import suppress
from multiprocessing.connection import wait
from pipeline.forking import fork
def hang():
    os.write(1, b"%d\\n" % os.getpid())
    HANG
both, pipe = threading.Barrier(2), os.pipe
def slow_pipe():
    ends = pipe()
    with suppress(threading.BrokenBarrierError):
        both.wait(0.2)
    return ends
os.pipe = slow_pipe
children = []
threads = [threading.Thread(target=lambda: children.append(fork(hang, ()))) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
wait([child.sentinel for child in children])
"""


REFUSED = """
import ctypes, errno, fcntl, platform, struct
from distill.verifiers.sandbox.inside.kernel import NO_NEW_PRIVS, SECCOMP, libc, must
number = {"x86_64": 72, "aarch64": 25}[platform.machine()]
load, equal, answer = 0x20, 0x15, 0x06
code = [(load, 0, 0, 0), (equal, 0, 3, number), (load, 0, 0, 24), (equal, 0, 1, fcntl.F_SETSIG)]
code += [(answer, 0, 0, 0x50000 | errno.EINVAL), (answer, 0, 0, 0x7FFF0000)]
block = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
must("no_new_privs", libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
must("seccomp", libc.prctl(SECCOMP, 2, struct.pack("HxxxxxxP", len(code), ctypes.addressof(block)), 0, 0))
"""


@pytest.mark.parametrize(
    "code",
    [
        HANGING.replace("HANG", "ctypes.PyDLL(None).pause()  # keeps the interpreter's lock"),
        REFUSED + HANGING.replace("HANG", "ctypes.CDLL(None).pause()"),
    ],
    ids=["killed by the kernel", "kernel refuses F_SETSIG"],
)
def test_a_forked_child_that_hangs_does_not_outlive_a_killed_parent(code: str) -> None:
    """It never reads a pipe, nor lets another of its threads do so, where the kernel kills it. It does outlive the
    thread that forked it, and two threads may fork at the same time."""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout
    children = [os.pidfd_open(int(parent.stdout.readline())) for _ in range(2)]
    try:
        assert not select.select(children, [], [], 0.2)[0]
        parent.kill()
        parent.wait()
        for child in children:
            assert select.select([child], [], [], 30)[0], "a forked child outlived its parent"
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)


STARTED = """
import sys
print("up", flush=True)
sys.stdin.readline()
from pipeline.forking import leave_to_parent
leave_to_parent()
print("deaf", flush=True)
"""


def test_a_child_that_is_still_starting_survives_signals_to_the_whole_job() -> None:
    """A rank imports for seconds before it ignores them, and timeout, Slurm and systemd signal the whole job."""
    with held_back():
        child = subprocess.Popen([sys.executable, "-c", STARTED], stdin=-1, stdout=-1, text=True)
    assert child.stdin and child.stdout
    assert child.stdout.readline() == "up\n"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        child.send_signal(number)
    assert child.communicate("\n") == ("deaf\n", None)
    assert child.returncode == 0


def test_a_spawned_child_imports_from_the_working_directory_only_if_its_parent_does(tmp_path: Path) -> None:
    """For example a clone of vllm there: the script `distill` does not import from the working directory."""
    (tmp_path / "queue.py").write_text("raise SystemExit(3)")
    code = "import os; from pipeline.forking import spawn; print(spawn('queue', (), os.environ).wait())"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for safe, ended in (["-P"], "0\n"), ([], "3\n"):
        result = subprocess.run(
            [sys.executable, *safe, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert (result.stdout, result.stderr) == (ended, "")


PARENT = """
import signal, subprocess, sys
from multiprocessing.shared_memory import SharedMemory
from pipeline.forking import leave_to_parent
leave_to_parent(offspring=True)
memory = SharedMemory(create=True, size=1)
memory.close()
memory.unlink()
own = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); print('up', flush=True); input()"
child = subprocess.Popen([sys.executable, "-c", own], stdin=-1, stdout=-1, text=True)
child.stdout.readline()
child.send_signal(signal.SIGTERM)
child.communicate("go on")
print(child.returncode)
"""


def test_signals_can_be_kept_from_the_children_of_a_child_too() -> None:
    """vLLM's workers end at SIGTERM, which reaches every process of a job."""
    result = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("0\n", "")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_sets_stopping_with_its_name_as_the_reason(name: str) -> None:
    with Stopper().listening() as stopping:
        assert not stopping()
        os.kill(os.getpid(), getattr(signal, name))
        assert stopping()
        assert stopping.reason == name
    assert Stopper(max_seconds=0)()


def test_a_closed_terminal_does_not_stop_what_nohup_protects() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopper().listening() as stopping:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopping()
    finally:
        signal.signal(signal.SIGHUP, before)


MADE = """
import os
from pathlib import Path
from pipeline.files import publish_directory, write_atomic
from pipeline.scratch import scratch
write_atomic(Path("record"), "text")
Path("built").mkdir()
os.close(os.open("built/weights", os.O_CREAT, 0o600))
publish_directory(Path("built"), Path("whole"))
with scratch(Path("."), "some") as directory:
    print(*(f"{path.stat().st_mode & 0o777:o}" for path in (Path("record"), Path("whole/weights"), directory)))
"""


@pytest.mark.parametrize(("umask", "rights"), [(0o022, "644 644 755"), (0o002, "664 664 775"), (0o077, "600 600 700")])
def test_the_umask_decides_the_permissions_of_what_is_made(umask: int, rights: str, tmp_path: Path) -> None:
    """tempfile and safetensors make files that only the owner can read: colleagues could not use a student."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", MADE], cwd=tmp_path, umask=umask, env=env, capture_output=True, text=True
    )
    assert result.stdout.strip() == rights, result.stderr


def test_a_workspace_that_cannot_be_written_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = textwrap.dedent(f"""
        from pathlib import Path
        from pipeline.files import write_atomic
        write_atomic(Path({str(tmp_path / "file")!r}) / "below" / "x", "text")
    """)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is in place of a directory" in result.stderr
