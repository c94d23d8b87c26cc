"""The embedded engine: beginnings that are given, and thinking budgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engine import build_model, build_tokenizer

from distill.engines import transformers
from distill.engines.budget import Budget, Course
from distill.engines.transformers import TransformersEngine
from distill.types import Completion, Finish, Request, Sampling, ThinkingBudget
from pipeline.errors import InputError

OPENED = "{{ messages[0]['content'] }}<|im_start|>assistant\n<think>"
CLOSE, END, THINK = 3, 1, 2
REFERENCE: dict[int, Any] = {}
"""The original models, by the id of the engine that has a copy."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def opened(tokenizer: Any) -> TransformersEngine:
    """Its template opens the thinking. The ends of thinking and of the turn are likely tokens."""
    return _engine(OPENED, {CLOSE: 2.3, END: 1.5, THINK: -30.0})


@pytest.fixture(scope="module")
def plain(tokenizer: Any) -> TransformersEngine:
    """Its template opens nothing. The model opens and closes thinking itself."""
    return _engine("{{ messages[0]['content'] }}<|im_start|>assistant\n", {THINK: 2.3, CLOSE: 2.3, END: 1.0})


def _engine(template: str, likely: dict[int, float]) -> TransformersEngine:
    model = build_model("Qwen3", tie_word_embeddings=False)
    bias = torch.zeros(512)
    bias[100:] = -30.0  # tokens of several letters: their text would be encoded as other tokens
    for token, weight in likely.items():
        bias[token] = weight
    model.lm_head.bias = torch.nn.Parameter(bias)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    engine = TransformersEngine(model, tokenizer, model_identity="tiny", slots=32)
    REFERENCE[id(engine)] = model
    return engine


def ask(key: str, budget: ThinkingBudget | None = None, prefix: str = "", **sampling: Any) -> Request:
    message = {"role": "user", "content": "2+2?"}
    return Request(key, (message,), Sampling(**({"max_tokens": 40} | sampling)), prefix, budget)


def by_key(completions: Iterator[Completion]) -> dict[str, Completion]:
    return {c.key: replace(c, seconds=0.0) for c in completions}


def expected_logprobs(engine: TransformersEngine, c: Completion, temperature: float) -> list[float]:
    with torch.no_grad():
        inputs = torch.tensor([c.prompt_ids + c.token_ids])
        logits = (REFERENCE[id(engine)](inputs).logits[0] / temperature).log_softmax(-1)
    return logits[len(c.prompt_ids) - 1 : -1].gather(1, torch.tensor(c.token_ids)[:, None])[:, 0].tolist()


# Beginnings.


@pytest.mark.parametrize("prefix", ["<think>so it is", "<think>" + "so it is " * 18, "i" * 114])
def test_a_given_beginning_is_part_of_the_response(plain: TransformersEngine, tokenizer: Any, prefix: str) -> None:
    """Short beginnings, and long ones, which are computed in pieces."""
    ids = tuple(tokenizer.encode(prefix, add_special_tokens=False))
    bare = by_key(plain.generate([ask("bare")]))["bare"]
    for temperature in (1.0, 0.6, 0.0):
        (c,) = plain.generate([ask("a", prefix=prefix, temperature=temperature, max_tokens=len(ids) + 20)])
        assert c.prompt_ids == bare.prompt_ids and c.prompt == bare.prompt
        assert c.text.startswith(prefix) and c.token_ids[: len(ids)] == ids
        assert c.forced == tuple(range(len(ids)))
        assert len(ids) < len(c.token_ids) <= len(ids) + 20
        assert c.logprobs == pytest.approx(expected_logprobs(plain, c, temperature or 1.0), abs=3e-5)


