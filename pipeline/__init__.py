"""The stage kernel: YAML to stages, keys, plans with reasons, manifests, locks, the runner, signals.

It has never heard of language models. `distill` builds its stages on it; any other program could.
Read in this order: `stage` (what a stage is), `config` (the wish), `manifest` (the record), `plan`
(the difference), `runner` (closing it).
"""

__version__ = "0.1.0"

__owner__ = f"distill-reasoning {__version__}"
"""Marks this package as ours (`distill.ownership`); `pipeline`, `distill` and `rl` each carry it, alike."""
