"""The search stage: stored samples cost nothing, a stopped run resumes exactly, bad settings are one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")

from tiny import chat_tokenizer, reward_model

from distill import catalog, modelspec, pretrained
from distill.engines import open_engine
from distill.engines.options import TransformersOptions
from distill.generation import Wanted, request_of, row_of
from distill.store import Store
from distill.types import Asked, Finish, Sampling, ThinkingBudget
from pipeline import config, runner
from pipeline.errors import InputError, Stopped
from pipeline.events import Listener
from pipeline.stage import result_settings
from pipeline.workspace import Workspace
from rl.search import pieces
from rl.stages.search import SearchSettings

TEACHER = "embedded:teacher"
SAMPLING = {"temperature": 1.5, "max_tokens": 96}
ENGINE = {"kind": "transformers", "workers": 1}
ALONE = ["greedy", "majority", "adaptive", "allocate"]
HELPED = [{"best_of": {"by": "verifier"}}, "weighted", {"beam": {"width": 2, "by": "teacher"}}]
EXACT = ("majority", "best_of by verifier", "weighted by teacher", "weighted by <base>")
SEARCH = {
    "problems": "problems", "model": TEACHER, "engine": ENGINE, "sampling": SAMPLING, "budgets": [1, 4],
    "scorers": {"teacher": {"likelihood": TEACHER}, "<base>": {"likelihood": "embedded:student-base"}},
    "strategies": [*ALONE, *HELPED],
}  # fmt: skip
EVALUATE = {
    "problems": "problems", "models": {"m": TEACHER}, "engine": ENGINE, "sampling": SAMPLING, "samples": 4,
    "greedy": False,
}  # fmt: skip

FAILS = """
from distill import Verdict

class Mine:
    name, version = "mine", "1"

    def verify(self, problem, trace):
        if trace.answer in {answers}:
            raise OSError("hangs")
        return Verdict.correct("as any")
