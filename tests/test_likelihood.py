"""How likely a model finds each step: against the model's own pass over each response alone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tiny import chat_tokenizer, tiny  # noqa: E402

from distill.thinking import CLOSE, OPEN  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from rl.search.likelihood import Likelihood  # noqa: E402

ASKED = [
    ("<user>sum<end>\n<bot>", "ab\n\ncd ef\ng"),
    ("<user>sum<end>\n<bot>", "ab\nd"),
    ("<user>x<end>\n<bot>", "hij"),
]


@pytest.fixture(scope="module")
def scorer() -> Likelihood:
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens([OPEN, CLOSE])
    return Likelihood(tiny(), tokenizer)


def alone(scorer: Likelihood, prompt: str, text: str) -> list[float]:
    """The least likely letter of each line; of a tokenizer of letters."""
    before, ids = (scorer._tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text))
    with torch.no_grad():
        each = scorer._network(torch.tensor([[*before, *ids]])).logits[0].softmax(-1)
    told = [each[len(before) + at - 1, token].item() for at, token in enumerate(ids)]
    lines, at = [], 0
    for line in text.split("\n"):
        lines += [min(told[at : at + len(line)])] if line else []
        at += len(line) + 1
    return lines


def test_a_step_is_as_likely_as_its_least_likely_token_whoever_is_scored_beside_it(scorer: Likelihood) -> None:
    found = scorer.score([*ASKED, ASKED[0], ("<bot>", ""), ("<bot>", "\n")])
    for pair, row in zip(ASKED, found, strict=False):
        assert row == pytest.approx(alone(scorer, *pair), rel=1e-4)
    assert [len(row) for row in found] == [3, 2, 1, 3, 0, 0] and found[0] == found[3]


def test_thinking_that_the_prompt_has_opened_is_read_once(scorer: Likelihood) -> None:
    opened, stored = f"<bot>{OPEN}\n", f"{OPEN}\nab\ncd"
    assert scorer.score([(opened, stored)])[0] == scorer.score([(opened, "ab\ncd")])[0]


def test_steps_by_tokens_have_no_likelihood() -> None:
    with pytest.raises(InputError, match="needs a rule of text, not tokens:4"):
        Likelihood(tiny(), chat_tokenizer(), "tokens:4")
