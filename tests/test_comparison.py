"""Two models on the same problems: the statistics of a pair, and the command that prints them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import Command
from test_report import run_pipeline

from distill.cli.compare import compare
from distill.evaluation import comparison
from distill.stages import common, evaluate
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Identity, Manifest
from pipeline.workspace import StageContext

BEFORE = {"a": [0.0, 0.0], "b": [1.0, 0.0], "c": [1.0, 1.0], "d": [0.0, 1.0], "only before": [1.0]}
AFTER = {"a": [1.0, 0.0], "b": [1.0, 1.0], "c": [1.0, 0.0], "d": [1.0, 0.0], "not judged": []}


def test_a_pair_is_compared_on_the_problems_that_both_have() -> None:
    found = comparison.between(BEFORE, AFTER)
    assert (found["problems"], found["better"], found["worse"], found["equal"]) == (4, 2, 1, 1)
    assert found["difference"] == pytest.approx((0.5 + 0.5 - 0.5 + 0) / 4)
    assert found["p"] == 1.0  # two against one


def test_every_pair_is_compared_and_the_p_values_are_adjusted() -> None:
    none, some = {str(i): [0.0] for i in range(9)}, {str(i): [float(i < 7)] for i in range(9)}
    pairs = comparison.every_pair({"none": none, "some": some, "all": {key: [1.0] for key in none}})
    assert [(p["from"], p["to"]) for p in pairs] == [("none", "some"), ("none", "all"), ("some", "all")]
    assert [p["p"] for p in pairs] == pytest.approx([2 / 2**7, 2 / 2**9, 0.5], rel=1e-3)
    assert [p["p_holm"] for p in pairs] == pytest.approx([2 * 2 / 2**7, 3 * 2 / 2**9, 0.5], rel=1e-3)


PIPELINE = """\
name: two
stages:
  problems: {{sources: [{{family: calc, train: 1, heldout: {heldout}}}, {{family: code, train: 1, heldout: {heldout}}}]}}
  evaluate: {{problems: problems, models: {{good: models/teacher, bad: models/base}}, samples: 2, workers: 1}}
  colder: {{kind: evaluate, problems: problems, models: {{good: models/teacher, same: models/teacher}}, samples: 2,
           greedy: false, workers: 1, sampling: {{temperature: 0.5}}}}
  coldest: {{kind: evaluate, problems: problems, models: {{points: models/teacher, n: models/base}}, samples: 1,
            workers: 1, sampling: {{temperature: 0}}}}
"""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("two")
    return directory / "pipeline.yaml", run_pipeline(directory, heldout=8, text=PIPELINE)


def run_compare(evaluated: tuple[Path, Path], before: str, after: str, **how: Any) -> None:
    asked: dict[str, Any] = {"overrides": [], "stage": "evaluate", "greedy": False, "as_json": True} | how
    where = asked["overrides"], None, asked["stage"]
    compare(before, after, *evaluated, *where, asked["greedy"], asked["as_json"])


def test_the_command_compares_overall_and_by_family_and_difficulty(
    evaluated: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run_compare(evaluated, "bad", "good")
    found = json.loads(capsys.readouterr().out)
    rows = {row["of"]: row for row in found["of"]}
    assert rows["all"]["problems"] == 16 == rows["calc"]["problems"] + rows["code"]["problems"]
    assert rows["all"]["better"] > 12 and rows["all"]["p"] < 0.001 and rows["all"]["difference"] > 0.8
    assert "code/5" in rows and len(found["protocol"]) == 12
    run_compare(evaluated, "good", "evaluate/bad", as_json=False, greedy=True)
    table = capsys.readouterr().out
    assert "McNemar's exact test" in table and f"protocol {found['protocol']} of evaluate; " in table
    assert table.split("\n")[0].split()[3:5] == ["good", "bad"] and max(map(len, table.split("\n"))) <= 80
    run_compare(evaluated, "coldest/n", "coldest/points", as_json=False)
    titles = capsys.readouterr().out.split("\n")[0].split()
    assert titles[2:6] == ["n", "coldest/n", "coldest/points", "points"]


def test_the_scores_of_several_stages_are_told_apart(evaluated: tuple[Path, Path]) -> None:
    pipeline, workspace = evaluated
    said, _ = Command(pipeline.parent, "run", "--pipeline", str(pipeline), "--workspace", str(workspace)).ended()
    ends = [line.split(" of ")[1] for line in said.splitlines() if line.startswith("protocol ")]
    assert ends == [
        f"{stage}: compare scores only within the same protocol" for stage in ("evaluate", "colder", "coldest")
    ]


@pytest.mark.parametrize(
    ("asked", "how", "why"),
    [
        (("god", "bad"), {}, "evaluated no model 'god'; did you mean 'good'?"),
        (("good", "bad"), {"stage": "evaluat"}, "no evaluate stage of that name; did you mean 'evaluate'?"),
        (("good", "colder/good"), {}, r"different protocols \(sampling.temperature: 1.0 -> 0.5\)"),
        (("good", "evaluate/good"), {}, "evaluate/good would be compared with itself"),
        (
            ("colder/good", "colder/same"),
            {"greedy": True},
            "no greedy answers were sampled; set greedy: true in colder",
        ),
        (("coldest/points", "coldest/n"), {"greedy": True}, "at temperature 0, are greedy already; leave out --greedy"),
    ],
)
def test_an_impossible_comparison_is_refused(
    evaluated: tuple[Path, Path], asked: tuple[str, str], how: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        run_compare(evaluated, *asked, **how)


ODD = """\
from distill import Verdict

