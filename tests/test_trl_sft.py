"""TRL's SFTTrainer as the oracle of supervised training: the same batches, 20 steps, the same losses and weights.

TRL and ours tokenise, mask, batch and optimise independently. All they share is the conversations, their order
and the initial weights. Skipped where TRL is not installed (extra: oracle).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="TRL is not installed (extra: oracle)")

from datasets import Dataset  # noqa: E402
from tiny import chat_tokenizer, tiny, weights  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from distill.randomness import generator  # noqa: E402
from distill.training.batching import Order  # noqa: E402
from distill.training.conversations import from_messages  # noqa: E402
from distill.training.loop import StepMetrics, TrainSettings, train  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.training.student import add_lora  # noqa: E402
from distill.types import Message  # noqa: E402

STEPS, BATCH, RATE = 20, 4, 1e-3
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<user>' + m.content + '<end>\n' }}{% else %}"
    "{{ '<bot>' }}{% generation %}{{ m.content + '<end>' }}{% endgeneration %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


class InOrder(SFTTrainer):
    """Takes the rows in order, and records the loss of every micro-batch."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.losses: list[float] = []
        super().__init__(*args, **settings)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    def compute_loss(self, *args: Any, **settings: Any) -> Any:
        loss = super().compute_loss(*args, **settings)
        self.losses.append(loss.item())
        return loss


def text(*place: object) -> str:
    draw = generator("sft parity", *place)
    return "".join("abcdefghijklmnopqrstuvwxyz ?"[i] for i in draw.integers(0, 28, int(draw.integers(2, 14))))


def conversation(index: int) -> list[Message]:
    """Every third conversation has two turns of the assistant."""
    turns = 4 if index % 3 == 0 else 2
    return [{"role": "assistant" if t % 2 else "user", "content": f"x{text(index, t)}x"} for t in range(turns)]


def model(lora: bool) -> Any:
    made = tiny()
    return add_lora(made, rank=4, alpha=8, seed=1) if lora else made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_twenty_steps_equal_trl_s(lora: bool, packed: bool, tmp_path: Path) -> None:
    tokenizer, rows = chat_tokenizer(TEMPLATE), [conversation(index) for index in range(BATCH * 5)]
    examples = [from_messages(tokenizer, str(index), row) for index, row in enumerate(rows)]
    order = Order(tuple(map(len, examples)), BATCH, seed=0)

    theirs = model(lora)
    arguments = SFTConfig(
        output_dir=str(tmp_path / "trl"), max_steps=STEPS, per_device_train_batch_size=BATCH // 2,
        gradient_accumulation_steps=2, assistant_only_loss=True, padding_free=packed, max_length=None,
        learning_rate=RATE, adam_beta2=0.95, lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1}, gradient_checkpointing=False, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", disable_tqdm=True, dataset_num_proc=None,
    )  # fmt: skip
    asked = Dataset.from_list([{"messages": rows[i]} for step in range(STEPS) for i in order(step)])
    trainer = InOrder(theirs, arguments, train_dataset=asked, processing_class=tokenizer)
    trainer.train()

    ours, metrics = model(lora), list[StepMetrics]()
    optimizer = OptimizerSettings(RATE, warmup=0.0)
    settings = TrainSettings(optimizer, batch_size=BATCH, steps=STEPS, micro_batch_tokens=60, seed=0)
    train(ours, examples, settings, checkpoints=tmp_path / "ours", on_step=metrics.append)

    pairs = zip(trainer.losses[::2], trainer.losses[1::2], strict=True)
    torch.testing.assert_close([m.loss for m in metrics], [sum(pair) for pair in pairs], atol=1e-5, rtol=0)
    # AdamW divides by the gradient's own size, so the rounding of a gradient near zero is not scaled down: 1.7e-6 in one weight
    torch.testing.assert_close(weights(ours), weights(theirs), atol=1e-6 if lora else 3e-6, rtol=0)
    assert (weights(ours) - weights(model(lora))).abs().max() > 1e-3  # the weights did move
