"""The stage kernel: YAML to stages, keys, plans with reasons, manifests, locks, the runner, signals.

It has never heard of language models. `distill` builds its stages on it; any other program could.
Read in this order: `stage` (what a stage is), `config` (the wish), `manifest` (the record), `plan`
(the difference), `runner` (closing it).
"""

__version__ = "0.1.0"

__owner__ = f"distill-reasoning {__version__}"
"""Marks this `pipeline` as ours: other distributions ship packages of the same name (`distill.ownership`)."""
