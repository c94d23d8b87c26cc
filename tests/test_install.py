"""The wheel, installed into its own environment, alone and beside a package that takes one of our names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("pipeline", "distill", "rl", "pyproject.toml", "README.md", "LICENSE")
STRANGER = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "stranger"
version = "1"
[tool.setuptools]
packages = ["pipeline"]
"""


def alone() -> dict[str, str]:
    """The environment variables without PYTHONPATH, on which pip would find us installed already."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, env=alone(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def wheel(source: Path, into: Path) -> Path:
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", into, source)
    (built,) = into.glob("*.whl")
    return built


class Environment:
    """A virtual environment with our wheel and the dependencies of the current environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        source = directory / "source"
        source.mkdir(parents=True)
        for name in OURS:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, source / name)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory / "venv"], check=True)
        self.python = directory / "venv/bin/python"
        (site,) = (directory / "venv/lib").glob("python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files are not followed
        self.wheel = wheel(source, directory / "ours")
        self.install(self.wheel)

    def install(self, built: Path, *options: str) -> None:
        pip("--python", self.python, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", *options, built)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        elsewhere = self.directory / "empty"
        elsewhere.mkdir(exist_ok=True)
        return subprocess.run(arguments, cwd=elsewhere, env=alone(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("install"))


@pytest.mark.slow
def test_the_installed_wheel_contains_starters_and_models(environment: Environment) -> None:
    script = str(environment.python.with_name("distill"))
    where = environment.run(str(environment.python), "-c", "import distill; print(distill.__file__)").stdout
    assert where.startswith(str(environment.directory / "venv"))
    assert "quickstart" in environment.run(script, "list", "pipelines").stdout
    made = environment.run(script, "init", "mine.yaml", "--from", "quickstart")
    assert made.returncode == 0, made.stderr
    planned = environment.run(script, "plan", "--pipeline", "mine.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "will run" in planned.stdout and "evaluate" in planned.stdout


@pytest.mark.slow
def test_a_package_that_takes_our_name_is_reported_in_one_line(environment: Environment, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    (stranger / "pipeline").mkdir(parents=True)
    (stranger / "pipeline/__init__.py").write_text("VERSION = 1\n")
    (stranger / "pyproject.toml").write_text(STRANGER)
    environment.install(wheel(stranger, tmp_path / "built"))
    for command in ([str(environment.python.with_name("distill"))], [str(environment.python), "-m", "distill"]):
        ended = environment.run(*command, "list")
        assert ended.returncode == 2
        assert "another package shadows or has overwritten pipeline (" in ended.stderr
        assert ended.stderr.count("\n") == 1
    environment.install(environment.wheel, "--force-reinstall")
    assert environment.run(str(environment.python), "-m", "distill", "list").returncode == 0
