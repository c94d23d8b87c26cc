"""`distill ask`: bounds on the thinking, what is shown of it and when, and answers from several samples."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import serving, streamed

pytest.importorskip("torch")

from tiny import chat_tokenizer, reward_model

from distill import modelspec, pretrained
from distill.cli import ask as asking
from distill.cli.ask import Search, Where
from distill.cli.options import Dtype, Effort
from distill.cli.speaking import Aside, Speaker, held_back, speak
from distill.engines.base import SoFar
from distill.types import Completion, Finish, ThinkingBudget
from pipeline.errors import InputError

QUESTION = "Compute left to right: 4 + 32 - 10 - 1 * 3 + 13"
PIPELINE = "name: p\nstages:\n  problems: {sources: [{family: calc, train: 2}]}\n"


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    (tmp_path / "p.yaml").write_text(PIPELINE)

    def ask(
        budget: int | None = None, effort: Effort | None = None, force: int = 0, as_json: bool = True,
        model: str = "embedded:teacher", search: Search | None = None, temperature: float | None = None, **where: Any,
    ) -> Any:  # fmt: skip
        place = Where(model, tmp_path / "p.yaml", None, **where)
        asking.ask(QUESTION, place, search or Search(), not as_json, temperature, 96, budget, effort, force, 0, as_json)
        output = capsys.readouterr().out
        return json.loads(output) if as_json else output

    return ask


def test_a_budget_ends_the_thinking_and_an_answer_still_follows(ask: Any) -> None:
    free, capped = ask(), ask(budget=8)
    assert free["answer"] and free["thinking_tokens"] > 12
    assert capped["closed"] and capped["answer"] and len(capped["thinking"].split()) <= 8
    assert free["thinking"].startswith(capped["thinking"])


def test_forced_thinking_is_longer(ask: Any) -> None:
    free = ask()
    longer = ask(force=free["thinking_tokens"] + 10)
    assert longer["thinking_tokens"] > free["thinking_tokens"] and "Wait" in longer["thinking"]


def test_the_thinking_is_shown_on_request(ask: Any) -> None:
    found = ask()
    assert found["thinking"] in ask(as_json=False) and found["answer"] in ask(as_json=False)


# -- streaming --------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


SAID = [
    "<thi",
    "<think>\nTwo ",
    "<think>\nTwo threes</th",
    "<think>\nTwo threes\n</think>\n\n",
    "<think>\nTwo threes\n</think>\n\n6",
]


def printed(out: io.StringIO, show: bool, texts: list[str] = SAID, cut: bool = False) -> str:
    finish = Finish.LENGTH if cut else Finish.STOP
    end = Completion("k", "p", (1,), texts[-1], (1, 2), None, finish)
    pieces = [SoFar("p", text, at) for at, text in enumerate(texts)]
    assert speak([*pieces, end], Speaker(out, show)) is end
    return out.getvalue()


def test_a_pipe_gets_the_text_and_nothing_else() -> None:
    assert printed(io.StringIO(), show=False) == "6\n"
    assert printed(io.StringIO(), show=True) == "Two threes\n\n6\n"


def test_a_terminal_shows_the_thinking_dimmed_or_as_a_count_that_disappears() -> None:
    counted = printed(Terminal(), show=False)
    assert "thinking: 1 tokens" in counted and "Two" not in counted
    assert counted.endswith("\r\x1b[K6\n") and counted.rindex("thinking") < counted.rindex("\x1b[K")
    assert printed(Terminal(), show=True) == "\x1b[2mTwo\x1b[0m\x1b[2m threes\x1b[0m\n\n6\n"


def test_a_possible_tag_is_held_back_and_retracted_text_is_replaced() -> None:
    assert held_back("a </thin") == "a " and held_back("<") is None and held_back("a < b") == "a < b"
    changed = ["<think>\nso 6.", "<think>\nso", "<think>\nso\nWait, 7.\n</think>\n\n7"]
    assert printed(io.StringIO(), show=True, texts=changed).endswith("so\nWait, 7.\n\n7\n")


def test_an_interrupt_leaves_a_clean_terminal() -> None:
    def pieces() -> Iterator[SoFar]:
        yield SoFar("p", SAID[1], 3)
        raise KeyboardInterrupt

    for show, end in ((False, "\r\x1b[K\x1b[0m"), (True, "Two\x1b[0m\x1b[0m\n")):
        out = Terminal()
        with pytest.raises(KeyboardInterrupt):
            speak(pieces(), Speaker(out, show))
        assert out.getvalue().endswith(end)


def test_escape_sequences_of_a_model_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in printed(io.StringIO(), show=False, texts=["evil \x1b[31m", "evil \x1b[31mred"])


def test_the_answer_of_an_endpoint_is_shown_while_it_arrives(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    show = Speaker.show
    monkeypatch.setattr(Speaker, "show", lambda self, so_far: (shown.append(so_far.text), show(self, so_far))[1])
    with serving() as server:
        first = streamed(
            {"reasoning_content": "Two threes"}, {"content": "It "}, {"content": "is 6."},
            pause=lambda: time.sleep(0.15),
        )  # fmt: skip
        server.otherwise = first
        output = ask(as_json=False, model="tiny", base_url=server.url)
    assert output == "Two threes\n\nIt is 6.\n"
    assert "<think>\nTwo threes" in shown and "<think>\nTwo threes\n</think>\n\nIt " in shown


# -- several samples --------------------------------------------------------------------------


def test_a_strategy_reports_its_answer_with_its_cost(ask: Any) -> None:
    found = ask(search=Search("majority", 3), as_json=True)
    assert found["calls"] == 3 and sum(found["weights"].values()) == 3 and found["sampled_tokens"] > 60
    assert found["answer"] == max(found["weights"], key=found["weights"].get)
    searched = ask(search=Search("{beam: {width: 2}}", 2, likelihood="embedded:teacher"))
    assert searched["strategy"] == "beam width=2" and searched["scored_tokens"] > 0 and searched["answer"]


def test_a_reward_model_scores_and_is_refused_with_another_tokenizer_or_step_rule(
    ask: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = pretrained.tokenizer_of(modelspec.Model(str(modelspec.EMBEDDED / "teacher"), ""))
    foreign = reward_model(tmp_path / "foreign", chat_tokenizer(), "line")
    by_paragraph = reward_model(tmp_path / "paragraph", own, "paragraph")
    with pytest.raises(InputError, match=r"its tokenizer is not that of model .*teacher"):
        ask(search=Search("weighted", 2, prm=foreign))
    with pytest.raises(InputError, match=r"searches by the line, but .* another rule \(paragraph\)"):
        ask(search=Search("dvts", 4, prm=by_paragraph))
    found = ask(search=Search("best_of", 2, prm=by_paragraph))
    assert 0 < found["score"] < 1 and not found["weights"] and found["scored_tokens"] > found["sampled_tokens"] / 2
    asking.ask(QUESTION, Where("embedded:teacher", tmp_path / "p.yaml", None), Search("best_of", 2, by_paragraph), False,
               None, 96, None, None, 0, 0, False)  # fmt: skip
    assert "best_of, score 0." in capsys.readouterr().err


@pytest.mark.parametrize("by", ["prm", "likelihood"])
def test_the_scoring_model_is_loaded_in_the_requested_precision(by: str, ask: Any, tmp_path: Path) -> None:
    """The same samples get nearly the same scores."""
    own = pretrained.tokenizer_of(modelspec.Model(str(modelspec.EMBEDDED / "teacher"), ""))
    scorer = {by: reward_model(tmp_path / "prm", own, "line") if by == "prm" else "embedded:teacher"}
    full, half = (ask(search=Search("best_of", 2, **scorer, dtype=dtype)) for dtype in (None, Dtype.BFLOAT16))
    assert half["score"] != full["score"] == pytest.approx(half["score"], abs=0.1)


@pytest.mark.parametrize(
    ("search", "more", "message"),
    [
        (Search("beem"), {}, "did you mean 'beam'?"),
        (Search("beam"), {}, "--prm DIRECTORY or --likelihood MODEL"),
        (Search("allocate"), {}, "for one question use adaptive"),
        (Search("{best_of: {by: verifier}}"), {}, "a question has no right answer to judge by"),
        (Search("beam", 6, likelihood="embedded:teacher"), {}, "6 samples is not a multiple of the search's width, 4"),
        (Search("majority", prm="."), {}, "uses no step scorer; leave out --prm"),
        (Search("majority"), {"temperature": 0.0}, "needs a --temperature above 0"),
        (Search(prm="x"), {}, "name a --strategy too"),
        (Search(samples=3), {}, "name a --strategy too"),
        (Search("majority", dtype=Dtype.BFLOAT16), {}, "--scorer-dtype is about the model that scores steps"),
        (Search("weighted", prm="nowhere"), {}, "nowhere is no directory; what a stage made is prm:STAGE"),
        (Search("weighted", prm="prm:judge"), {}, "--prm prm:judge: no stage of"),
        (Search(), {"model": "stage:problems"}, "has no such stage that makes a student"),
        (Search("beam", likelihood="embedded:teacher"), {"base_url": "http://127.0.0.1:1/v1", "model": "tiny"},
         "cannot stop at the end"),
        (Search(), {"base_url": "nonsense"}, "--base-url: expected http"),
        (Search(), {"base_url": "http://127.0.0.1:1/v1", "dialect": "tgi"}, "--dialect: Input should be 'openai'"),
        (Search(), {"base_url": "http://127.0.0.1:1/v1", "engine": "vllm"}, "give one of them"),
        (Search(), {"base_url": "http://127.0.0.1:1/v1", "key_from": "NO_SUCH_KEY"}, "no such environment variable"),
        (Search(), {"dialect": "vllm"}, "--dialect is about an endpoint"),
        (Search(), {"engine": "openai"}, "needs the endpoint's address"),
        (Search(), {"engine": "tgi"}, "there are transformers, vllm and openai"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_one_line_errors(
    ask: Any, search: Search, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        ask(search=search, **more)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_response_that_was_cut_is_not_printed_as_an_answer(
    ask: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = Where("embedded:teacher", tmp_path / "p.yaml", None)
    asking.ask(QUESTION, where, Search(), False, None, 12, None, None, 0, 0, False)
    output = capsys.readouterr()
    assert output.out == "" and "cut off at 12 tokens, before the thinking was complete" in output.err


def test_a_missing_answer_is_reported_after_the_notes_of_the_engine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with serving() as server:
        server.otherwise = streamed({"content": "<think>\nTwo threes"})
        where = Where("tiny", tmp_path / "p.yaml", None, base_url=server.url)
        asking.ask(QUESTION, where, Search(), True, None, None, None, None, 0, 0, False)
    output = capsys.readouterr()
    assert output.out == "Two threes\n"
    notes = output.err.splitlines()
    assert len(notes) == 2 and notes[1] == "no answer: the model stopped inside its thinking"


def test_the_notes_of_an_engine_wait_until_the_answer_is_complete() -> None:
    out = io.StringIO()
    aside = Aside(out)
    aside.show("loading")
    with aside.waiting():
        aside.show("one call made again")
        assert out.getvalue() == "loading\n"
    assert out.getvalue() == "loading\none call made again\n"


# -- bounds -----------------------------------------------------------------------------------


def test_effort_is_a_share_of_max_tokens() -> None:
    bounds = {effort: asking.bounds(512, None, effort, 0) for effort in Effort}
    assert bounds == {Effort.LOW: ThinkingBudget(64), Effort.MEDIUM: ThinkingBudget(256), Effort.HIGH: None}
    assert asking.bounds(512, None, None, 0) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((512, 8, Effort.LOW, 0), "give one of them"),
        ((512, 8, None, 9), "--force-budget 9 is more thinking than the 8 tokens there may be"),
        ((512, 512, None, 0), "512 tokens of thinking leave no room for the answer in --max-tokens 512"),
        ((512, None, Effort.HIGH, 600), "600 tokens of thinking leave no room"),
    ],
)
def test_contradictory_bounds_are_refused(asked: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        asking.bounds(*asked)


def test_without_max_tokens_there_is_room_for_the_requested_thinking() -> None:
    assert (asking.room(0), asking.room(511), asking.room(2000)) == (512, 512, 2512)