"""


def run(
    where: Path, stopping: Callable[[], bool] = lambda: False, only: str = "search", **changes: Any
) -> dict[str, Any]:
    stages = {
        "problems": {"sources": [{"family": "calc", "heldout": 3}]}, "evaluate": EVALUATE, "search": SEARCH | changes,
        "report": {"evaluation": "evaluate", "search": "search", "examples": 0},
    }  # fmt: skip
    text = yaml.safe_dump({"name": "p", "workspace": str(where / "w"), "stages": stages}, sort_keys=False)
    (where / "p.yaml").write_text(text)
    spec = config.load(where / "p.yaml", catalog.stage)
    done = runner.run(spec, Workspace(where / "w"), Listener(), stopping, [only])
    return dict(done[-1].manifest.figures)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def figures(place: Path) -> dict[str, Any]:
    run(place, only="evaluate")
    return run(place)


def rows(place: Path, sql: str) -> list[dict[str, Any]]:
    return Store(place / "w").rows(sql)


def test_search_reuses_the_whole_responses_that_evaluate_sampled(figures: dict[str, Any], place: Path) -> None:
    """12 samples and a greedy response to each of the three problems; all other traces are pieces of searches."""
    whole = rows(place, "SELECT count(*) AS n FROM traces WHERE prefix IS NULL AND finish <> 'step'")[0]["n"]
    first_steps = rows(place, "SELECT count(*) AS n FROM traces WHERE prefix IS NULL AND finish = 'step'")[0]["n"]
    assert whole == 3 * 4 + 3 and first_steps > 0
    assert [point["calls"] for point in figures["strategies"]["majority"]["points"]] == [1, 4]


def test_the_majority_is_that_of_the_stored_samples(figures: dict[str, Any], place: Path) -> None:
    point = figures["strategies"]["majority"]["points"][-1]
    assert point["tokens_saved"] == 0 and point["scored_tokens"] == 0
    equal = point["against_majority"]["at_equal_samples"]
    assert (equal["samples"], equal["difference"]) == (4, 0)


def test_weighted_votes_have_a_curve_per_scorer_and_other_strategies_one(figures: dict[str, Any]) -> None:
    assert list(figures["strategies"]) == [
        "greedy", "majority", "adaptive", "allocate", "best_of by verifier", "weighted by teacher",
        "weighted by <base>", "beam width=2 by teacher",
    ]  # fmt: skip
    assert figures["strategies"]["weighted by teacher"]["by"] == "teacher"
    assert figures["scorers"].keys() == {"teacher", "<base>"}
    one, four = figures["strategies"]["weighted by teacher"]["points"]
    assert one["accuracy"] == figures["strategies"]["majority"]["points"][0]["accuracy"]  # one sample leaves no choice
    assert (one["calls"], four["calls"]) == (1, 4) and four["scored_tokens"] > one["scored_tokens"] > 0


def test_a_scorer_s_auc_is_that_of_its_stored_scores(figures: dict[str, Any], place: Path) -> None:
    found = rows(
        place,
        "SELECT problem_key, scorer, list_product(steps) AS score, outcome = 'correct' AS correct FROM step_scores "
        "JOIN verdicts USING (trace_key) JOIN traces USING (trace_key) "
        "WHERE finish <> 'step' AND prefix IS NULL AND temperature > 0",
    )
    expected = []
    for scorer in {row["scorer"] for row in found}:
        own = [row for row in found if row["scorer"] == scorer]
        assert len(own) == 12
        pairs = [(a, b) for a in own for b in own if a["correct"] and not b["correct"]]
        within = [(a, b) for a, b in pairs if a["problem_key"] == b["problem_key"]]
        shares = [
            sum((a["score"] > b["score"]) + (a["score"] == b["score"]) / 2 for a, b in of) for of in (pairs, within)
        ]
        expected.append({
            "auc": pytest.approx(shares[0] / len(pairs), abs=1e-4),
            "auc_within": pytest.approx(shares[1] / len(within), abs=1e-4),
        })  # fmt: skip
    assert all(scorer in expected for scorer in figures["scorers"].values())


def test_each_choice_is_a_row_with_its_cost_and_a_judged_trace(figures: dict[str, Any], place: Path) -> None:
    found = rows(
        place,
        "SELECT s.strategy, s.budget, s.calls, s.sampled_tokens, s.correct, t.answer, s.trace_key FROM searches s "
        "LEFT JOIN traces t USING (trace_key) LEFT JOIN verdicts v USING (trace_key, problem_key)",
    )
    orders = {label: 4 if label in ("adaptive", "allocate") else 1 for label in figures["strategies"]}
    assert len(found) == 3 * 2 * sum(orders.values())
    assert {row["strategy"] for row in found if row["trace_key"] is None} == set(EXACT)
    for label, curve in figures["strategies"].items():
        for point in curve["points"]:
            ours = [row for row in found if row["strategy"] == label and row["budget"] == point["samples"]]
            assert sum(row["calls"] for row in ours) / len(ours) == pytest.approx(point["calls"], abs=1e-3)
            assert sum(row["correct"] for row in ours) / len(ours) == pytest.approx(point["accuracy"], abs=1e-3)


def test_each_piece_of_a_search_continues_from_an_earlier_step(figures: dict[str, Any], place: Path) -> None:
    found = rows(place, "SELECT prefix, cut, finish FROM traces WHERE prefix IS NOT NULL")
    texts = {row["cut"] for row in rows(place, "SELECT cut FROM traces WHERE finish = 'step'")}
    assert found and all(row["prefix"] in texts for row in found)
    assert {row["finish"] for row in found} <= {str(f) for f in (Finish.STEP, Finish.STOP, Finish.LENGTH)}


def test_steps_of_searches_are_not_offered_as_responses(figures: dict[str, Any], place: Path) -> None:
    counted = rows(
        place, "SELECT sum(traces)::INTEGER AS n, sum(finished + truncated + empty)::INTEGER AS e FROM outcomes"
    )[0]
    offered = rows(place, "SELECT count(*) AS n FROM overview")[0]["n"]
    whole = rows(place, "SELECT count(*) AS n FROM traces WHERE finish <> 'step'")[0]["n"]
    assert counted["n"] == counted["e"] == offered == whole


def test_step_by_step_searches_are_compared_with_choices_of_whole_responses(figures: dict[str, Any]) -> None:
    assert {(rival["strategy"], rival["against"]) for rival in figures["rivals"]} == {
        ("beam width=2 by teacher", "weighted by teacher")
    }  # fmt: skip


def test_the_report_has_every_curve_and_its_table(figures: dict[str, Any], place: Path) -> None:
    run(place, only="report")
    reported = json.loads((place / "w" / "report.json").read_text())["search"]
    page = (place / "w" / "report.html").read_text()
    assert reported["strategies"] == figures["strategies"] and reported["rivals"] == figures["rivals"]
    section = page[page.index('id="h-search"') : page.index('id="h-lengths"')]
    assert "What a token buys" in section and section.count('role="img"') == 2 * 3 + 1
    assert "Scored by teacher" in section and "Scored by &lt;base&gt;" in section and "<base>" not in section
    for label, found in figures["strategies"].items():
        assert section.count(f"<td>{escape(label)}</td>") >= len(found["points"])
        assert f"{found['way']}: " in section  # in the description of a plot
    assert ": a majority of 4<" in section and "nan" not in section


def test_a_search_stopped_anywhere_and_resumed_equals_an_uninterrupted_one(
    figures: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    stops, found = 0, None
    for patience in (3, 25, 10_000):
        asked = count()
        try:
            found = run(tmp_path, lambda asked=asked, patience=patience: next(asked) > patience)  # type: ignore[misc]
            break
        except Stopped:
            stops += 1
    assert stops >= 2 and found == figures
    for table in ("searches", "step_scores"):
        both = [rows(where, f"SELECT * FROM {table} ORDER BY ALL") for where in (place, tmp_path)]
        assert len(both[0]) == len(both[1]) > 0
    assert rows(tmp_path, "SELECT count(*) - count(DISTINCT trace_key) AS twice FROM traces") == [{"twice": 0}]


def test_a_search_of_stored_samples_alone_makes_none(figures: dict[str, Any], place: Path) -> None:
    """The results are those with an engine. A missing sample is reported, and nothing is made."""
    again = run(place, stored=True, strategies=["majority", "adaptive"])
    assert again["strategies"]["adaptive"] == figures["strategies"]["adaptive"]
    with pytest.raises(InputError, match=r"sample 5 is needed, but the store holds fewer; lower the budgets; leave"):
        run(place, stored=True, budgets=[8], strategies=["majority"])


def test_a_scorer_in_half_precision_is_another_scorer(figures: dict[str, Any], place: Path) -> None:
    """The default precision, spelled out or not, is the same scorer."""
    before = {row["scorer"] for row in rows(place, "SELECT DISTINCT scorer FROM step_scores")}
    asked: list[dict[str, Any]] = [{"likelihood": TEACHER, "dtype": dtype} for dtype in ("float32", "bfloat16")]
    again = [run(place, stored=True, strategies=["weighted"], scorers={"s": spec}) for spec in asked]
    (new,) = {row["scorer"] for row in rows(place, "SELECT DISTINCT scorer FROM step_scores")} - before
    assert new.removesuffix(":bfloat16") in before
    assert again[0]["scorers"]["s"] == figures["scorers"]["teacher"]
    pairs = rows(
        place, f"SELECT h.steps AS half, f.steps AS full FROM step_scores h JOIN step_scores f USING (trace_key) "
        f"WHERE h.scorer = '{new}' AND f.scorer || ':bfloat16' = '{new}'"
    )  # fmt: skip
    assert len(pairs) == 12 and any(row["half"] != row["full"] for row in pairs)


def test_short_and_long_spellings_of_a_scorer_are_the_same(tmp_path: Path) -> None:
    directory = reward_model(tmp_path / "prm", chat_tokenizer(), "line")

    def fingerprinted(spec: Any) -> dict[str, Any]:
        return result_settings(
            SearchSettings.model_validate(SEARCH | {"scorers": {"s": spec}, "strategies": ["weighted"]})
        )

    for short, long in (
        (directory, {"model": directory}), ("prm:prm", {"model": "prm:prm"}),
        ({"likelihood": TEACHER}, {"likelihood": TEACHER}),
    ):  # fmt: skip
        assert (
            fingerprinted(short)
            == fingerprinted({**long, "dtype": "float32"})
            != fingerprinted({**long, "dtype": "bfloat16"})
        )


def test_a_verifier_may_fail_on_every_new_answer_of_one_strategy(
    figures: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    """A strategy may add a single new answer on which the verifier fails; that does not make the verifier broken."""
    shutil.copytree(place / "w", tmp_path / "w", symlinks=True)
    greedy = rows(place, "SELECT answer FROM traces WHERE temperature = 0 AND finish <> 'step' AND prefix IS NULL")
    (tmp_path / "mine.py").write_text(FAILS.format(answers=[row["answer"] for row in greedy]))
    own = f"{tmp_path}/mine.py:Mine"
    found = run(tmp_path, stored=True, scorers={}, verifier=own, strategies=["majority", "greedy"])["strategies"]
    assert found["majority"]["points"][0]["accuracy"] > 0 and found["greedy"]["points"][0]["accuracy"] is None


def test_a_piece_from_the_store_equals_the_one_from_the_engine() -> None:
    """A step, a continuation of it, a response with a thinking budget, a cut response, and a whole one."""
    problem = catalog.resolve("families", "calc")().generate(0, 0, "heldout")
    model = modelspec.Model(str(modelspec.EMBEDDED / "teacher"), "teacher")
    plain = Asked(problem.messages)
    asked = [
        (replace(plain, stop="\n"), 96), (replace(plain, prefix="<think>\n1 + 1 = 2\n", stop="\n"), 96),
        (replace(plain, budget=ThinkingBudget(8)), 96), (plain, 12), (plain, 96),
    ]  # fmt: skip
    wishes = [Wanted(f"{n}", "p", problem, Sampling(max_tokens=most), 0, each) for n, (each, most) in enumerate(asked)]
    with closing(open_engine(TransformersOptions(workers=1), model)) as engine:
        made = {completion.key: completion for completion in engine.generate(map(request_of, wishes))}
    found = [pieces.of_completion(made[wish.key]) for wish in wishes]
    assert found == [pieces.of_row(row_of(wish, made[wish.key], engine)) for wish in wishes]
    assert [piece.finish for piece in found] == [Finish.STEP, Finish.STEP, Finish.STOP, Finish.LENGTH, Finish.STOP]
    begun = len(made["1"].forced)
    assert (
        made["2"].forced and found[2].tokens == made["2"].tokens
    )  # its thinking was closed, but nothing was prefilled
    assert found[1].prompt_tokens == found[0].prompt_tokens + begun and found[1].tokens == made["1"].tokens - begun
    assert [piece.ballot is None for piece in found] == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorers": {}}, "strategies.weighted: needs a step scorer; name one under `scorers`"),
        ({"strategies": [{"weighted": {"by": "mine"}}]}, "no scorer is called mine; there are: teacher, <base>"),
        ({"strategies": ["weighted", {"weighted": {"by": "teacher"}}]}, "weighted by teacher is named twice"),
        ({"scorers": {"verifier": {"likelihood": TEACHER}}}, "give it another label"),
        ({"scorers": {"mine": {"prm": "prm:x"}}}, "scorers.mine: expected a process reward model (prm:STAGE, or its"),
        ({"scorers": {"mine": {"likelihood": "embedded:nope"}}}, "scorers.mine: likelihood: "),
        ({"scorers": {"mine": {"model": "prm:x", "dtype": "fp8"}}}, "scorers.mine: dtype: should be 'float32' or 'bfloat16'"),
        ({"scorers": {"mine": {"model": "prm:x", "likelihood": TEACHER}}}, "scorers.mine: expected a process reward"),
        ({"scorers": {"mine": {"model": "nowhere", "dtype": "bfloat16"}}}, "prm nowhere: nowhere is not a directory"),
        ({"scorers": {"mine": "nowhere"}}, "prm nowhere: nowhere is not a directory; expected prm:STAGE or that of a prm"),
        ({"engine": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"}, "model": "m"}, "cannot stop at the end of a step"),
        ({"budgets": [1, 3]}, "a budget of 3 samples is not a multiple of the search's width, 2"),
        ({"samples": 2}, "a budget of 4 samples is more than the 2 there are"),
        ({"sampling": {"temperature": 0.0}}, "temperature must be above 0"),
        ({"strategies": ["majority", {"majority": {}}]}, "majority is named twice"),
        ({"strategies": [{"allocate": {"most": 9}}]}, "9 samples of a problem are more than the 4 there are"),
        ({"strategies": ["beem"]}, "did you mean 'beam'?"),
        ({"scorers": {"mine": "prm:problems"}, "strategies": ["weighted"]}, "problems"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_before_anything_is_made(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        run(tmp_path, **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "w" / "store.duckdb").exists()


def test_an_unsuitable_reward_model_is_refused_before_sampling(tmp_path: Path) -> None:
    own = pretrained.tokenizer_of(modelspec.Model(str(modelspec.EMBEDDED / "teacher"), ""))
    foreign = reward_model(tmp_path / "foreign", chat_tokenizer(), "line")
    by_paragraph = reward_model(tmp_path / "paragraph", own, "paragraph")
    for scorer, message in (
        (foreign, "its tokenizer is not that of model"),
        (by_paragraph, "searches by the line, but the"),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path, scorers={"mine": scorer}, strategies=["majority", {"dvts": {"width": 2}}], budgets=[2])
    assert rows(tmp_path, "SELECT count(*) AS n FROM traces") == [{"n": 0}]
