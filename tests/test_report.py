"""The report of a real run in which authors stand in for models: solvers that make mistakes more or less often.

Everything but sampling and training is the real thing: problems, verification, selection, evaluation,
manifests and the store, run by the runner. Training leaves a directory that names the skill it has reached.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_emergence import CHECKING, keep_rollouts

from distill import catalog
from distill.evaluation.comparison import pair_of
from distill.families.base import Family
from distill.prm import measures
from distill.randomness import generator
from distill.report import judging, svg
from distill.report.render import render
from distill.report.words import visible
from distill.types import Completion, Finish, Problem, Request
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.stage import Output, Stage
from pipeline.workspace import Workspace

PIPELINE = """\
name: told
workspace: unused
seed: 0
stages:
  problems: {{sources: [{{family: calc, train: {train}, heldout: {heldout}}}, {{family: logic, train: {train}, heldout: {heldout}}}, {{family: code, train: {train}, heldout: {heldout}}}]}}
  generate: {{problems: problems, teacher: models/teacher, samples: 2}}
  verify: {{traces: generate, workers: 1}}
  select: {{verdicts: verify, per_problem: 1}}
  unverified: {{kind: select, verdicts: verify, keep: all}}
  sft: {{data: select, student: models/base}}
  grpo: {{student: "stage:sft", problems: problems, steps: 60, prompts: 4}}
  sft-unverified: {{kind: sft, data: unverified, student: models/base}}
  sft-answers: {{kind: sft, data: select, student: models/base, thinking: false}}
  evaluate:
    problems: problems
    models: {{teacher: models/teacher, base: models/base, sft: "stage:sft", grpo: "stage:grpo",
              unverified: "stage:sft-unverified", answers only: "stage:sft-answers"}}
    samples: 3
    budgets: [0, 20]
    workers: 1
  report:
    evaluation: evaluate
    selection: select
    training: [sft, grpo]
    controls: [sft-unverified, sft-answers]
    stages: [problems, generate, verify]