def test_a_response_given_its_own_beginning_continues_as_before(plain: TransformersEngine) -> None:
    """Token t uses the t-th random number, so a cut response continues as if it had not been cut."""
    whole = by_key(plain.generate(ask(f"k{i}", temperature=0.9) for i in range(12)))
    cut = [ask(key, prefix=_text(c.token_ids[:5]), temperature=0.9) for key, c in whole.items() if len(c.token_ids) > 6]
    assert cut
    for key, c in by_key(plain.generate(cut)).items():
        assert (c.text, c.token_ids, c.finish) == (whole[key].text, whole[key].token_ids, whole[key].finish)
        assert c.logprobs == pytest.approx(whole[key].logprobs, abs=2e-5)


def _text(ids: tuple[int, ...]) -> str:
    return "".join(build_tokenizer().convert_ids_to_tokens(list(ids)))


@pytest.mark.parametrize("most", [50, 40])
def test_a_beginning_that_takes_the_whole_limit_is_a_cut_response(plain: TransformersEngine, most: int) -> None:
    """As with vLLM. A step that was sampled within the limit may be more tokens when its text is encoded again."""
    full, other = replace(ask("full", prefix="i" * 50, max_tokens=most), stop="\n"), ask("other")
    completions = by_key(plain.generate([full, other]))
    c = completions["full"]
    assert (c.finish, c.text, len(c.token_ids), c.forced) == (Finish.LENGTH, "i" * 50, 50, tuple(range(50)))
    assert c.logprobs == pytest.approx(expected_logprobs(plain, c, 1.0), abs=3e-5)
    assert completions["other"].token_ids == by_key(plain.generate([other]))["other"].token_ids


def test_nothing_is_forced_behind_a_beginning_that_takes_all_there_is(opened: TransformersEngine) -> None:
    budget = ThinkingBudget(least=9, extension="Wait", extensions=2)
    for c in opened.generate(ask(f"k{i}", budget, prefix="i" * 5, max_tokens=5) for i in range(40)):
        assert (c.finish, c.text, c.forced) == (Finish.LENGTH, "i" * 5, tuple(range(5)))


def test_such_a_beginning_is_no_long_prompt_where_positions_have_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "positions_limit", lambda model: None)
    engine = TransformersEngine(build_model("Qwen3"), build_tokenizer(), model_identity="tiny", slots=4)
    (c,) = engine.generate([ask("full", prefix="i" * 50)])
    assert (c.finish, c.text) == (Finish.LENGTH, "i" * 50)


@pytest.mark.parametrize("more", [-1, 0, 1, 50])
def test_a_beginning_that_takes_all_positions_is_a_cut_response(plain: TransformersEngine, more: int) -> None:
    """Its tokens are those that the positions hold. One token short of them, one is sampled."""
    positions = 256 - len(by_key(plain.generate([ask("bare")]))["bare"].prompt_ids)
    prefix = "i" * (positions + more)
    asked, other = replace(ask("a", prefix=prefix, max_tokens=1000), stop="\n"), ask("other")
    completions = by_key(plain.generate([asked, other]))
    c = completions["a"]
    assert c.text.startswith(prefix) and c.finish is Finish.LENGTH
    assert (len(c.token_ids), c.forced) == (positions, tuple(range(min(positions, positions + more))))
    assert c.logprobs == pytest.approx(expected_logprobs(plain, c, 1.0), abs=3e-5)
    assert completions["other"].token_ids == by_key(plain.generate([other]))["other"].token_ids


def test_a_prompt_that_takes_all_positions_is_bad_input_with_a_beginning_too(plain: TransformersEngine) -> None:
    long = replace(ask("a", prefix="<think>"), messages=({"role": "user", "content": "x" * 300},))
    with pytest.raises(InputError, match=r"a prompt of \d+ tokens leaves no room for an answer in the model's 256"):
        list(plain.generate([long]))


# Budgets.


