"""The training engine: packed batches, LoRA or full, exact checkpoints. Shared by SFT, GRPO and reward models.

Read in this order: `batching` (a row), `forward` (a pass), `passes` (a gradient), `learner` (a step), `loop` (a run).
`docs/design/012-training.md` explains where the other modules belong.
"""
