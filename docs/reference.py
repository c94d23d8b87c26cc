"""Write the reference pages from the code: docs/cli.md, docs/yaml.md, docs/store.md, a table in docs/verifiers.md.

`make docs` runs it. A test fails if a page on disk is out of date.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # use the code beside this file, even if another version is installed

from distill import catalog  # noqa: E402
from distill.cli.keys import REQUIRED, Key, attribute_docs, in_json, keys_of  # noqa: E402
from distill.cli.main import app  # noqa: E402
from distill.store import schema  # noqa: E402

MADE = "<!-- Made by docs/reference.py from the code (`make docs`); do not edit. -->\n"

EXIT_CODES = """\
## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | a stage failed, or a verifier on every answer, or an endpoint after all `retries`; finished work is kept |
| 2 | the input is wrong, or a disk is full or not writable; the message says what, where and what to do |
| 3 | a cap on money or tokens was reached; finished work is kept |
| 75 | stopped cleanly (SIGTERM, Ctrl-C, terminal closed, `--max-time`), or workspace in use: run the command again |

A command that fails prints one line on stderr; with `--json` also an object on stdout, `{"event": "error", "message",
"exit_code"}`. Relative paths, also those in the YAML, start at the directory in which you run the command.
"""


ABOUT = (
    "`distill` and `python -m distill` are the same program. `-h` after a command tells what it takes, and",
    "`distill --install-completion` makes the shell complete the names of commands and options.",
)


def cli() -> str:
    """Every command with its arguments and options, read from typer."""
    lines = [MADE, "# The command line", "", *ABOUT, ""]
    for name, command in _commands(typer.main.get_command(app), ("distill",)):
        lines += [f"## `{name}`", "", (command.help or "").strip(), ""]
        if command.epilog:
            lines += ["```", command.epilog.removeprefix("Example: "), "```", ""]
        rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["| argument or option | default | what |", "|---|---|---|", *rows, ""]
    return "\n".join([*lines, EXIT_CODES])


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from _commands(inner, (*path, name))
        else:
            yield " ".join((*path, name)), inner


def _parameter(parameter: Any) -> str:
    names = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
    default = "" if parameter.default in (None, False) or callable(parameter.default) else f"`{parameter.default}`"
    help_text = (getattr(parameter, "help", None) or "").strip()
    variable = f" Or the environment variable `{parameter.envvar}`." if getattr(parameter, "envvar", None) else ""
    return f"| {', '.join(f'`{name}`' for name in names)} | {default} | {help_text}{variable} |"


def yaml() -> str:
    """Every key of every kind of stage, from the settings classes."""
    lines = [
        MADE,
        "# Pipelines in YAML",
        "",
        "The top level holds `name`, `workspace` (default `runs/<name>`), `seed` (default 0) and `stages`, a mapping",
        "of stage names to settings. `kind` is the kind of stage; the default is the stage's name. A model is",
        "`embedded:NAME`, `stage:NAME`, a directory, or `org/name[@revision]` on the hub. Relative paths start at",
        "the directory in which you run `distill`, not at that of the file.",
        "",
        "Keys marked *speed* do not change results and are not part of any fingerprint. In a terminal,",
        "`distill list stages sft` shows the keys of a stage.",
        "",
    ]
    for kind in catalog.names("stages"):
        stage = catalog.stage(kind)
        lines += [f"## `{kind}`", "", f"{stage.about[0].upper()}{stage.about[1:]}. Makes *{stage.produces}*.", ""]
        lines += [*_model(stage.settings), ""]
    return "\n".join([*lines, *_verifiers()])


def _verifiers() -> list[str]:
    """The section on the values of `verifier`: each name with its settings."""
    lines = [
        "# Verifiers",
        "",
        "A `verifier` is a name, a name with its settings (`{format: {boxed: true}}`), a class in a file of your own",
        "(`./my_verifier.py:MyVerifier`), or a composition: `{all: [math, format]}`, `{any: [math, exact]}`,",
        "`{weighted: [{of: math, weight: 0.9}, {of: format, weight: 0.1}]}`.",
        "",
    ]
    for name in catalog.VERIFIERS:
        made = catalog.resolve("verifiers", name)
        lines += [f"## Verifier `{name}`", "", _about(name), ""]
        if settings := getattr(made, "settings_model", None):
            lines += [*_model(settings), ""]
        elif fields := dataclasses.fields(made) if dataclasses.is_dataclass(made) else ():
            docs = attribute_docs(made)
            rows = [f"| `{f.name}` | `{in_json(f.default)}` | {docs.get(f.name, '')} |" for f in fields]
            lines += ["| key | default | what |", "|---|---|---|", *rows, ""]
    return lines


def _model(model: type[BaseModel]) -> list[str]:
    head = ["| key | type | default | what |", "|---|---|---|---|"]
    return head + [_row(key) for key in keys_of(model)]


def _row(key: Key) -> str:
    default = key.default if key.default == REQUIRED else f"`{key.default}`"
    return f"| `{key.name}` | {key.type.replace('|', chr(92) + '|')} | {default} | {key.what} |"


QUESTIONS = {
    "Which traces taught the students least? (The model could nearly have written them before training.)": (
        "SELECT run[:12] AS run, problem_id, trace_key[:12] AS trace, first_loss, learned\n"
        "FROM lessons ORDER BY first_loss LIMIT 10"
    ),
    "Which traces look mislabelled? (Even after the last epoch, their loss is far above the run's mean.)": (
        "SELECT run[:12] AS run, problem_id, trace_key[:12] AS trace, first_loss, last_loss FROM lessons\n"
        "QUALIFY last_loss > avg(last_loss) OVER (PARTITION BY run) + 3 * stddev(last_loss) OVER (PARTITION BY run)\n"
        "ORDER BY last_loss DESC"
    ),
    "What did the first optimizer update of GRPO learn from, and how strongly? (Each token contributes its weight\n"
    "times its advantage times the gradient of its log-probability, before clipping.)": (
        "SELECT u.run[:12] AS run, problem_id, u.trace_key[:12] AS trace, reward, components, advantage, u.weight,\n"
        "       list_avg(u.logprobs) AS logprob, t.answer\n"
        "FROM updates u JOIN rollouts USING (run, trace_key) JOIN problems USING (problem_key)\n"
        "JOIN traces t USING (trace_key) WHERE optimizer_step = 1 ORDER BY run, problem_id, reward DESC"
    ),
}


def store() -> str:
    head = [
        MADE,
        "# The trace store",
        "",
        "The store is the DuckDB file `<workspace>/store.duckdb`. Its tables are append-only, and keys are content "
        "hashes.",
        "There are three ways to query it:",
        "",
        "- in a terminal, `distill traces sql`;",
        "- in Python, `with Store(Path(workspace)).reading() as connection:` (`distill.store`);",
        "- in any DuckDB client, after `SET VARIABLE workspace = 'the/workspace'`. The view `traces` needs this",
        "  variable to find its files.",
        "",
        "[design/002-store.md](design/002-store.md) explains why the store is built this way.",
        "",
        "Three queries to start with; the tables and views follow below.",
        "",
    ]
    asked = [line for question, sql in QUESTIONS.items() for line in (question, "", "```sql", sql, "```", "")]
    return "\n".join([*head, *asked, ""]) + schema.documentation()


def verifiers() -> str:
    """The page on disk, with its table of verifiers replaced by that of the catalog."""
    before, begin, rest = (HERE / "verifiers.md").read_text(encoding="utf-8").partition("<!-- begin: ")
    mark, _, rest = rest.partition("\n")
    _, end, after = rest.partition("<!-- end -->")
    rows = [f"| `{name}` | {_about(name)} |" for name in sorted(catalog.VERIFIERS)]
    table = ["", "| name | what it asks |", "|---|---|", *rows, ""]
    for name in sorted(catalog.VERIFIERS):
        if accepts := _accepts(name):
            table += [f"### `{name}`", "", "```text", accepts, "```", ""]
    return f"{before}{begin}{mark}\n" + "\n".join([*table, ""]) + f"{end}{after}"


def _accepts(name: str) -> str:
    """The references and answers that a verifier accepts: its module's docstring after the first paragraph."""
    made = catalog.resolve("verifiers", name)
    return inspect.cleandoc(sys.modules[made.__module__].__doc__ or "").partition("\n\n")[2].replace("``", "`")


def _about(name: str) -> str:
    """What a verifier asks: the first paragraph of its module's docstring, without the name before it."""
    made = catalog.resolve("verifiers", name)
    text = (sys.modules[made.__module__].__doc__ or "").split("\n\n")[0].split(": ", 1)[-1]
    return " ".join(f"{text[0].upper()}{text[1:]}".split())


PAGES = {"cli.md": cli, "yaml.md": yaml, "store.md": store, "verifiers.md": verifiers}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (HERE / name).write_text(make().rstrip() + "\n", encoding="utf-8")
