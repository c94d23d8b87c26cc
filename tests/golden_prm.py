"""TRL's PRMTrainer as the oracle of our step head. Later releases of TRL have it no more, so what 1.8.0 makes of one
small training is kept in ``golden/trl_prm.json``. To make it again, in an environment with trl==1.8.0 and torch:

    PYTHONPATH=. python tests/golden_prm.py

TRL's head has a logit for "wrong" and one for "right"; ours is the second less the first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from distill.randomness import generator

FILE = Path(__file__).parent / "golden" / "trl_prm.json"
RATE, EPOCHS, VOCABULARY, WIDTH = 3e-3, 5, 40, 32
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False,
}  # fmt: skip


def rows() -> list[tuple[list[int], list[int], list[int]]]:
    """(token ids, the last token of each step, its label), of different lengths; the last token ends no step."""
    made = []
    for i in range(6):
        draw = generator("golden", i)
        steps = [int(n) for n in draw.integers(1, 6, 2 + i % 3)]
        ends = [4 + sum(steps[: k + 1]) for k in range(len(steps))]
        ids = [int(token) for token in draw.integers(0, VOCABULARY, ends[-1] + 2)]
        made.append((ids, ends, [int(label) for label in draw.integers(0, 2, len(steps))]))
    return made


def fill(body: Any) -> None:
    """Weights of a transformers body that depend on their names alone, on no version of torch."""
    with torch.no_grad():
        for name, weight in body.named_parameters():
            around = 1.0 if "norm" in name else 0.0
            weight.copy_(torch.from_numpy(generator("golden", name).normal(around, 0.2, weight.shape)))


def direction() -> torch.Tensor:
    """The head's weight before training, (WIDTH,)."""
    return torch.from_numpy(generator("golden", "head").normal(0, 0.3, WIDTH)).float()


def main() -> None:
    import trl
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForTokenClassification
    from trl.experimental.prm import PRMConfig, PRMTrainer

    model = Qwen3ForTokenClassification(Qwen3Config(**SHAPE, num_labels=2))
    fill(model.model)
    with torch.no_grad():
        model.score.weight.copy_(torch.stack([torch.zeros(WIDTH), direction()]))
        model.score.bias.zero_()
    losses: list[float] = []

    class Kept(PRMTrainer):  # type: ignore[misc]
        def compute_loss(self, *arguments: Any, **rest: Any) -> Any:
            loss = super().compute_loss(*arguments, **rest)
            losses.append(float(loss.detach()))
            return loss

    def padded(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        return {
            name: torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in batch])
            for name, filler in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))
        }

    table = [
        {
            "input_ids": ids,
            "attention_mask": [1] * len(ids),
            "labels": [labels[ends.index(t)] if t in ends else -100 for t in range(len(ids))],
        }
        for ids, ends, labels in rows()
    ]
    settings = PRMConfig(
        output_dir="/tmp/golden_prm", num_train_epochs=EPOCHS, per_device_train_batch_size=len(table), learning_rate=RATE,
        lr_scheduler_type="constant", adam_beta1=0.9, adam_beta2=0.95, weight_decay=0.0, max_grad_norm=0.0,
        gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    trainer = Kept(
        model, settings, data_collator=padded, train_dataset=Dataset.from_list(table),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=_tokenizer()),
    )  # fmt: skip
    trainer.train()
    wrong, right = model.score.weight.detach()
    found = {
        "trl": trl.__version__,
        "losses": losses,
        "weight": (right - wrong).tolist(),
        "bias": float(model.score.bias.detach().diff()),
        "first_layer": model.model.layers[0].mlp.up_proj.weight.detach()[0].tolist(),
    }
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(found["losses"])


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))


if __name__ == "__main__":
    main()
