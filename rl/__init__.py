"""Refining a student with verifiable rewards: credit, loss, the GRPO loop, and the stages of these.

Read in this order: `credit` (rewards to advantages), `loss` (advantages to a loss), `grpo` (the loop).
"""

from pipeline import __owner__ as __owner__
