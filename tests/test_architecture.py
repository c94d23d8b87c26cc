"""Imports go one way, rl -> distill -> pipeline, and light commands load no heavy library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill import catalog

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"pipeline": {"pipeline"}, "distill": {"distill", "pipeline"}, "rl": {"rl", "distill", "pipeline"}}
HEAVY = ("torch", "transformers", "peft", "datasets", "vllm", "sympy", "math_verify", "z3", "reasoning_gym")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        ours = {name.split(".")[0] for name in imports(path)} & set(MAY_IMPORT)
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[package]}"


@pytest.mark.parametrize("command", [["--help"], ["plan"], ["list"], ["status"]])
def test_light_commands_load_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    arguments = [*command, "--workspace", str(tmp_path)] if command[0] in ("plan", "status") else command
    code = (
        "import sys\n"
        f"sys.argv = ['distill', *{arguments!r}]\n"
        "from distill.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stderr.strip().splitlines()[-1] == "[]", result.stderr


@pytest.mark.parametrize("kind", catalog.TABLES)
def test_every_name_in_the_catalog_resolves(kind: str) -> None:
    for name in catalog.TABLES[kind]:
        if (kind, name) != ("engines", "vllm"):
            assert catalog.resolve(kind, name) is not None


def test_each_package_carries_the_owner_marker() -> None:
    import distill
    import pipeline
    import rl

    assert distill.__owner__ == pipeline.__owner__ == rl.__owner__


def test_every_public_name_exists_and_is_completed_by_dir() -> None:
    import distill

    assert dir(distill) == sorted(distill.__all__)
    for name in distill.__all__:
        assert getattr(distill, name) is not None
