"""How the embedded models are made: authors who write a corpus, a tokenizer, a random-init Qwen3.

The teacher reads careful authors only; the student's base reads a mixture of careless and hasty ones,
so it knows the tags, the form and the single lines of working, and still gets nearly every problem
wrong. Everything is a pure function of its arguments; the training itself is `distill.training`, and
the `pretrain` stage calls both. Which mixtures make good models was found by experiment:
`docs/log.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from distill.families.base import Family
from distill.randomness import generator
from distill.types import Problem

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast, Qwen3Config

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK, THINK_END = "<think>", "</think>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END, THINK, THINK_END)
POSITIONS = 4096

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Authors:
    """A mixture of authors: the share of each. Shares sum to 1.

    ``worked`` writes all lines and the answer they lead to, slipping in a line with chance ``slips``;
    ``hasty`` writes true lines, breaks off after some of them and guesses; ``bare`` guesses without
    thinking.
    """

    worked: float = 1.0
    hasty: float = 0.0
    bare: float = 0.0
    slips: float = 0.0


CAREFUL = Authors()


def response(thinking: str, answer: str) -> str:
    """The assistant's turn as the chat template carries it."""
    return f"{THINK}\n{thinking}\n{THINK_END}\n\n{answer}"


def corpus(
    families: Mapping[str, float], catalog: Mapping[str, Family], authors: Authors, seed: int
) -> Iterator[tuple[str, str]]:
    """Endless pages; ``families`` maps names to weights."""
    return (page(families, catalog, authors, seed, index) for index in count())


def page(
    families: Mapping[str, float], catalog: Mapping[str, Family], authors: Authors, seed: int, index: int
) -> tuple[str, str]:
    """Page ``index`` of the corpus: a training problem's prompt and somebody's response."""
    names = sorted(families)
    weights = [families[name] / sum(families.values()) for name in names]
    rng = generator("corpus", seed, index)
    family = catalog[names[rng.choice(len(names), p=weights)]]
    problem = family.generate(seed, index, "train")
    return problem.prompt, _written(family, problem, authors, rng)


def _written(family: Family, problem: Problem, authors: Authors, rng: np.random.Generator) -> str:
    kind = rng.choice(["worked", "hasty", "bare"], p=[authors.worked, authors.hasty, authors.bare])
    if kind == "bare":
        return family.guess(rng)
    if kind == "worked":
        return response(*family.solve(problem, authors.slips, rng))
    lines = family.solve(problem).thinking.split("\n")
    return response("\n".join(lines[: int(rng.integers(1, len(lines)))]), family.guess(rng))


def tokenizer_of(catalog: Mapping[str, Family], vocabulary: int = 512, samples: int = 6000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text goes in and comes out again, digits stay single tokens.

    Merges cross spaces but not digits or parentheses, so that the families' words are few tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9()]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = corpus(dict.fromkeys(catalog, 1.0), catalog, CAREFUL, seed=0)
    pieces = [piece for prompt, answer in islice(texts, samples) for piece in _pieces(prompt, answer)]
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[TURN_START, THINK, THINK_END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _pieces(prompt: str, answer: str) -> Sequence[str]:
    """The texts between special tokens, as the chat template makes them."""
    thinking, _, visible = answer.removeprefix(THINK).partition(THINK_END)
    return "user\n", prompt, "assistant\n", thinking, visible


def config_of(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, int]) -> Qwen3Config:
    """A Qwen3 of a few hundred thousand parameters; ``shape`` names what differs between models."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["hidden"] // shape["heads"],
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def network_of(tokenizer: PreTrainedTokenizerFast, shape: Mapping[str, int], seed: int) -> Any:
    """A Qwen3 with random weights, a function of ``seed``; torch's generator is left as it was."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        factory: Any = AutoModelForCausalLM  # it has no types
        return factory.from_config(config_of(tokenizer, shape))
