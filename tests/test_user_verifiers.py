"""Verifiers in a user's own file: loaded by path, identified by content, and faults reported in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Command

from distill import catalog
from distill.store import Store
from distill.types import Outcome, Problem
from distill.verifiers import VerifierPool, build
from pipeline import config, runner
from pipeline.errors import InputError, PipelineError
from pipeline.events import Listener
from pipeline.plan import plan
from pipeline.workspace import Workspace

ROOT = Path(__file__).parents[1]
PROBLEM = Problem("p", "?", "42", "math", "test")
CODE = """\
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from distill.types import Verdict


@dataclass(frozen=True)
class Near:
    within: int = 0

    name: ClassVar[str] = "near"
    version: ClassVar[str] = "1"

    def verify(self, problem, trace):
        right = abs(int(trace.answer) - int(problem.reference)) <= self.within
        return (Verdict.correct if right else Verdict.incorrect)("near enough" if right else "too far")
"""
PIPELINE = """\
name: own
stages:
  import: {file: rows.jsonl, teacher: someone, prompt: q, answer: said, reference: a}
  verify: {traces: import, verifier: %s}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.py").write_text(CODE)
    rows = [{"q": "6 x 7", "said": said, "a": "42"} for said in ("42", "43", "50", "no number")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(here: Path, verifier: str) -> tuple[dict[str, Any], Workspace, config.PipelineSpec]:
    (here / "p.yaml").write_text(PIPELINE % verifier)
    spec, workspace = config.load(here / "p.yaml", catalog.stage), Workspace(here / "run")
    done = runner.run(spec, workspace, Listener(), lambda: False)
    return dict(done[-1].manifest.figures), workspace, spec


def test_a_user_verifier_judges_in_the_pool_with_its_settings(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub/near.py").write_text(CODE)
    with VerifierPool(workers=1) as pool:
        for name in ("./near.py:Near", f"{here}/near.py:Near", "sub/near.py:Near"):
            items = [(answer, {name: {"within": 1}}, PROBLEM, answer) for answer in ("42", "43", "50", "no number")]
            verdicts = dict(pool.verify_many(items))
            found = [str(verdicts[answer].outcome) for answer in ("42", "43", "50", "no number")]
            assert found == ["correct", "correct", "incorrect", "unverifiable"]
            assert verdicts["42"].verifier == "near" and verdicts["42"].version.startswith("1+")
        both = pool.verify({"all": ["math", "./near.py:Near"]}, PROBLEM, "42")
        assert both.outcome is Outcome.CORRECT and both.verifier == "all(math,near)"


def test_an_edited_file_judges_again_and_old_verdicts_are_kept(here: Path) -> None:
    first, workspace, spec = run(here, "./near.py:Near")
    assert (first["correct"], first["incorrect"], first["unverifiable"]) == (1, 2, 1)
    assert plan(spec, workspace)[-1].status == "cached"
    (here / "near.py").write_text(CODE.replace("within: int = 0", "within: int = 1"))
    again = plan(spec, workspace)[-1]
    assert again.status != "cached" and "version 1+" in again.reasons[0]
    second, _, _ = run(here, "./near.py:Near")
    assert (second["correct"], second["incorrect"]) == (2, 1)
    rows = Store(here / "run").rows("SELECT version, count(*) AS n FROM verdicts GROUP BY version")
    assert [row["n"] for row in rows] == [4, 4]
    (here / "near.py").write_text(CODE)
    assert plan(spec, workspace)[-1].reasons  # its version is the first one again, whose verdicts are all stored
    assert run(here, "./near.py:Near")[0] == first
    assert len(Store(here / "run").rows("SELECT verdict_key FROM verdicts")) == 8


def test_a_file_edited_while_it_judges_leaves_no_verdict_of_a_wrong_version(here: Path) -> None:
    edits = CODE.replace(
        "        right",
        "        if trace.answer == '43':\n"
        "            from pathlib import Path\n"
        "            Path('near.py').write_text(Path('near.py').read_text() + '#')\n"
        "            import os\n"
        "            os._exit(1)\n"
        "        right",
    )
    (here / "near.py").write_text(edits)
    with pytest.raises(PipelineError, match="was changed while it judged"):
        run(here, "./near.py:Near")
    versions = {row["version"] for row in Store(here / "run").rows("SELECT version FROM verdicts")}
    assert versions <= {_version(edits, here)}


def _version(code: str, here: Path) -> str:
    (here / "near.py").write_text(code)
    return build("./near.py:Near").version


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (None, "./gone.py:Near", r"gone\.py: no such file"),
        (CODE, "./near.py:Nearr", "defines no 'Nearr'; did you mean 'Near'"),
        (CODE, "./near.py", "name the object in that file too"),
        (CODE.replace("problem, trace):", "problem, trace:"), "./near.py:Near", r"near\.py:16: "),
        ("import distill\nimport no_such_module\n", "./near.py:Near", r"near\.py:2: ModuleNotFoundError.*no_such"),
        ("def f():\n    return 1 / 0\n\nf()\n", "./near.py:Near", r"near\.py:2: ZeroDivisionError"),
        ("raise SystemExit(3)\n", "./near.py:Near", r"near\.py:1: SystemExit"),
        ("\0", "./near.py:Near", "null bytes"),
        ("Near = 3\n", "./near.py:Near", "is int, not a class"),
        ("class Near:\n    name = 'x'\n    version = '1'\n", "./near.py:Near", "has no method verify"),
        ("class Near:\n    version = '1'\n", "./near.py:Near", "needs name ="),
        ("class Near:\n    name = 'x'\n    version = 1\n", "./near.py:Near", "needs version = .*found 1"),
        (CODE.replace("self, problem, trace", "self, trace"), "./near.py:Near", "must take .self, problem, trace."),
        (CODE, {"./near.py:Near": {"withn": 1}}, "unexpected keyword argument 'withn'"),
        (CODE, {"./near.py:Near": [1]}, "its settings must be a mapping"),
        (CODE, "no_such_module:Near", "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_faulty_user_verifier_is_one_line_with_its_place_in_the_yaml(
    here: Path, code: str | None, name: Any, message: str
) -> None:
    if code is not None:
        (here / "near.py").write_text(code)
    with pytest.raises(InputError, match=message) as caught:
        run(here, json.dumps(name))
    assert str(caught.value).startswith(f"{here}/p.yaml:4: ") and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_problem_may_name_a_user_verifier(here: Path) -> None:
    rows = [{"q": "6 x 7", "said": "42", "a": "42"}]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "p.yaml").write_text(PIPELINE.replace("reference: a", 'reference: a, verifier: "./near.py:Near"') % "null")
    spec = config.load(here / "p.yaml", catalog.stage)
    done = runner.run(spec, Workspace(here / "run"), Listener(), lambda: False)
    assert done[-1].manifest.figures["correct"] == 1


def test_the_verifier_of_the_contributors_guide_works(here: Path) -> None:
    """The verifier of CONTRIBUTING.md, in a user's file, on the command line."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = text.split("```python")[1].split("```")[0].replace("\n   ", "\n")
    (here / "roman.py").write_text(code)
    (here / "rows.jsonl").write_text('{"q": "2 + 2 in Roman numerals", "said": "IV", "a": "4"}\n')
    (here / "p.yaml").write_text(PIPELINE % "./roman.py:Roman")
    done = subprocess.run(
        [sys.executable, "-m", "distill", "run", "--pipeline", "p.yaml", "--json"],
        cwd=here, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (finished,) = [event for event in events if event["event"] == "finish" and event["stage"] == "verify"]
    assert finished["figures"]["correct"] == 1


STAGED = """\
name: small
workspace: run
stages:
  problems: {sources: [{family: calc, train: 2}]}
  generate: {problems: problems, teacher: "embedded:teacher", sampling: {max_tokens: 96, temperature: 0}}
  verify: {traces: generate}
  select: {verdicts: verify}
  lengths: {kind: KIND, data: select}
"""


@pytest.mark.parametrize("kind", ["./lengths.py:STAGE", "lengths"])
def test_the_stage_of_the_contributors_guide_works(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a user's file, and by the name under which another distribution registers it."""
    code = (ROOT / "CONTRIBUTING.md").read_text().split("```python")[2].split("```")[0]
    (tmp_path / "lengths.py").write_text(code)
    installed = tmp_path / "lengths-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: lengths\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[distill.stages]\nlengths = lengths:STAGE\n")
    (tmp_path / "p.yaml").write_text(STAGED.replace("KIND", kind))
    monkeypatch.syspath_prepend(tmp_path)
    Command(tmp_path, "run", "-p", "p.yaml").ended()
    lengths = json.loads((tmp_path / "run/lengths/lengths.json").read_text())
    assert len(lengths["longest"]) == 2 and all(words > 0 for words in lengths["longest"])
    out, _ = Command(tmp_path, "plan", "-p", "p.yaml", "--json").ended()
    assert {row["status"] for row in map(json.loads, out.splitlines())} == {"cached"}