class Odd:
    name, version, judged = "odd", "1", "13579"
    def verify(self, problem, trace):
        return Verdict.correct("odd") if trace.answer[-1:] in self.judged else Verdict.unverifiable("even")

class Shy(Odd):
    def verify(self, problem, trace):
        return Verdict.incorrect("small") if trace.answer[-1:] in "13" else super().verify(problem, trace)

class Nil(Odd):
    name, judged = "nil", "x"
"""


def test_samples_that_could_not_be_judged_are_counted_beside_the_scores(evaluated: tuple[Path, Path]) -> None:
    """They are not part of the scores, which may then be those of a few problems."""
    pipeline, workspace = evaluated
    (pipeline.parent / "odd.py").write_text(ODD)
    run = ("run", "evaluate", "--pipeline", str(pipeline), "--workspace", str(workspace), "--set")
    said, _ = Command(pipeline.parent, *run, "evaluate.verifier=./odd.py:Odd").ended()
    table = said.splitlines()
    table = table[next(at for at, line in enumerate(table) if line.startswith("model ")) :]
    unjudged = [int(line.split()[-1]) for line in table[2:4]]
    assert table[0].split()[-1] == "unverifiable" and all(0 < n < 32 for n in unjudged)
    said, _ = Command(pipeline.parent, *run, "evaluate.verifier=./odd.py:Nil").ended()
    assert "good: pass@1 unknown, as no answer could be judged" in said and "nan" not in said


def test_means_are_compared_on_the_problems_on_which_both_could_be_judged(
    evaluated: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the two shares in a row differ by the points in it."""
    pipeline, workspace = evaluated
    monkeypatch.chdir(pipeline.parent)
    Path("odd.py").write_text(ODD)
    judged_by = "evaluate.verifier=./odd.py:Shy"
    run = ("run", "evaluate", "--pipeline", str(pipeline), "--workspace", str(workspace), "--set", judged_by)
    Command(pipeline.parent, *run).ended()
    capsys.readouterr()
    run_compare(evaluated, "bad", "good", overrides=[judged_by])
    whole = json.loads(capsys.readouterr().out)["of"][0]
    assert whole["problems"] < 16 and whole["after"] - whole["before"] == pytest.approx(whole["difference"], abs=2e-4)


def test_scores_are_those_of_the_current_settings_not_of_the_last_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PIPELINE.partition("  colder:")[0]
    measured = tmp_path / "pipeline.yaml", run_pipeline(tmp_path, heldout=2, text=text)
    run_pipeline(tmp_path, heldout=2, text=text.replace("samples: 2", "samples: 1"))
    measured[0].write_text(text.format(heldout=2))
    monkeypatch.chdir(tmp_path)

    def samples(*overrides: str) -> int:
        run_compare(measured, "bad", "good", overrides=overrides)
        return int(json.loads(capsys.readouterr().out)["samples"])

    assert (samples(), samples("evaluate.samples=1")) == (2, 1)
    with pytest.raises(InputError, match="stage evaluate has no scores yet with these settings; run it: distill run"):
        samples("evaluate.samples=3")
    measured[0].write_text(text.format(heldout=2).replace("samples: 2", "samples: 3"))
    run_compare(measured, "bad", "good")
    shown = capsys.readouterr()
    assert "with its current settings (samples: 1 -> 3)" in shown.err and '"samples": 1' in shown.out


def test_a_renamed_evaluation_is_named_as_it_is_called_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = PIPELINE.partition("  colder:")[0]
    for each in (text, text.replace("evaluate: {{", "measure: {{kind: evaluate, ")):
        measured = tmp_path / "pipeline.yaml", run_pipeline(tmp_path, heldout=2, text=each)
    run_compare(measured, "bad", "good", stage="measure")
    changed = measured[0].read_text().replace("samples: 2", "samples: 3")
    measured[0].write_text(changed)
    run_compare(measured, "bad", "good", stage="measure")
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [found["before"] for found in shown] == ["measure/bad", "measure/bad"]


def test_the_protocol_is_everything_but_the_model_that_a_score_depends_on(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"problems": "problems", "models": {"m": "embedded:teacher"}}

    def protocol(digest: str = "d", verifiers: tuple[str, ...] = ("math",), **changes: Any) -> str:
        figures = {"verifiers": list(verifiers)}
        made = Manifest("problems", "f", Identity("problems", 1, {}, {}, {}), digest, figures, 0.0, "")
        context = StageContext("e", "evaluate", "f", tmp_path, {"problems": made}, tmp_path, tmp_path, FileHashes())
        return common.protocol(context, evaluate.EvaluateSettings.model_validate(usual | changes), evaluate.PROTOCOL)

    others: list[dict[str, Any]] = [
        {"digest": "e"}, {"verifiers": ("math", "exact")}, {"sampling": {"max_tokens": 7}}, {"samples": 2},
        {"prompting": "boxed"}, {"thinking": {"budget": 9}}, {"verifier": "exact"}, {"split": "train"},
    ]  # fmt: skip
    assert len({protocol(), *(protocol(**change) for change in others)}) == len(others) + 1
    assert protocol() == protocol(models={"n": "embedded:student-base"}, seed=3, pass_at=[2], budgets=[4])
