"""The format verifier: form and language, whatever the content of the answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.thinking import Response
from distill.types import Outcome, Problem, Verdict
from distill.verifiers import build, judge
from distill.verifiers.language import SCRIPTS, scripts_of, share, words_by_script
from distill.verifiers.run import reads_thinking
from pipeline.errors import InputError

ENGLISH = "First we add the two numbers and then we divide by three"
CHINESE = "首先我们把两个数相加然后再除以三得到结果"
RUSSIAN = "Сначала сложим два числа а потом разделим на три"
GERMAN = "Zuerst addieren wir die beiden größeren Zahlen und teilen dann durch drei"
JAPANESE = "まず二つの数を足してから三で割ります"
KOREAN = "먼저 두 수를 더한 다음 셋으로 나눕니다"
HINDI = "पहले हम दो संख्याओं को जोड़ते हैं फिर तीन से भाग देते हैं"


def verdict(response: str | Response, prompt: str = "?", **settings: Any) -> Verdict:
    return judge(build({"format": settings}), Problem("p", prompt, "", "format", "test"), response)


@pytest.mark.parametrize(
    ("response", "settings", "reason"),
    [
        ("<think>hm</think>42", {}, None),
        ("42", {}, None),
        ("<think>hm", {}, "never closed"),
        ("<think>hm</think>", {}, "empty"),
        ("<think>hm</think>42 <think> no", {}, "never closed"),
        ("<think>hm</think>42", {"thinking": True}, None),
        ("42", {"thinking": True}, "no thinking"),
        ("<think> </think>42", {"thinking": True}, "no thinking"),
        (r"\boxed{42}", {"boxed": True}, None),
        ("42", {"boxed": True}, "0 boxes"),
        (r"\boxed{41} \boxed{42}", {"boxed": True}, "2 boxes"),
        (r"\boxed{41} \fbox{42}", {"boxed": True}, "2 boxes"),
        (r"\boxed{42", {"boxed": True}, "not closed"),
        (r"\boxed 42", {"boxed": True}, "not closed"),
        (r"\boxed{ }", {"boxed": True}, "empty"),
        (r"\boxed{}", {"one_answer": True}, "empty"),
        (r"<think>\boxed{41}</think>\boxed{42}", {"boxed": True}, None),
        (r"The answer is \boxed{42}", {"one_answer": True}, None),
        (r"\boxed{41} or \boxed{42}", {"one_answer": True}, "2 boxes"),
        ("The answer is 42", {"one_answer": True}, None),
        ("#### 42", {"one_answer": True}, None),
        ("42", {"one_answer": True}, "0 answers"),
        ("The answer is 41. No: the answer is 42.", {"one_answer": True}, "2 answers"),
        ("Answer: 41\n#### 42", {"one_answer": True}, "2 answers"),
    ],
)
def test_the_form_of_a_response_is_checked(response: str, settings: dict[str, Any], reason: str | None) -> None:
    found = verdict(response, **settings)
    assert found.outcome is (Outcome.INCORRECT if reason else Outcome.CORRECT)
    assert reason is None or reason in found.reason


@pytest.mark.parametrize(
    ("language", "text", "right"),
    [
        ("en", ENGLISH, True),
        ("en", CHINESE, False),
        ("en", f"{ENGLISH} 然后我们再来", False),
        ("en", f"{ENGLISH} 好", True),
        ("en", r"We have $x^2 = 4$ and \(\alpha = \text{Ответ}\), so `переменная` is μ or x", True),
        ("en", "naïve café résumé déjà vu", True),
        ("en", "x = 1, y = 2, ℝ, 42 km", True),
        ("de", GERMAN, True),
        ("de", RUSSIAN, False),
        ("zh", CHINESE, True),
        ("zh", f"设 x 为未知数, 则 2x + y = 3. {CHINESE}", True),
        ("zh", JAPANESE, False),
        ("zh", f"{CHINESE} so the final result follows from this", False),
        ("ja", JAPANESE, True),
        ("ja", ENGLISH, False),
        ("ko", KOREAN, True),
        ("ru", RUSSIAN, True),
        ("hi", HINDI, True),
        ("hi", RUSSIAN, False),
    ],
)
def test_the_language_of_thinking_and_answer_is_checked(language: str, text: str, right: bool) -> None:
    outcome = Outcome.CORRECT if right else Outcome.INCORRECT
    assert verdict(f"<think>{text}</think>42", language=language).outcome is outcome
    assert verdict(text, language=language).outcome is outcome


@pytest.mark.parametrize(
    "piece", ["\\(", "\\[", "$", "$$", "`", "```", "`\n", "$x\n", "\\begin{", "a ", "ب", "好", "\x00", "\ud800"]
)
def test_a_very_long_repetitive_text_gets_a_verdict(piece: str) -> None:
    settings = {"language": "en", "one_answer": True, "boxed": True, "thinking": True}
    assert verdict(Response(piece * 50_000, f"{piece * 50_000} \\boxed{{1}}", True), **settings).reason


def test_thinking_in_the_wrong_language_makes_a_response_incorrect() -> None:
    found = verdict(f"<think>{CHINESE}</think>{ENGLISH}", language="en")
    assert found.outcome is Outcome.INCORRECT
    assert found.reason == "0% of the words in the thinking are latin"
    assert found.evidence["judged"] == "thinking and answer"


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, RUSSIAN, JAPANESE, KOREAN, HINDI, GERMAN])
def test_language_prompt_requires_the_language_of_the_prompt(text: str) -> None:
    others = {ENGLISH, CHINESE, RUSSIAN, KOREAN, HINDI} - {text} - ({ENGLISH} if text == GERMAN else set())
    others -= {CHINESE} if text == JAPANESE else set()
    assert verdict(text, prompt=text, language="prompt").outcome is Outcome.CORRECT
    assert all(verdict(other, prompt=text, language="prompt").outcome is Outcome.INCORRECT for other in others)


def test_a_prompt_without_words_has_no_language() -> None:
    assert verdict(ENGLISH, prompt="17 * 23 = ?", language="prompt").outcome is Outcome.UNVERIFIABLE


def test_the_required_share_of_the_language_is_a_setting() -> None:
    mixed = f"{ENGLISH} {RUSSIAN}"
    assert verdict(mixed, language="en").outcome is Outcome.INCORRECT
    assert verdict(mixed, language="en", language_share=0.5).outcome is Outcome.CORRECT


def test_the_thinking_is_read_only_where_a_setting_needs_it() -> None:
    wants = [{}, {"boxed": True}, {"one_answer": True}, {"thinking": True}, {"language": "en"}]
    assert [reads_thinking(build({"format": settings})) for settings in wants] == [False, False, False, True, True]
    assert reads_thinking(build({"all": ["math", {"format": {"language": "zh"}}]}))


@pytest.mark.parametrize(
    "settings",
    [{"boxed": 1}, {"one_answer": "yes"}, {"thinking": None}, {"language": "xx"}, {"language": 3}]
    + [{"language_share": value} for value in (0, 1.1, "0.9", True, float("nan"))]
    + [{"no_such": True}],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        build({"format": settings})


@given(text=st.text(max_size=60), number=st.integers(), language=st.sampled_from(sorted(SCRIPTS)))
def test_numbers_formulas_and_code_count_for_no_language(text: str, number: int, language: str) -> None:
    text = text.replace("$", " ").replace("`", " ").replace("\\", " ")
    mixed = f"{text} {number} $x^{{2}} + \\text{{any words}}$ `code(here)`"
    assert words_by_script(mixed) == words_by_script(text)
    assert share(mixed, SCRIPTS[language]) == share(text, SCRIPTS[language])


@given(texts=st.lists(st.sampled_from([ENGLISH, CHINESE, RUSSIAN, KOREAN, HINDI]), min_size=1, max_size=4))
def test_shares_of_all_scripts_add_up(texts: list[str]) -> None:
    whole = "\n".join(texts)
    shares = [share(whole, frozenset({script}))[0] for script in words_by_script(whole)]
    assert sum(shares) == pytest.approx(1)
    assert words_by_script(whole) == sum((words_by_script(text) for text in texts), words_by_script(""))
    assert scripts_of(whole) <= words_by_script(whole).keys()