def test_thinking_is_closed_at_the_budget_and_the_answer_is_sampled(opened: TransformersEngine) -> None:
    budget = ThinkingBudget(most=6, closing="!</think>=")
    closing = tuple(build_tokenizer().encode(budget.closing, add_special_tokens=False))
    long, closed_early = 0, 0
    for c in by_key(opened.generate(ask(f"k{i}", budget) for i in range(60))).values():
        if c.forced:
            long += 1
            assert c.forced == (6, 7, 8) and c.token_ids[6:9] == closing
            assert c.thinking_tokens == 8 or THINK in c.token_ids[9:] or CLOSE in c.token_ids[9:]
            assert len(c.token_ids) > 9
            assert c.logprobs == pytest.approx(expected_logprobs(opened, c, 1.0), abs=3e-5)
        else:
            closed_early += 1
            assert CLOSE in c.token_ids[:6] or END in c.token_ids[:6]
    assert long and closed_early


def test_a_budget_changes_nothing_before_it_takes_effect(opened: TransformersEngine) -> None:
    free = by_key(opened.generate(ask(f"k{i}") for i in range(40)))
    bound = by_key(opened.generate(ask(f"k{i}", ThinkingBudget(most=6, least=0)) for i in range(40)))
    for key, c in bound.items():
        if not c.forced:
            assert c == free[key]
        else:
            assert c.token_ids[:6] == free[key].token_ids[:6]


def test_thinking_that_ends_too_soon_is_extended(opened: TransformersEngine) -> None:
    budget = ThinkingBudget(least=9, extension="Wait", extensions=2)
    wait = tuple(build_tokenizer().encode("Wait", add_special_tokens=False))
    free = by_key(opened.generate(ask(f"k{i}") for i in range(60)))
    counts = set()
    for key, c in by_key(opened.generate(ask(f"k{i}", budget) for i in range(60))).items():
        assert len(c.forced) % len(wait) == 0 or c.finish is Finish.LENGTH
        begins = c.forced[:: len(wait)]
        counts.add(len(begins))
        assert all(begin < 9 for begin in begins)
        if begins:
            assert c.token_ids[begins[0] : begins[0] + len(wait)] == wait
            assert c.token_ids[: begins[0]] == free[key].token_ids[: begins[0]]
            assert free[key].token_ids[begins[0]] in (CLOSE, END)
            assert c.logprobs == pytest.approx(expected_logprobs(opened, c, 1.0), abs=3e-5)
        else:
            assert c == free[key]
    assert counts == {0, 1, 2}


def test_a_budget_does_not_apply_before_thinking_is_opened(plain: TransformersEngine) -> None:
    seen = set()
    for c in by_key(plain.generate(ask(f"k{i}", ThinkingBudget(most=4)) for i in range(80))).values():
        first = c.token_ids.index(THINK) if THINK in c.token_ids else None
        seen.add((first is None, bool(c.forced)))
        if first is None:
            assert not c.forced
        elif c.forced:
            assert c.forced[0] >= max(4, first + 1)
    assert (True, False) in seen and (False, True) in seen


def test_a_response_without_room_for_the_closing_ends_by_length(opened: TransformersEngine) -> None:
    # "!</think>=" is three tokens: with a fourth for the answer they fit into ten tokens, not into nine.
    for limit, fits in ((10, True), (9, False)):
        budget = ThinkingBudget(most=6, closing="!</think>=")
        cut = [
            c for c in opened.generate(ask(f"k{i}", budget, max_tokens=limit) for i in range(40))
            if CLOSE not in c.token_ids[:6] and END not in c.token_ids[:6]
        ]  # fmt: skip
        assert cut
        for c in cut:
            assert len(c.token_ids) == (10 if fits else 6) and bool(c.forced) is fits
            assert fits or c.finish is Finish.LENGTH


