"""Random Qwen3 models, a character tokenizer and rows to train on, for tests that need no skill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distill.randomness import generator
from distill.training.batching import Example, from_tokens

VOCABULARY = 40


def tiny(**changes: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
    }
    return Qwen3ForCausalLM(Qwen3Config(**(shape | changes)))


def examples(count: int, seed: int = 0, longest: int = 20) -> list[Example]:
    rows = []
    for i in range(count):
        draw = generator(seed, "example", i)
        ids = [int(x) for x in draw.integers(0, VOCABULARY, int(draw.integers(4, longest)))]
        rows.append(from_tokens(f"row-{i}", ids[:2], ids[2:]))
    return rows


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def chat_tokenizer(template: str | None = None) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["<end>", "<user>", "<bot>", *"\nabcdefghijklmnopqrstuvwxyz ?"]
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<bot>"]})
    tokenizer.chat_template = template or (
        "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<bot>' }}{{ m.content }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    return tokenizer


def multimodal(vocabulary: int) -> Any:
    """A model whose sizes stand in the config of its language model alone."""
    from transformers import AutoModelForCausalLM, Gemma3Config

    torch.manual_seed(0)
    shape = {"num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 16}
    text = {"vocab_size": vocabulary, "hidden_size": 32, "num_key_value_heads": 2, "head_dim": 8, **shape}
    vision = {"hidden_size": 16, "image_size": 16, "patch_size": 8, **shape}
    special = {f"{name}_token_index": vocabulary - 1 for name in ("image", "boi", "eoi")}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **special)
    return AutoModelForCausalLM.from_config(config)


def reward_model(directory: Path, tokenizer: Any, rule: str, network: Any = None) -> str:
    """The directory of a process reward model of random weights."""
    from distill.prm import files, head
    from distill.training.export import export_student

    export_student(network or tiny(vocab_size=len(tokenizer)), tokenizer, directory)
    about = files.About(
        format=1, rule=rule, width=32, likelihood=False, start="x", tokenizer=files.tokenizer_identity(tokenizer)
    )
    own = head.StepHead(32, False)
    own.weight.data.normal_(std=0.1)
    files.write(directory, own, about)
    return str(directory)


def memory_for_samples(learner: Any) -> float:
    """Bytes that keys and values may take where `distill.training.sampler` samples on this rank."""
    from distill.engines.decode import bytes_per_position

    decoder = learner.beside["engine"]._decoder
    return float(decoder._memory * bytes_per_position(decoder.model))
