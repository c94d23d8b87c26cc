"""Refining a student with verifiable rewards: credit, loss, the GRPO loop, and their stages.

Read in this order: `credit` (rewards to advantages), `loss` (advantages to a loss), `update` (rollouts to optimizer
steps), `grpo` (the loop), `critic` (what makes it PPO). `docs/design/012-training.md` explains where the other modules
belong.
"""

__version__ = "0.1.0"

__owner__ = f"distill-reasoning {__version__}"
"""Marks this package as ours (`distill.ownership`). `pipeline`, `distill` and `rl` carry the same marker."""
