"""Dense rewards: the minimum form by hand, why it does not reward length, and rewards at the right tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from test_opd import rolled  # noqa: E402
from tiny import chat_tokenizer, reward_model  # noqa: E402

from distill.prm.reading import load  # noqa: E402
from distill.stages.devices import size_of  # noqa: E402
from distill.steps import last_tokens, split, splitter  # noqa: E402
from distill.types import Finish  # noqa: E402
from pipeline.fingerprint import FileHashes  # noqa: E402
from pipeline.workspace import StageContext  # noqa: E402
from rl.credit import EPSILON  # noqa: E402
from rl.process import ProcessRewards, text_of  # noqa: E402
from rl.stages.beside import process_rewards, reward_models  # noqa: E402
from rl.stages.options import ProcessSettings  # noqa: E402
from rl.step_credit import Mixture, least_advantages, step_advantages  # noqa: E402


def test_positive_credit_reaches_every_step_and_negative_ends_at_the_worst() -> None:
    good, bad = [(1, 0.9), (3, 0.8)], [(1, 0.9), (2, 0.2), (4, 0.95)]
    first, second = least_advantages([good, bad], [5, 6])
    z = 0.3 / (torch.tensor([0.8, 0.2]).std().item() + EPSILON)
    assert first == pytest.approx([z] * 4 + [0.0])
    assert second == pytest.approx([-z] * 3 + [0.0] * 3)


def test_equal_responses_and_groups_of_one_teach_nothing() -> None:
    row = [(0, 0.5), (2, 0.9)]
    assert least_advantages([row, row, row], [3, 3, 3]) == [[0.0] * 3] * 3
    nearly = [(0, 0.5 + 1e-6), (2, 0.9)]  # a rounding difference is not scaled up to a deviation of 1
    assert least_advantages([row, nearly, row], [3, 3, 3]) == [[0.0] * 3] * 3
    assert least_advantages([row], [3]) == [[0.0] * 3] and least_advantages([[], row], [2, 3])[0] == [0.0, 0.0]


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4), min_size=2, max_size=5), st.integers(1, 6))
def test_appending_steps_that_score_well_gains_nothing(group: list[list[float]], more: int) -> None:
    """The sum form would reward a response that continues with easy, correct steps."""
    plain = [[(n, value) for n, value in enumerate(row)] for row in group]
    padded = [*plain[:-1], [*plain[-1], *((len(plain[-1]) + n, 0.995) for n in range(more))]]
    before, after = (least_advantages(rows, [20] * len(rows)) for rows in (plain, padded))
    assert after[-1][0] == pytest.approx(before[-1][0]) and after[:-1] == before[:-1]
    assert max(map(abs, after[-1])) <= max(map(abs, before[-1])) + 1e-9
    bounded = [abs(value) for row in after for value in row]
    assert max(bounded) <= (len(group) - 1) / len(group) ** 0.5 + 1e-9  # no z-score of a group is larger


def test_the_sum_form_rewards_length() -> None:
    short, long = [(0, 0.9), (1, 0.2)], [(0, 0.9), (1, 0.2), (2, 0.99), (3, 0.99), (4, 0.99)]
    least, total = least_advantages([short, long], [5, 5]), step_advantages([short, long], [5, 5])
    assert least[1][0] == least[0][0] == 0.0 and total[1][0] > total[0][0] + 1


class Reader:
    """A scorer that returns the share of a's in each step, and records what it was asked."""

    rule = "line"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score(self, asked: Sequence[tuple[str, str]]) -> list[list[float]]:
        self.asked += asked
        return [[(step.text.count("a") + 0.5) / (len(step.text) + 1) for step in split(text)] for _, text in asked]


def spelled(tokenizer: Any, text: str, end: bool = True) -> Any:
    ids = [*tokenizer.encode(text), *([tokenizer.eos_token_id] if end else [])]
    rollout = rolled([0] * len(ids), finish=Finish.STOP if end else Finish.LENGTH)
    return replace(rollout, completion=replace(rollout.completion, token_ids=tuple(ids), prompt="<bot>"))


def test_rewards_are_placed_at_the_last_tokens_of_steps() -> None:
    tokenizer, reader = chat_tokenizer(), Reader()
    rollouts = [spelled(tokenizer, "aa\nab\nb"), spelled(tokenizer, "bb\na", end=False), spelled(tokenizer, "")]
    whole, cut, empty = ProcessRewards(reader, tokenizer)(rollouts)
    assert [end for end, _ in whole] == [1, 4, 6] and [end for end, _ in cut] == [1, 3] and empty == []
    assert [text.replace(" ", "") for _, text in reader.asked] == ["aa\nab\nb", "bb\na", ""]
    mixed = Mixture(0.0, steps=ProcessRewards(reader, tokenizer), step_form="minimum")(rollouts[:2])
    assert mixed[0].steps == tuple(value for _, value in whole) and mixed[0].trained
    assert mixed[0].advantages[0] > 0 > mixed[1].advantages[0] and mixed[0].advantages[-1] == 0.0