def test_a_given_beginning_counts_as_thinking(opened: TransformersEngine) -> None:
    (c,) = opened.generate([ask("a", ThinkingBudget(most=4, closing="</think>"), prefix="hmm, so")])
    assert c.token_ids[7] == CLOSE and c.forced == tuple(range(8))


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"top_k": 40}, {"top_p": 0.9, "temperature": 0.7}])
def test_budgets_hold_with_every_kind_of_sampling(opened: TransformersEngine, sampling: dict[str, Any]) -> None:
    budget = ThinkingBudget(most=8, least=5, closing="</think>", extension="Wait", extensions=1)
    for c in opened.generate(ask(f"k{i}", budget, **sampling) for i in range(20)):
        thinking = c.token_ids.index(CLOSE) if CLOSE in c.token_ids else len(c.token_ids)
        assert thinking <= 8
        assert thinking >= 5 or (c.forced and c.forced[0] < 5) or c.finish is Finish.LENGTH


def test_neighbours_workers_and_slots_change_no_bit() -> None:
    def requests() -> list[Request]:
        kinds = [None, ThinkingBudget(most=5), ThinkingBudget(least=8, extensions=3), ThinkingBudget(most=12, least=4)]
        prefixes = ["", "", "so", "<think>I"]
        return [
            ask(f"m{i}", kinds[i % 4], prefixes[i * 7 % 4], max_tokens=12 + i % 25, temperature=[1.0, 0.7][i % 2])
            for i in range(48)
        ]

    engine = _engine(OPENED, {CLOSE: 2.3, END: 1.5, THINK: -30.0})
    alone = {r.key: by_key(engine.generate([r]))[r.key] for r in requests()[:16]}
    together = by_key(engine.generate(requests()))
    assert {key: together[key] for key in alone} == alone
    workers = TransformersEngine(REFERENCE[id(engine)], engine.tokenizer, model_identity="tiny", slots=16, workers=2)
    try:
        assert by_key(workers.generate(requests()[::-1])) == together
    finally:
        workers.close()


@pytest.mark.parametrize(
    "budget",
    [ThinkingBudget(most=5, closing=""), ThinkingBudget(least=5, extension=""), ThinkingBudget(most=3, least=4)],
)
def test_an_impossible_budget_is_bad_input(opened: TransformersEngine, budget: ThinkingBudget) -> None:
    with pytest.raises(InputError, match="thinking budget"):
        list(opened.generate([ask("a", budget)]))


# The laws of a course, with tags of several tokens and tokens in any order.

OPEN_IDS, CLOSE_IDS, STOP = (7, 8), (7, 9, 8), 1


@settings(max_examples=200, deadline=None)
@given(
    draws=st.lists(st.sampled_from([0, 1, 7, 8, 9]), min_size=60, max_size=60),
    most=st.none() | st.integers(1, 12),
    least=st.integers(0, 12),
    extensions=st.integers(0, 3),
    opened=st.booleans(),
    limit=st.integers(4, 30),
)
def test_laws_of_a_course(
    draws: list[int], most: int | None, least: int, extensions: int, opened: bool, limit: int
) -> None:
    least = least if most is None else min(least, most)
    budget = Budget(most, least, (5, *CLOSE_IDS), (6, 6), extensions, OPEN_IDS, CLOSE_IDS, opened)
    course, tokens, extended = Course(budget, limit, (), [STOP]), [], 0
    for draw in draws:
        forced = course.next
        token = draw if forced < 0 else forced
        tokens.append(token)
        stands = course.take(token)
        if stands is not None:
            del tokens[stands:]
            extended += 1
            assert stands < least and course.next == (5 if stands == most else 6)
        assert course.length == len(tokens) <= limit
        if course.over or len(tokens) == limit or (stands is None and token == STOP):
            break
    assert extended <= extensions
    if opened and most is not None and CLOSE_IDS not in zip(tokens, tokens[1:], tokens[2:], strict=False):
        assert len(tokens) <= most + len(budget.closing)
    closed = [i for i in range(len(tokens) - 2) if tuple(tokens[i : i + 3]) == CLOSE_IDS]
    if opened and closed and extended < extensions and not course.forced:
        assert closed[0] >= least
