"""Tiny random models of several architectures, and a tokenizer with a token for each character, for engine tests."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models

SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_model(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SMALL | settings))
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def build_tokenizer() -> Any:
    special = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    pieces = special + [chr(i) for i in range(32, 127)] + ["\n"]
    pieces += [f"[{i}]" for i in range(len(pieces), 512)]
    inner = Tokenizer(token_models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=" "))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", extra_special_tokens=special, chat_template=TEMPLATE
    )
