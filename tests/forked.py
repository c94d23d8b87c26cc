"""What processes are forked from (`command`): it has imported what commands import, and built what they build of it.

Nothing of that is garbage, so it is not searched for any.
"""

import gc

gc.disable()

from importlib import import_module  # noqa: E402

from distill import catalog  # noqa: E402

COMMANDS = ("main", "run", "plan", "status", "traces", "dataset", "audit", "ask", "verify", "prune", "listing")
LIBRARIES = (
    "torch",
    "transformers.models.qwen3.modeling_qwen3",
    "peft",
    "duckdb",
    "pandas",  # pyarrow imports it
    "pyarrow.parquet",
    "jinja2",
    "rich.progress",
)
OURS = ("distill.verifiers.math", "distill.engines.transformers", "distill.training.loop", "distill.training.export")

for name in (*LIBRARIES, *(f"distill.cli.{name}" for name in COMMANDS), *OURS):
    import_module(name)
for where in catalog.STAGES.values():  # not `resolve`, which remembers what is installed
    module, _, stage = where.partition(":")
    getattr(import_module(module), stage).settings.model_rebuild()

gc.enable()
gc.freeze()
