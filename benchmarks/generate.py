"""The transformers engine against transformers' own generate(): output tokens per CPU-second, alternating in one run.

Cases: outputs of mixed length (8 to 256 tokens), several samples of each prompt, one fixed length, and a LoRA policy
(against the same model without LoRA, because merging should cost nothing). End tokens are never sampled, so both sides
make the same number of tokens. Each uses one thread. The peer runs batches in the order of arrival and stops a batch
when its longest row is done, as generate() does. Before anything is timed, the greedy outputs of three architectures
must equal those of generate(), token for token.

    python benchmarks/generate.py [--quick] [--layers 3 --hidden 128]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from distill.engines.decode import Decoder, Job
from distill.engines.weights import InferenceCopy
from distill.randomness import generator
from distill.types import Sampling

VOCABULARY = 512
KINDS = ("Qwen3", "Llama", "Gemma")
Prompts = list[tuple[tuple[int, ...], int]]
"""(prompt ids, tokens wanted)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the work, one repeat")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    model = random_model(arguments.layers, arguments.hidden)
    rows, repeats = (64, 1) if arguments.quick else (256, 3)
    greedy = {kind: check_greedy(random_model(2, arguments.hidden, kind)) for kind in KINDS}
    print(f"greedy tokens equal to generate()'s: {greedy}", flush=True)
    ratios, detail = {}, {"greedy": greedy, "layers": arguments.layers, "hidden": arguments.hidden, "rows": rows}
    for name, prompts, batch in cases(rows):
        ours, theirs = ours_of(model, prompts), peer_of(model, prompts, batch)
        ratios[name], detail[name] = compare(ours, theirs, sum(wanted for _, wanted in prompts), repeats)
        print(f"{name}: {detail[name]}", flush=True)
    name, prompts, _ = cases(rows)[-1]
    folded, plain = ours_of(with_lora(model), prompts), ours_of(model, prompts)
    ratios["lora"], detail["lora"] = compare(folded, plain, sum(wanted for _, wanted in prompts), repeats)
    print(json.dumps({"benchmark": "generate", "ratios": ratios, "detail": detail}))


def cases(rows: int) -> list[tuple[str, Prompts, int]]:
    """(name, prompts, the peer's batch size)."""
    draw = generator("benchmark", "generate")

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(int(i) for i in draw.integers(3, VOCABULARY, length))

    mixed = [(prompt(int(draw.integers(20, 60))), int(draw.integers(8, 257))) for _ in range(rows)]
    shared = [(p, 64) for p in (prompt(430) for _ in range(rows // 8)) for _ in range(8)]
    fixed = [(prompt(40), 128) for _ in range(rows)]
    return [("mixed lengths", mixed, 64), ("8 samples a prompt", shared, 64), ("fixed length", fixed, 256)]


def check_greedy(model: Any) -> int:
    """Compare greedy tokens, decoded together in our engine and one by one in generate(); returns their number."""
    prompts = [(ids, wanted % 60 + 4) for ids, wanted in cases(16)[0][1]]
    decoder = Decoder(InferenceCopy(model).model, stop_ids=(), slots=256)
    decoder.add(
        Job(str(i), ids, Sampling(temperature=0.0, max_tokens=wanted)) for i, (ids, wanted) in enumerate(prompts)
    )
    compared = 0
    while decoder.busy:
        for sample in decoder.step():
            ids, wanted = prompts[int(sample.key)]
            inputs = torch.tensor([ids])
            output = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=wanted
            )
            if output[0, len(ids) :].tolist() != list(sample.token_ids):
                raise SystemExit(f"{type(model).__name__}: greedy tokens differ from generate()'s after {ids}")
            compared += wanted
    return compared


def compare(
    ours: Callable[[], int], theirs: Callable[[], int], tokens: int, repeats: int
) -> tuple[float, dict[str, float]]:
    """The ratio of median rates (above 1: ours is faster), and both rates in tokens per CPU-second."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for side, run in (("ours", ours), ("theirs", theirs)):
            begun = time.process_time()
            assert run() == tokens
            seconds[side].append(time.process_time() - begun)
    rates = {side: round(tokens / statistics.median(times)) for side, times in seconds.items()}
    return round(rates["ours"] / rates["theirs"], 2), {**rates, "tokens": tokens}


def ours_of(model: Any, prompts: Prompts) -> Callable[[], int]:
    decoder = Decoder(InferenceCopy(model).model, stop_ids=(), slots=256)

    def run() -> int:
        decoder.add(Job(str(i), ids, Sampling(max_tokens=wanted)) for i, (ids, wanted) in enumerate(prompts))
        tokens = 0
        while decoder.busy:
            tokens += sum(len(sample.token_ids) for sample in decoder.step())
        return tokens

    return run


def peer_of(model: Any, prompts: Prompts, batch: int) -> Callable[[], int]:
    def run() -> int:
        tokens = 0
        for start in range(0, len(prompts), batch):
            rows = prompts[start : start + batch]
            width = max(len(ids) for ids, _ in rows)
            inputs = torch.tensor([(0,) * (width - len(ids)) + ids for ids, _ in rows])
            output = model.generate(
                inputs,
                attention_mask=(inputs != 0).long(),
                do_sample=True,
                top_k=0,
                max_new_tokens=max(wanted for _, wanted in rows),
            )
            tokens += sum(min(wanted, output.shape[1] - width) for _, wanted in rows)
        return tokens

    return run


def random_model(layers: int, hidden: int, kind: str = "Qwen3") -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None  # otherwise generate() takes it from the configuration
    return model


def with_lora(model: Any) -> Any:
    import copy

    from peft import LoraConfig, get_peft_model

    return get_peft_model(copy.deepcopy(model), LoraConfig(r=16, target_modules="all-linear"))


if __name__ == "__main__":
    main()
