"""Where thinking ends: the one rule, on text and on token ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.thinking import Response, count_thinking_tokens, split_thinking

PIECES = st.lists(st.sampled_from(["<think>", "</think>", "a", " b ", "\n", "<", "think>"]), max_size=12)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>work</think>\n42", False, Response("work", "42", True)),
        ("work</think>42", True, Response("work", "42", True)),
        ("work</think>42", False, Response("work", "42", True)),
        ("<think>a</think> 1 </think> 2", False, Response("a</think> 1", "2", True)),
        ("<think>cut off", False, Response("cut off", "", False)),
        ("cut off", True, Response("cut off", "", False)),
        ("42", False, Response("", "42", True)),
        ("<think>a</think> 5 <think> but", False, Response("a</think> 5 <think> but", "", False)),
        ("<think></think>", False, Response("", "", True)),
        ("", False, Response("", "", True)),
    ],
)
def test_split_thinking_by_example(text: str, opened: bool, expected: Response) -> None:
    assert split_thinking(text, opened) == expected


@given(PIECES, st.booleans())
def test_split_thinking_keeps_the_text_and_is_stable(pieces: list[str], opened: bool) -> None:
    text = "".join(pieces)
    split = split_thinking(text, opened)
    assert "<think>" not in split.answer and "</think>" not in split.answer
    assert split.thinking in text and text.strip().endswith(split.answer)
    assert split.closed or not split.answer
    again = split_thinking(f"<think>{split.thinking}</think>{split.answer}")
    assert again.answer == split.answer and again.closed


@given(st.text(alphabet="ab<>/ \n", max_size=40), st.text(alphabet="ab<>/ \n", max_size=40))
def test_thinking_and_answer_survive_a_round_trip(thinking: str, answer: str) -> None:
    assert split_thinking(f"<think>{thinking}</think>{answer}") == Response(thinking.strip(), answer.strip(), True)


@given(PIECES, st.booleans())
def test_token_counts_follow_the_rule_for_text(pieces: list[str], opened: bool) -> None:
    vocabulary = {piece: index for index, piece in enumerate(["<think>", "</think>", "a", " b ", "\n"])}
    pieces = [piece for piece in pieces if piece in vocabulary]
    ids = [vocabulary[piece] for piece in pieces]
    thinking, answer = count_thinking_tokens(ids, close=[1], open=[0], opened=opened)
    assert thinking + answer == len(ids)
    assert "".join(pieces[thinking:]).strip() == split_thinking("".join(pieces), opened).answer


def test_a_closing_tag_may_be_several_tokens() -> None:
    assert count_thinking_tokens([5, 7, 8, 9, 1, 2], close=[7, 8, 9]) == (4, 2)
    assert count_thinking_tokens([5, 7, 8], close=[7, 8, 9], opened=True) == (3, 0)
    assert count_thinking_tokens([5, 7, 8], close=[7, 8, 9]) == (0, 3)
