"""The reference pages are up to date, and the docs name only what exists."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from distill import catalog
from distill.cli.open import load, starters
from distill.stages.student import StudentSettings
from distill.store import Store
from pipeline import config
from pipeline.errors import InputError

ROOT = Path(__file__).parents[1]


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "yaml.md", "store.md", "verifiers.md"])
def test_reference_pages_are_up_to_date(page: str) -> None:
    made = reference().PAGES[page]().rstrip() + "\n"
    assert (ROOT / "docs" / page).read_text() == made, "run `make docs`"


def test_every_stage_has_a_section() -> None:
    text = (ROOT / "docs/yaml.md").read_text()
    assert all(f"## `{kind}`" in text for kind in catalog.names("stages"))


def test_every_verifier_is_on_the_page_of_verifiers() -> None:
    text = (ROOT / "docs/verifiers.md").read_text()
    assert all(f"| `{name}` |" in text for name in catalog.VERIFIERS)


def test_the_python_on_the_page_of_verifiers_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/verifiers.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_and_configs_named_in_the_docs_exist() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = page.read_text()
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        for name in re.findall(r"configs/(\w+)\.yaml", text):
            assert name in starters(), f"{page.name}: configs/{name}.yaml"


def test_every_module_of_the_trainer_is_in_its_reading_order() -> None:
    text = (ROOT / "docs/design/012-training.md").read_text().split("## Reading order")[1].split("\n## ")[0]
    modules = [path.stem for place in ("distill/training", "rl") for path in (ROOT / place).glob("*.py")]
    assert [name for name in modules if name != "__init__" and not re.search(rf"\b{name}\b", text)] == []


def test_every_starter_pipeline_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert all(f"configs/{name}.yaml" in text for name in starters())


@pytest.mark.parametrize("path", sorted((ROOT / "docs/experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_pipelines_of_the_log_load(path: Path) -> None:
    assert f"docs/experiments/{path.name}" in path.read_text() and list(load(path, []).stages)
    assert f"experiments/{path.name}" in (ROOT / "docs/log.md").read_text()


def test_the_stages_and_queries_on_the_page_of_training_work(tmp_path: Path) -> None:
    """Its stages load as parts of a pipeline, and its queries run on a new store."""
    text = (ROOT / "docs/training.md").read_text()
    stages, queries = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("yaml", "sql"))
    assert len(stages) >= 4 and len(queries) >= 4
    rest = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    for number, written in enumerate(stages):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(rest | {"stages": rest["stages"] | yaml.safe_load(written)}))
        assert list(load(file, []).stages)
    store = Store(tmp_path)
    store.ingest()
    with store.reading() as connection:
        for query in queries:
            connection.execute(query)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("grpo.num_generations=8", "group"), ("sft.report_to=[]", "log_to"), ("sft.lora={lora_alpha: 8}", "alpha")],
)
def test_the_key_of_another_tool_suggests_ours(theirs: str, ours: str) -> None:
    with pytest.raises(InputError, match=rf"unknown key; did you mean '{ours}'\?"):
        config.load(ROOT / "configs/quickstart.yaml", catalog.stage, overrides=[theirs])


def test_the_keys_of_other_tools_are_on_the_page_of_training_and_map_to_real_ones() -> None:
    page = (ROOT / "docs/training.md").read_text()
    known = {key for kind in ("sft", "grpo", "ppo", "opd", "gkd") for key in catalog.stage(kind).settings.model_fields}
    for theirs, ours in StudentSettings.ELSEWHERE.items():
        assert f"`{theirs}`" in page, theirs
        assert ours.partition(".")[0] in known, ours
