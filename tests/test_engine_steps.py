"""Responses that end after a step: where they end, that steps make up the whole, and which engines cannot do it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from distill.engines.base import NoSteps, SoFar, streamed
from distill.engines.budget import StepEnd
from distill.engines.dialects import check_request
from distill.engines.options import OpenAIOptions
from distill.engines.transformers import TransformersEngine
from distill.modelspec import Model
from distill.pretrained import load
from distill.types import Completion, Finish, Request, Sampling

QUESTION = ({"role": "user", "content": "Compute left to right: 4 + 32 - 10 - 1 * 3 + 13"},)
GREEDY = Sampling(temperature=0.0, max_tokens=96)


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    network, tokenizer = load(Model("embedded:teacher", "teacher"))
    yield TransformersEngine(network, tokenizer, model_identity="teacher", slots=8)


def one(engine: Any, prefix: str = "", stop: str = "\n", sampling: Sampling = GREEDY) -> Completion:
    (found,) = engine.generate([Request(f"{prefix}{stop}", QUESTION, sampling, prefix, stop=stop)])
    return found


@pytest.mark.parametrize(
    ("tokens", "stop", "ends_after"),
    [
        (["a", "\n", "b", "\n"], "\n", 2),
        (["<think>", "\n", "a", "\n"], "\n", 4),  # tags and white space alone are not a step
        (["\n", "\n", "a", "\n"], "\n\n", None),
        (["a", "\n", "\n", "b"], "\n\n", 3),  # a stop in two tokens
        (["a", ".\n\nB", "c"], "\n\n", 2),  # and in the middle of one
        (["</think>", "\n", "\n", "7"], "\n", None),
    ],
)
def test_a_step_ends_at_its_stop_only_after_some_text(tokens: list[str], stop: str, ends_after: int | None) -> None:
    watch = StepEnd(stop, lambda token: tokens[token])
    ended = [n + 1 for n in range(len(tokens)) if watch.ended(n)]
    assert (ended[0] if ended else None) == ends_after


def test_greedy_steps_make_up_the_greedy_response(engine: TransformersEngine) -> None:
    whole = one(engine, stop="")
    assert whole.finish is Finish.STOP and whole.text.count("\n") > 4
    text, made, ends = "", 0, []
    while not ends or ends[-1] is Finish.STEP:
        piece = one(engine, text)
        assert piece.text.startswith(text) and piece.forced == tuple(range(len(piece.forced)))
        text, made = piece.text, made + piece.tokens - len(piece.forced)
        ends.append(piece.finish)
    assert (text, made) == (whole.text, whole.tokens) and ends[-1] is Finish.STOP
    assert len(ends) == len([line for line in whole.text.split("\n") if line and "think" not in line])


def test_a_response_at_its_limit_does_not_finish_as_a_step(engine: TransformersEngine) -> None:
    """Even if the last token before the limit ends a step: nothing can follow it."""
    step = one(engine)
    exact = one(engine, sampling=Sampling(temperature=0.0, max_tokens=step.tokens))
    assert step.finish is Finish.STEP and exact.finish is Finish.LENGTH and exact.text == step.text


def test_a_step_does_not_depend_on_its_neighbours(engine: TransformersEngine) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=96, seed=3)
    asked = [Request(f"k{n}", QUESTION, sampling, stop="\n" if n % 2 else "") for n in range(6)]
    together = {c.key: c.token_ids for c in engine.generate(asked)}
    assert all(next(engine.generate([r])).token_ids == together[r.key] for r in asked[:2])


def test_a_response_is_shown_while_it_is_sampled(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.engines.transformers.SHOWN_SECONDS", 0.0)
    request = Request("stream", QUESTION, GREEDY)
    *shown, last = streamed(engine, request, lambda text: None)
    assert isinstance(last, Completion) and last.text == one(engine, stop="").text
    texts = [piece.text for piece in shown if isinstance(piece, SoFar)]
    assert len(texts) > 20 and all(last.text.startswith(text) for text in texts)
    assert texts == sorted(texts, key=len)


def test_the_engine_works_on_after_a_listener_that_left(engine: TransformersEngine) -> None:
    for _ in streamed(engine, Request("dropped", QUESTION, GREEDY), lambda text: None):
        break
    assert one(engine).finish is Finish.STEP


def test_an_engine_that_cannot_stop_at_a_step_names_one_that_can() -> None:
    options = OpenAIOptions(base_url="http://127.0.0.1:1/v1")
    with pytest.raises(NoSteps, match=r"engine openai .* cannot stop at the end of a step.*use the transformers or"):
        check_request(Request("k", QUESTION, GREEDY, stop="\n"), options)


def test_an_engine_that_cannot_stream_gives_the_whole_response_with_a_note() -> None:
    class Whole:
        name = "whole"

        def generate(self, requests: Any) -> Iterator[Any]:
            yield from requests

    notes: list[str] = []
    assert list(streamed(Whole(), "it", notes.append)) == ["it"]  # type: ignore[arg-type]
    assert "comes whole" in notes[0]
