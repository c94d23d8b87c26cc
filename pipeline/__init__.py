"""The stage kernel: stages from YAML, keys, plans with reasons, manifests, locks, the runner, signals.

It knows nothing about language models. `distill` builds its stages on it; any other program could.
Read in this order: `stage` (what a stage is), `config` (what the user asks for), `manifest` (the record of
what has run), `plan` (the difference), `runner` (runs what is missing).
"""

__version__ = "0.1.0"

__owner__ = f"distill-reasoning {__version__}"
"""Marks this package as ours (`distill.ownership`). `pipeline`, `distill` and `rl` carry the same marker."""
