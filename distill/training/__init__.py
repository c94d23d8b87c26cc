"""The training engine: packed batches, LoRA or full, exact checkpoints. Shared by SFT and GRPO."""