"""

# -- authors instead of models ----------------------------------------------------------------


@dataclass
class Authors:
    """An engine whose weights are a text: the chance of a mistake per line, or ``guess``."""

    model: str
    skill: str
    name: str = "transformers"
    batch_invariant: bool = True

    def generate(
        self, requests: Iterable[Request], stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[Completion]:
        for request in requests:
            yield self._answer(request)

    def _answer(self, request: Request) -> Completion:
        prompt = request.messages[-1]["content"]
        rng = generator("author", request.key)
        author = family_of(prompt)
        if self.skill == "guess":
            text, thought = author.guess(rng), ""
        else:
            slips = float(self.skill) * (0.8 if request.sampling.temperature == 0 else 1)
            formula = prompt.partition(": ")[2]  # what the logic family works from
            solution = author.solve(Problem("", prompt, formula, "", ""), slips, rng)
            text, thought = solution.answer, solution.thinking
        if request.budget:  # its thinking is cut and closed, and the answer is a guess
            thought, text = request.prefix.removeprefix("<think>\n").partition("\n</think>")[0], author.guess(rng)
        whole = f"<think>\n{thought}\n</think>\n{text}" if thought else text
        cut = rng.random() < 0.02
        tokens = len(whole.split()) + int(rng.integers(4))
        return Completion(
            request.key, prompt, (1, 2, 3), whole[: len(whole) // 2] if cut else whole, (), None,
            Finish.LENGTH if cut else Finish.STOP, thinking_tokens=len(thought.split()),
            answer_tokens=tokens - len(thought.split()), prompt_tokens=3,
        )  # fmt: skip

    def close(self) -> None: ...


@cache
def family(name: str) -> Family:
    made: Family = catalog.resolve("families", name)()
    return made


def family_of(prompt: str) -> Family:
    name = "calc" if prompt.startswith("Compute") else "logic" if prompt.startswith("Truth") else "code"
    return family(name)


def open_authors(model: Any, options: Any, note: Any) -> Authors:
    return Authors(model.identity, json.loads((Path(model.source) / "config.json").read_text())["skill"])


def write_model(directory: Path, skill: str) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"skill": skill}))
    (directory / "tokenizer.json").write_text("{}")
    header = json.dumps({"weight": {"dtype": "F32", "shape": [700, 940], "data_offsets": [0, 0]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


SKILLS = {"sft": "0.13", "grpo": "0.085", "sft-unverified": "0.2", "sft-answers": "guess"}


def train(context: Any, settings: Any) -> Output:
    """Leave a better author, and the curves of its improvement."""
    from distill.stages.common import store_of

    shutil.rmtree(context.work / "artifact", ignore_errors=True)
    write_model(context.work / "artifact" / "model", SKILLS[context.name])
    rows = []
    for step in range(1, 401):
        noise = generator(context.name, step).normal()
        part = step / 400
        values = {"learning_rate": 4e-3 * (1 - part), "grad_norm": 1.2 - 0.6 * part + 0.1 * noise}
        if context.kind == "grpo":
            values |= {"reward": 0.46 + 0.14 * part + 0.05 * noise, "entropy": 0.4 - 0.2 * part + 0.02 * noise}
            values |= {"length": 19 + 3 * part + noise, "zero_variance": 0.3 + 0.2 * part + 0.04 * noise}
        else:
            values["loss"] = 0.35 + 1.6 * 0.985**step + 0.03 * noise
        rows += [{"run": context.fingerprint, "step": step, "name": n, "value": float(v)} for n, v in values.items()]
    store = store_of(context)
    store.append("metrics", rows)
    if context.kind == "grpo":
        seen = {
            "name": "format_only",
            "step": 40,
            "evidence": "<b>format</b> rose by 0.30",
            "value": 0.0,
            "threshold": 0.1,
        }
        store.append("alarms", [{"run": context.fingerprint, **seen}])
        keep_rollouts(store, context.fingerprint, CHECKING)
    store.ingest()
    ended = {"steps": 400, "rolled_back_to": 20} if context.kind == "grpo" else {"steps": 400}
    return Output(context.publish(context.work / "artifact"), ended)


def lookup(kind: str) -> Stage:
    stage = catalog.stage(kind)
    return replace(stage, run=train) if kind in ("sft", "grpo") else stage


def run_pipeline(directory: Path, train: int = 24, heldout: int = 12, text: str = PIPELINE) -> Path:
    """Run everything in ``directory`` and return the workspace. It can be repeated, as a user would."""
    file = directory / "pipeline.yaml"
    file.write_text(text.format(train=train, heldout=heldout))
    if not (directory / "models").exists():
        write_model(directory / "models" / "teacher", "0.015")
        write_model(directory / "models" / "base", "guess")
    before, engines = Path.cwd(), dict(catalog.ENGINES)
    os.chdir(directory)
    catalog.ENGINES["transformers"] = f"{__name__}:open_authors"
    try:
        spec = config.load(file, lookup, workspace=directory / "run")
        runner.run(spec, Workspace(spec.workspace, {"distill": "0.1", "torch": "2.13"}), Listener(), lambda: False)
    finally:
        os.chdir(before)
        catalog.ENGINES.update(engines)
    return directory / "run"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_pipeline(tmp_path_factory.mktemp("told"))


@pytest.fixture(scope="module")
def report(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def page(workspace: Path) -> str:
    return (workspace / "report.html").read_text()


# -- report.json ------------------------------------------------------------------------------


def manifest(workspace: Path, kind: str, stage: str) -> dict[str, Any]:
    found = [json.loads(path.read_text()) for path in (workspace / "manifests" / kind).glob("*.json")]
    return next(m for m in found if m["stage"] == stage)


def test_every_model_has_the_figures_of_its_evaluation(report: dict[str, Any], workspace: Path) -> None:
    evaluated = manifest(workspace, "evaluate", "evaluate")["figures"]["subjects"]
    assert report["models"] == ["teacher", "base", "sft", "grpo", "unverified", "answers only"]
    for label, figures in evaluated.items():
        assert figures.items() <= report[label].items()
        low, high = report[label]["ci95"]
        assert low <= report[label]["pass_at_1"] <= high
        assert {"tokens_per_answer", "seconds", "problems", "samples"} <= report[label].keys()
    assert report["base"]["pass_at_1"] < report["sft"]["pass_at_1"] < report["grpo"]["pass_at_1"]


def test_a_model_s_role_and_stage_come_from_the_stage_that_made_it(report: dict[str, Any], workspace: Path) -> None:
    roles = {label: (report[label]["role"], report[label]["stage"]) for label in report["models"]}
    assert roles == {
        "teacher": ("teacher", None),
        "base": ("base", None),
        "sft": ("student", "sft"),
        "grpo": ("student", "grpo"),
        "unverified": ("control", "sft-unverified"),
        "answers only": ("control", "sft-answers"),
    }
    assert report["sft"]["seconds"] == manifest(workspace, "sft", "sft")["seconds"] > 0
    assert report["teacher"]["seconds"] == 0
    assert report["grpo"]["parameters"] == 658_000


def test_the_headline_sums_up_base_sft_and_grpo(report: dict[str, Any]) -> None:
    base, sft, grpo = (
        f"{100 * report[label]['pass_at_1']:.1f}% ({100 * report[label]['ci95'][0]:.1f} to "
        f"{100 * report[label]['ci95'][1]:.1f})"
        for label in ("base", "sft", "grpo")
    )
    assert report["headline"] == (
        f"A 0.7M-parameter student went from {base} to {sft} after learning from verified traces"
        f" and to {grpo} after reinforcement learning (95% intervals)."
    )


def test_the_headline_calls_traces_verified_only_if_wrong_ones_were_left_out(tmp_path: Path) -> None:
    text = PIPELINE.replace("verify, per_problem: 1", "verify, keep: all")
    assert text != PIPELINE
    workspace = run_pipeline(tmp_path, train=6, heldout=2, text=text)
    headline = json.loads((workspace / "report.json").read_text())["headline"]
    assert "after learning from traces and to" in headline and "verified" not in headline


def test_stages_are_compared_on_the_same_problems(report: dict[str, Any], workspace: Path) -> None:
    steps = {(step["from"], step["to"]): step for step in report["paired"]}
    assert list(steps) == [("base", "sft"), ("sft", "grpo"), ("sft", "unverified"), ("sft", "answers only")]
    pairs = manifest(workspace, "evaluate", "evaluate")["figures"]["pairs"]
    assert report["pairs"] == pairs and len(pairs) == 6 * 5 / 2
    assert steps["sft", "grpo"] in pairs
    for step in pairs:
        assert step["better"] + step["worse"] + step["equal"] == step["problems"] == 36
        assert 0 <= step["p"] <= step["p_holm"] <= 1


def test_a_paired_comparison_can_be_reversed(report: dict[str, Any]) -> None:
    there, back = (pair_of(report["pairs"], *names) for names in (("base", "grpo"), ("grpo", "base")))
    assert back["difference"] == -there["difference"] and back["ci95"] == [-x for x in reversed(there["ci95"])]
    assert (back["better"], back["worse"], back["p"]) == (there["worse"], there["better"], there["p"])


def test_each_score_comes_with_its_contamination(report: dict[str, Any], page: str) -> None:
    assert report["teacher"]["contamination"] is None  # no stage made it: unknown, not clean
    found = report["grpo"]["contamination"]
    assert found["trained_by"] == ["grpo", "sft"]
    assert found["trained_on"] == report["sft"]["contamination"]["trained_on"] + len(CHECKING) > len(CHECKING)
    assert found["clean"]["problems"] + found["contaminated"]["problems"] == 36
    assert "Seen in training" in page


def test_only_samples_that_thought_longer_are_sampled_again_for_a_budget(report: dict[str, Any], page: str) -> None:
    curve = {at["budget"]: at for at in report["sft"]["by_budget"]}
    assert list(curve) == [0, 20, None]
    assert curve[None]["pass_at_1"] == report["sft"]["pass_at_1"] and curve[None]["new"] == 0
    assert 0 < curve[20]["new"] < curve[0]["new"] <= 108
    assert curve[0]["thinking_tokens"] < curve[20]["thinking_tokens"] < curve[None]["thinking_tokens"]
    assert curve[0]["pass_at_1"] < curve[20]["pass_at_1"] < curve[None]["pass_at_1"]
    whole = report["sft"]["against_no_thinking"][0]
    assert whole["of"] == "all" and whole["says"] == "pays"
    assert whole["difference"] == pytest.approx(whole["thinking"] - whole["without"], abs=2e-4)
    guesses = {row["of"]: row["says"] for row in report["base"]["against_no_thinking"]}
    assert set(guesses.values()) == {"not shown to pay"}  # it never thinks
    assert "Where thinking is not shown to pay: " in page and "base: everywhere" in page


def test_the_counts_of_the_funnel_add_up(report: dict[str, Any], workspace: Path) -> None:
    funnel, selected = report["funnel"], manifest(workspace, "select", "select")["figures"]
    assert funnel["generated"] == selected["members"] == 3 * 24 * 2
    assert funnel["kept"] == selected["kept"]
    assert {row["reason"]: row["traces"] for row in funnel["rejected"]} == selected["rejected"]
    assert funnel["kept"] + sum(row["traces"] for row in funnel["rejected"]) == funnel["generated"]


def test_the_easy_bias_of_the_selection_is_shown(report: dict[str, Any], page: str) -> None:
    funnel = report["funnel"]
    bias = funnel["bias"]
    assert bias["by"] == "difficulty" and len(bias["bins"]) > 1
    for whole in ("generated", "kept"):
        assert sum(row[whole] for row in bias["bins"]) == funnel[whole]
    assert bias["says"].startswith("The kept traces are ") and bias["says"] in page
    assert 'id="bias' in page


def test_lengths_count_every_sample_once(report: dict[str, Any]) -> None:
    for label in report["models"]:
        counts = report["lengths"]["models"][label]
        assert sum(counts["right"]) + sum(counts["other"]) == report[label]["samples"]
        assert sum(counts["right"]) == round(report[label]["pass_at_1"] * report[label]["samples"])
        assert len(counts["right"]) == len(report["lengths"]["edges"]) - 1


def test_alarms_are_shown_with_the_curves_of_their_stage(report: dict[str, Any], page: str) -> None:
    assert report["alarms"] == {"grpo": [{"name": "format_only", "step": 40, "evidence": "<b>format</b> rose by 0.30"}]}
    section = page[page.index("Training: grpo") :]
    assert "<b>format only</b> at step 40: &lt;b&gt;format&lt;/b&gt; rose by 0.30." in section
    assert report["rolled_back"] == {"grpo": 20} and page.count("<b>rolled back</b>") == 1
    assert "<b>rolled back</b>: the student is that of step 20," in section


def test_changes_in_thinking_are_reported_for_the_stage_with_rollouts(report: dict[str, Any], page: str) -> None:
    assert set(report["emergence"]) == {"grpo"}
    seen = report["emergence"]["grpo"]
    assert seen["behaviours"]["verification"]["shares"] == [0.0, 1.0]
    assert seen["changes_by_source"] == {"calc": {"wrong to right": 2}}
    section = page[page.index("What the thinking became: grpo") :]
    assert "No phrase for subgoals was found." in " ".join(section.split())


def test_curves_are_thinned_but_keep_their_last_point(report: dict[str, Any]) -> None:
    assert set(report["curves"]) == {"sft", "grpo", "sft-unverified", "sft-answers"}
    assert {"reward", "entropy", "learning_rate"} <= report["curves"]["grpo"].keys()
    reward = report["curves"]["grpo"]["reward"]
    assert len(reward) <= 300 and reward[-1][0] == 400
    assert reward[-1][1] > reward[0][1]


def test_examples_are_wrong_for_the_base_and_right_for_the_student(report: dict[str, Any]) -> None:
    examples = report["examples"]
    assert examples["rule"] == "learned" and len(examples["problems"]) == 3
    assert {problem["source"] for problem in examples["problems"]} == {"calc", "logic", "code"}
    for problem in examples["problems"]:
        assert [answer["label"] for answer in problem["answers"]] == ["base", "sft", "grpo"]
        assert problem["answers"][0]["outcome"] == "incorrect" and problem["answers"][-1]["outcome"] == "correct"
        assert all(answer["reason"] for answer in problem["answers"])


# -- report.html ------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags, ids and references of a page; fails on a tag that is not closed."""

    VOID = frozenset(("meta", "link", "br", "img", "input", "hr"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value or "" for key, value in self.attributes if key == name]


def test_the_page_is_well_formed_and_self_contained(page: str) -> None:
    found = Page(page)
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert not found.values("src") and not found.values("href") and "url(" not in page and "http:" not in page
    for wanted in (
        "h-accuracy",
        "h-funnel",
        "h-curve-1",
        "h-curve-2",
        "h-controls",
        "h-families",
        "h-samples",
        "h-budgets",
        "h-emergence-1",
        "h-lengths",
    ):
        assert wanted in ids
    assert {"h-examples", "h-stages", "h-again"} <= set(ids)


def test_plots_are_accessible_with_titles_descriptions_and_tables(page: str, report: dict[str, Any]) -> None:
    plots = re.findall(r'<svg class="plot[^>]*role="img" aria-labelledby="(\S+) (\S+)">', page)
    assert len(plots) == page.count('<svg class="plot') > 10
    for title, about in plots:
        assert re.search(f'<title id="{title}">[^<]+</title><desc id="{about}">[^<]+</desc>', page)
    assert page.count("as a table</summary>") == 16
    for label in report["models"]:
        assert page.count(f"{100 * report[label]['pass_at_1']:.1f}%") >= 2  # in the plot and in the table


def test_the_same_run_gives_the_same_bytes(workspace: Path) -> None:
    before = {name: (workspace / name).read_bytes() for name in ("report.html", "report.json")}
    record = next((workspace / "manifests" / "report").glob("*.json"))
    stamp = record.stat().st_mtime_ns
    run_pipeline(workspace.parent)
    assert record.stat().st_mtime_ns == stamp  # cached
    record.unlink()
    shutil.rmtree((workspace / "report").resolve())
    run_pipeline(workspace.parent)
    assert {name: (workspace / name).read_bytes() for name in before} == before


def test_a_renamed_stage_makes_a_new_report(workspace: Path) -> None:
    old = set((workspace / "manifests" / "report").glob("*.json"))
    run_pipeline(
        workspace.parent, text=PIPELINE.replace("generate", "ask").replace("  ask: {{", "  ask: {{kind: generate, ")
    )
    new = set((workspace / "manifests" / "report").glob("*.json")) - old
    assert len(new) == 1
    report = json.loads((workspace / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]][:2] == ["problems", "ask"]
    run_pipeline(workspace.parent)


# -- hostile text ----------------------------------------------------------------------------

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">\x00\u202eא</pre>&amp;"

BARE = """\
name: bare
stages:
  problems: {{sources: [{{file: problems.jsonl, prompt: question, reference: answer, verifier: exact, split: heldout}}]}}
  evaluate: {{problems: problems, models: {{"{label}": models/teacher}}, samples: {heldout}, greedy: false, workers: 1}}
  report: {{evaluation: evaluate}}
"""


def run_bare(directory: Path, monkeypatch: pytest.MonkeyPatch, label: str = "mine", more: str = "") -> Path:
    """One model that is always wrong, on problems without difficulties; nothing trained, nothing selected."""
    rows = [{"question": f"{HOSTILE} {i}", "answer": HOSTILE} for i in range(5)]
    (directory / "problems.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def answer(self: Authors, request: Request) -> Completion:
        text = f"<think>{HOSTILE}" + 7000 * "א" + f"</think>\n{HOSTILE} no"
        return Completion(request.key, "", (1,), text, (), None, Finish.STOP, thinking_tokens=3, answer_tokens=2)

    monkeypatch.setattr(Authors, "_answer", answer)
    return run_pipeline(directory, heldout=2, text=BARE.replace("{label}", label) + more)


def test_text_of_models_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = "<b>bold</b> & co"
    workspace = run_bare(tmp_path, monkeypatch, label)
    report, page = json.loads((workspace / "report.json").read_text()), (workspace / "report.html").read_text()
    assert report["models"] == [label] and report[label]["pass_at_1"] == 0
    shown = report["examples"]["problems"][0]
    assert report["examples"]["rule"] == "first" and shown["reference"] == HOSTILE
    assert "characters left out" in shown["answers"][0]["thinking"]
    assert "<script" not in page and "<img" not in page and "<b>bold" not in page
    assert "\x00" not in page and "\u202e" not in page and "⟨U+0000⟩⟨U+202E⟩א" in page
    assert "&amp;amp;" in page
    Page(page)


def test_without_selection_and_training_the_report_shows_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = run_bare(tmp_path, monkeypatch)
    report, page = json.loads((workspace / "report.json").read_text()), (workspace / "report.html").read_text()
    assert re.fullmatch(
        r"Share of problems solved: mine 0\.0% \(0\.0 to [0-9.]+\) \(95% intervals\)\.", report["headline"]
    )
    assert report["funnel"] is None and report["curves"] == {} and report["paired"] == []
    ids = Page(page).values("id")
    assert "h-funnel" not in ids and "h-accuracy" in ids
    assert report["mine"]["role"] == "other"


def test_each_of_two_reports_has_a_page_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = run_bare(tmp_path, monkeypatch, more="  short: {{kind: report, evaluation: evaluate, examples: 0}}\n")
    shown = [
        json.loads((workspace / f"{name}.json").read_text())["examples"]["problems"] for name in ("report", "short")
    ]
    assert shown[0] and not shown[1]
    assert (workspace / "short.html").read_text() != (workspace / "report.html").read_text()


def test_a_label_that_is_a_key_of_the_report_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be labelled 'stages'"):
        run_bare(tmp_path, monkeypatch, "stages")


# -- laws of drawing --------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, numbers, st.integers(2, 6))
def test_ticks_are_few_ordered_and_span_the_data(a: float, b: float, about: int) -> None:
    low, high = min(a, b), max(a, b)
    ticks = svg.nice_ticks(low, high, about)
    assert ticks == sorted(set(ticks)) and len(ticks) <= 2 * about + 2
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack


@given(st.lists(st.tuples(st.integers(1, 10**6), numbers), min_size=1, max_size=60, unique_by=lambda p: p[0]))
def test_a_curve_can_be_drawn_of_anything(points: list[tuple[int, float]]) -> None:
    from xml.etree import ElementTree

    drawn = svg.curve("name", "title", "about", sorted(points), "red")
    ElementTree.fromstring(drawn)
    assert "nan" not in drawn and "inf" not in drawn
    assert [x for x, _ in svg.smoothed(sorted(points))] == sorted(x for x, _ in points)


@given(st.text(), st.text())
def test_a_label_never_breaks_out_of_a_drawing(label: str, aside: str) -> None:
    from xml.etree import ElementTree

    row = svg.Bar(visible(label), 0.5, (0.4, 0.6), "50%", visible(aside), mark=0.7)
    root = ElementTree.fromstring(svg.bars("n", visible(label), visible(aside), [row]))
    texts = ["".join(node.itertext()) for node in root.iter("text")]
    assert visible(label) in texts


# -- as a browser sees it ---------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a headless browser (apt-get install chromium)")


def dom(page: Path, profile: Path) -> str:
    """The page's elements after it was shown and its scripts, if it has any, were run."""
    assert CHROMIUM
    quiet = "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *quiet.split(), f"--user-data-dir={profile}"]
    command += ["--window-size=1400,3000", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


FRAME = """<!doctype html><body style="margin:0"><script>
async function measure(width, text) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:3000px;border:0`;
  frame.srcdoc = text;
  await new Promise(done => { frame.onload = done; document.body.append(frame); });
  const page = frame.contentDocument;
  const plots = [...page.querySelectorAll("svg.plot")].map(plot => plot.getBoundingClientRect());
  return {width, scroll: page.documentElement.scrollWidth, plots: plots.length,
          small: plots.filter(box => box.width < 100 || box.height < 15).length,
          letters: getComputedStyle(page.querySelector("svg.plot .tick")).fontSize};
}
(async () => {
  const found = [];
  for (const width of [375, 1400]) found.push(await measure(width, TEXT));
  document.body.innerHTML = "<output>" + JSON.stringify(found) + "</output>";
})();
</script>"""


@browser
def test_the_page_fits_phones_and_wide_screens(page: str, tmp_path: Path) -> None:
    file = tmp_path / "frame.html"
    file.write_text(FRAME.replace("TEXT", json.dumps(page).replace("</", "<\\/")))
    output = re.search("<output>(.*?)</output>", dom(file, tmp_path / "profile"))
    assert output
    for seen in json.loads(output[1]):
        assert seen["scroll"] <= seen["width"], seen
        assert seen["plots"] > 10 and seen["small"] == 0
        assert seen["letters"] == "12px"


@browser
def test_a_browser_runs_no_script_that_a_model_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = run_bare(tmp_path, monkeypatch)
    shown = dom((workspace / "report.html").resolve(), tmp_path / "profile")
    assert "<title>Share of problems solved" in shown and "<img" not in shown


def test_reward_models_are_shown_with_their_measures(report: dict[str, Any], page: str) -> None:
    assert "h-judging" not in page
    scored = [measures.Scored(f"p{n}", [0.9, 0.2 + 0.1 * n], [1.0, float(n % 2)], bool(n % 2), 0.5) for n in range(4)]
    more = {"reward_models": {"prm": {"heldout": measures.summary(scored)}}}
    judged = render({**report, **more})
    assert "h-judging" in judged and "prm, held out" in judged
    assert judging.model_rows(more["reward_models"])[0][:3] == ["prm, held out", "8", "0.875"]


def test_the_page_is_rendered_from_the_json_alone(report: dict[str, Any], page: str) -> None:
    assert render(report) == page
