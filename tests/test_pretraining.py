"""What the embedded models are made of: a tokenizer for any text, and a reproducible corpus of authors."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import catalog
from distill.pretraining import CAREFUL, SPECIAL, Authors, config_of, corpus, response, tokenizer_of

FAMILIES = {name: catalog.resolve("families", name)() for name in ("calc", "code", "logic")}
SHAPE = {"hidden": 128, "intermediate": 384, "layers": 3, "heads": 4, "kv_heads": 2}
EVEN = dict.fromkeys(FAMILIES, 1.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    path: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer_of(FAMILIES).save_pretrained(path)
    return AutoTokenizer.from_pretrained(path)


@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_are_single_tokens(tokenizer: Any):
    ids = tokenizer("Natalia sold 4800 clips, 12 + 7 = 19")["input_ids"]
    digits = [token for token in map(tokenizer.decode, ids) if any(c.isdigit() for c in token)]
    assert digits == list("480012719")


def test_special_tokens_are_single_and_the_tokenizer_names_its_end_and_pad_token(tokenizer: Any):
    assert all(len(tokenizer(token)["input_ids"]) == 1 for token in SPECIAL)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_template_s_mask_covers_just_the_assistant_s_text(tokenizer: Any):
    written = response("12 + 7 = 19", "19")
    chat = [
        {"role": "user", "content": "Compute left to right: 12 + 7"},
        {"role": "assistant", "content": written},
    ]
    encoded = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == written + "<|im_end|>"
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False)
    assert prompt == tokenizer.apply_chat_template(chat, tokenize=False)[: len(prompt)]


def test_the_corpus_is_a_pure_function_of_its_seed():
    first, again = (list(islice(corpus(EVEN, FAMILIES, CAREFUL, seed=3), 60)) for _ in range(2))
    assert first == again
    assert first != list(islice(corpus(EVEN, FAMILIES, CAREFUL, seed=4), 60))


def test_authors_write_by_their_shares():
    authors = Authors(worked=0.0, hasty=0.0, bare=1.0)
    assert not any("<think>" in said for _, said in islice(corpus(EVEN, FAMILIES, authors, 0), 50))
    careful = dict(islice(corpus({"calc": 1.0}, FAMILIES, CAREFUL, 0), 50))
    careless = dict(islice(corpus({"calc": 1.0}, FAMILIES, Authors(slips=1.0), 0), 50))
    assert careful.keys() == careless.keys() and not set(careful.values()) & set(careless.values())


def test_the_models_are_small(tokenizer: Any):
    from transformers import Qwen3ForCausalLM

    config = config_of(tokenizer, SHAPE)
    assert 300_000 < sum(p.numel() for p in Qwen3ForCausalLM(config).parameters()) < 3_000_000
