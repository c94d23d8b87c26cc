"""How likely a model finds each step, compared with the model's own pass over each response alone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tiny import chat_tokenizer, tiny  # noqa: E402

from distill.modelspec import EMBEDDED, Model  # noqa: E402
from distill.thinking import CLOSE, OPEN  # noqa: E402
from pipeline.errors import InputError, PipelineError  # noqa: E402
from rl.search.likelihood import Likelihood  # noqa: E402
from rl.search.scoring import likelihood_of, unloaded  # noqa: E402

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
    """The probability of the least likely letter of each line: the tokenizer's tokens are letters."""
    before, ids = (scorer._tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text))
    with torch.no_grad():
        each = scorer._network(torch.tensor([[*before, *ids]])).logits[0].softmax(-1)
    probabilities = [each[len(before) + at - 1, token].item() for at, token in enumerate(ids)]
    lines, at = [], 0
    for line in text.split("\n"):
        lines += [min(probabilities[at : at + len(line)])] if line else []
        at += len(line) + 1
    return lines


def test_a_step_is_as_likely_as_its_least_likely_token_in_any_batch(scorer: Likelihood) -> None:
    found = scorer.score([*ASKED, ASKED[0], ("<bot>", ""), ("<bot>", "\n")])
    for pair, row in zip(ASKED, found, strict=False):
        assert row == pytest.approx(alone(scorer, *pair), rel=1e-4)
    assert [len(row) for row in found] == [3, 2, 1, 3, 0, 0] and found[0] == found[3]


def test_a_thinking_tag_in_both_prompt_and_response_is_read_once(scorer: Likelihood) -> None:
    opened, stored = f"<bot>{OPEN}\n", f"{OPEN}\nab\ncd"
    assert scorer.score([(opened, stored)])[0] == scorer.score([(opened, "ab\ncd")])[0]


def test_a_step_rule_by_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="needs a rule that splits text, not tokens:4"):
        Likelihood(tiny(), chat_tokenizer(), "tokens:4")


def test_a_loaded_scorer_needs_no_more_memory() -> None:
    """When the samples are in the store, responses are scored before vLLM is opened for a step-by-step search."""
    model = Model(str(EMBEDDED / "teacher"), "")
    scorer, other = likelihood_of(model, "line"), likelihood_of(model, "line", "bfloat16")
    assert unloaded([scorer, other]) == [(model, "float32"), (model, "bfloat16")]
    scorer.open()
    assert unloaded([scorer, other]) == [(model, "bfloat16")]


def test_nan_log_probabilities_are_an_error() -> None:
    """NaN is not less than any number, so it would otherwise count as the highest likelihood."""
    broken = Likelihood(tiny(), chat_tokenizer())
    broken._network.get_input_embeddings().weight[3] = torch.nan
    assert broken.score([("<bot>", "bcd")])[0]
    with pytest.raises(PipelineError, match="log-probabilities that are no numbers"):
        broken.score([("<bot>", "\nbcd"), ("<bot>", "bcd")])


def test_steps_with_multi_token_characters_are_scored_by_their_own_tokens() -> None:
    from distill import modelspec, pretrained

    scorer = Likelihood(*pretrained.load(modelspec.Model(str(modelspec.EMBEDDED / "teacher"), "")))
    (row,), text = scorer.score([("a", "1 你\n2 好")]), "1 你\n2 好"
    before, ids = (scorer._tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("a", text))
    logs = scorer._network(torch.tensor([[*before, *ids]])).logits[0].log_softmax(-1)
    probabilities = [logs[len(before) + at - 1, token].exp().item() for at, token in enumerate(ids)]
    half = ids.index(scorer._tokenizer.encode("\n", add_special_tokens=False)[0])
    expected = [max(1e-6, min(part)) for part in (probabilities[:half], probabilities[half + 1 :])]
    assert row == pytest.approx(expected, rel=1e-3)