def test_tokens_sampled_unlike_the_tokenizer_s_split_have_spans_too() -> None:
    from distill import modelspec, pretrained

    _, tokenizer = pretrained.load(modelspec.Model(str(modelspec.EMBEDDED / "teacher"), ""))
    text = "<think>\nnot a or b = 11010011\n</think>"
    usual = tokenizer.encode(text, add_special_tokens=False)
    letters = [i for c in text for i in tokenizer.encode(c, add_special_tokens=False)]
    assert len(letters) > len(usual)
    for ids in (usual, letters):
        found, spans = text_of(tokenizer, ids)
        assert found == text and spans[0][0] == 0 and spans[-1][1] == len(text)
        assert all(tokenizer.decode([i]) == text[a:b] for i, (a, b) in zip(ids, spans, strict=True))


def test_a_step_ending_in_a_multi_token_character_ends_at_its_last_token() -> None:
    from distill import modelspec, pretrained

    _, tokenizer = pretrained.load(modelspec.Model(str(modelspec.EMBEDDED / "teacher"), ""))
    lines = ["not 你", "naïve 好", "or 🙂"]
    letters = [[i for c in line for i in tokenizer.encode(c, add_special_tokens=False)] for line in lines]
    line_break = tokenizer.encode("\n", add_special_tokens=False)
    ids = [*letters[0], *line_break, *letters[1], *line_break, *letters[2]]
    text, spans = text_of(tokenizer, ids)
    assert text == "\n".join(lines) and ids != tokenizer.encode(text, add_special_tokens=False)
    ends = [len(letters[0]) - 1, len(letters[0]) + len(letters[1]), len(ids) - 1]
    assert last_tokens(split(text), spans) == ends


def test_a_long_response_is_decoded_a_few_tokens_at_a_time() -> None:
    """Otherwise each response whose tokens differ from the tokenizer's split would take seconds."""
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["ab"])
    ids = [tokenizer.convert_tokens_to_ids(letter) for letter in "ab" * 400]
    decode, read = tokenizer.decode, list[int]()
    tokenizer.decode = lambda part, **how: read.append(len(part)) or decode(part, **how)
    _, spans = text_of(tokenizer, ids)
    assert len(spans) == len(ids) and sum(read) < 10 * len(ids)


def test_equal_step_rewards_give_no_credit() -> None:
    """Their mean equals them but for rounding, which would otherwise make a rollout count as one to learn from."""
    assert step_advantages([[(0, 0.1)], [(1, 0.1)], [(0, 0.1)]], [2, 2, 2]) == [[0.0, 0.0]] * 3


def test_steps_by_tokens_follow_the_scorer_s_tokenization_not_the_policy_s() -> None:
    from tokenizers.decoders import Fuse

    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["ab"])
    tokenizer.backend_tokenizer.decoder = Fuse()

    class Pairs(Reader):
        rule = "tokens:2"

        def score(self, asked: Sequence[tuple[str, str]]) -> list[list[float]]:
            return [[0.5] * len(splitter(self.rule, tokenizer)(text)) for _, text in asked]

    ids = [tokenizer.convert_tokens_to_ids(letter) for letter in "abcde"]  # a scorer reads ab, c, d, e
    rollout = rolled([0] * len(ids), finish=Finish.LENGTH)
    rollout = replace(rollout, completion=replace(rollout.completion, token_ids=tuple(ids), prompt="<bot>"))
    assert ProcessRewards(Pairs(), tokenizer)([rollout]) == [[(2, 0.5), (4, 0.5)]]


def test_a_half_precision_reward_model_takes_half_the_memory(tmp_path: Path) -> None:
    name, asked = reward_model(tmp_path / "prm", chat_tokenizer(), "line"), [("<user>a b<end>\n<bot>", "a b\nc d\n")]
    context = StageContext("grpo", "grpo", "f", tmp_path, {}, tmp_path / "a", tmp_path / "b", FileHashes())
    full, half = (ProcessSettings.model_validate({"model": name, **more}) for more in ({}, {"dtype": "bfloat16"}))
    sizes = [size_of(reward_models(context, settings)) for settings in (full, half)]
    assert sizes[0] == 2 * sizes[1] > 0
    scores = [process_rewards(context, each, chat_tokenizer()).scorer.score(asked) for each in (full, half)]
    assert scores == [load(Path(name), dtype=dtype).score(asked) for dtype in ("float32", "bfloat16")]
    assert scores[0] != scores[1] and scores[0][0] == pytest.approx(scores[1][0], abs=0.1)
    assert full.model_dump() == {"model": name, "weight": 0.5, "form": "minimum"}  # as in versions without `dtype`
