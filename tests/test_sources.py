"""Problems and traces from other sources: published forms, templates over columns, Hugging Face data sets."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill import catalog, verifiers
from distill.sources import forms, huggingface
from distill.sources.columns import ProblemColumns, cell
from distill.sources.tables import Row
from distill.stages.import_traces import ImportSettings
from distill.stages.problems import ProblemsSettings
from distill.store import Store
from distill.thinking import Response
from distill.types import Outcome
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.plan import Status
from pipeline.plan import plan as make_plan
from pipeline.stage import result_settings
from pipeline.workspace import Workspace

SHARED = Path(__file__).parents[2] / "shared/data"

BOXED = "The answer is \\boxed{%s}."
PROGRAM = "```python\n%s\n```"
DOUBLE = "def double(x):\n    return 2 * x\n"
ECHO = "print(int(input()) * 2)\n"

ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "gsm8k": ({"question": "6 x 7?", "answer": "6 x 7 = <<6*7=42>>42\n#### 1,042"}, BOXED % "1042", BOXED % "42"),
    "math": (
        {"problem": "Half?", "solution": "First \\boxed{2}, no: \\boxed{\\frac{1}{2}}.", "level": "Level 5", "type": "A"},
        BOXED % "0.5",
        BOXED % "2",
    ),
    "math500": ({"problem": "Half?", "answer": "\\frac{1}{2}", "level": 2}, BOXED % "1/2", BOXED % "2"),
    "humaneval": (
        {"task_id": "HumanEval/0", "prompt": 'def double(x):\n    """Twice."""\n', "entry_point": "double",
         "test": "def check(candidate):\n    assert candidate(2) == 4\n"},
        PROGRAM % DOUBLE,
        PROGRAM % "def double(x):\n    return x\n",
    ),
    "mbpp": (
        {"task_id": 1, "text": "Double it.", "code": DOUBLE, "test_list": ["assert double(2) == 4"],
         "test_setup_code": "", "challenge_test_list": []},
        PROGRAM % DOUBLE,
        PROGRAM % "def double(x):\n    return x\n",
    ),
    "mbpp-sanitized": (
        {"task_id": 1, "prompt": "Double it.", "code": DOUBLE, "test_list": ["assert double(2) == 4"],
         "test_imports": [], "source_file": "x"},
        PROGRAM % DOUBLE,
        PROGRAM % "def double(x):\n    return x\n",
    ),
    "apps": (
        {"question": "Double the number.", "starter_code": "", "solutions": "[]",
         "input_output": json.dumps({"inputs": ["2\n"], "outputs": ["4\n"]})},
        PROGRAM % ECHO,
        PROGRAM % "print(1)",
    ),
    "taco": (
        {"question": "Double it.", "starter_code": "def double(x):",
         "input_output": json.dumps({"fn_name": "double", "inputs": [[2]], "outputs": [4]})},
        PROGRAM % DOUBLE,
        PROGRAM % "def double(x):\n    return x\n",
    ),
    "livecodebench": (
        {"question_title": "T", "question_content": "Double the number.", "starter_code": "", "metadata": "{}",
         "public_test_cases": json.dumps([{"input": "2", "output": "4", "testtype": "stdin"}]),
         "private_test_cases": json.dumps([{"input": "3", "output": "6", "testtype": "stdin"}])},
        PROGRAM % ECHO,
        PROGRAM % "print(4)",
    ),
    "mmlu": (
        {"question": "Which is even?", "subject": "s", "choices": ["1", "3", "4", "5"], "answer": 2},
        BOXED % "C",
        BOXED % "A",
    ),
    "arc": (
        {"id": "x", "question": "Which is even?", "choices": {"text": ["1", "4"], "label": ["A", "B"]}, "answerKey": "B"},
        BOXED % "B",
        BOXED % "A",
    ),
}  # fmt: skip
"""A row in each published form, with a right and a wrong answer."""

CONVERSATION = [{"role": "user", "content": "6 x 7?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n42"}]
SHAREGPT = [{"from": "human", "value": "6 x 7?"}, {"from": "gpt", "value": "<think>\nhm\n</think>\n\n42"}]
SKY = [
    {"from": "user", "value": "6 x 7?"},
    {
        "from": "assistant",
        "value": "<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n42\n\n<|end_of_solution|>",
    },
]
TRACES: dict[str, dict[str, Any]] = {
    "distill": {"messages": CONVERSATION, "reference": "42", "difficulty": None, "finish": "stop"},
    "messages": {"messages": CONVERSATION},
    "sharegpt": {"conversations": SHAREGPT},
    "deepseek": {"prompt": "6 x 7?", "reasoning_content": "hm", "content": "42"},
    "openr1-math": {
        "problem": "6 x 7?",
        "answer": "42",
        "generations": ["<think>\nhm\n</think>\n\n42", "<think>\nno\n</think>\n\n41"],
        "correctness_math_verify": [True, True],
    },
    "openr1-math-chosen": {"problem": "6 x 7?", "answer": "42", "generations": ["x"], "messages": CONVERSATION},
    "openthoughts": {"system": "Your role...", "conversations": SKY},
    "bespoke-stratos": {"system": "Your role...", "conversations": SKY},
    "openthoughts3": {"difficulty": 1, "domain": "math", "conversations": SHAREGPT},
    "s1k": {"question": "6 x 7?", "thinking_trajectories": ["hm"], "attempt": "42", "solution": "42"},
    "s1k-1.1": {"question": "6 x 7?", "solution": "42", "deepseek_thinking_trajectory": "hm", "deepseek_attempt": "42"},
    "r1-math": {"problem": "6 x 7?", "gtruth_answer": "42", "message_thinking": "hm", "message_content": "42"},
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path: Path, text: str) -> config.PipelineSpec:
    yaml = tmp_path / "pipeline.yaml"
    yaml.write_text(text)
    return config.load(yaml, catalog.stage, workspace=tmp_path / "run")


def run(tmp_path: Path, text: str) -> tuple[dict[str, Manifest], Store]:
    spec = load(tmp_path, text)
    workspace = Workspace(tmp_path / "run")
    done = runner.run(spec, workspace, Listener(), lambda: False)
    assert all(plan.status is Status.CACHED for plan in make_plan(spec, workspace))
    return {item.manifest.stage: item.manifest for item in done}, Store(workspace.path)


PROBLEMS = "name: p\nstages:\n  problems:\n    sources:\n      - {{{}}}\n"


# -- forms ------------------------------------------------------------------------------------


def test_this_file_covers_every_form() -> None:
    assert ROWS.keys() == forms.PROBLEMS.keys() and TRACES.keys() == forms.TRACES.keys()


@pytest.mark.parametrize("form", forms.PROBLEMS)
def test_file_and_form_make_a_source_whose_verifier_knows_right_from_wrong(form: str, tmp_path: Path) -> None:
    row, right, wrong = ROWS[form]
    source = ProblemsSettings.model_validate({"sources": [{"file": str(tmp_path / "f.jsonl"), "form": form}]}).sources[
        0
    ]
    mapping = ProblemColumns(
        source.prompt, source.reference, source.reference_pattern, source.difficulty, source.instruction
    )
    problem = mapping.problem(Row(tmp_path, 1, row), source.verifier, "s", "train", source.licence)
    verifier = verifiers.build(source.verifier)
    outcomes = [verifier.verify(problem, Response("", answer, True)).outcome for answer in (right, wrong)]
    assert outcomes == [Outcome.CORRECT, Outcome.INCORRECT]
    assert problem.prompt.endswith(source.instruction) and source.instruction


def test_levels_of_math_become_difficulties_and_an_unknown_one_none(tmp_path: Path) -> None:
    rows = [ROWS["math"][0], ROWS["math"][0] | {"problem": "Third?", "level": "Level ?"}]
    file = write(tmp_path / "math.jsonl", rows)
    _, store = run(tmp_path, PROBLEMS.format(f"file: {file}, form: math"))
    found = store.rows("SELECT difficulty, reference, licence, source FROM problems ORDER BY prompt")
    assert [row["difficulty"] for row in found] == [5, None]
    assert {(row["reference"], row["licence"], row["source"]) for row in found} == {("\\frac{1}{2}", "MIT", "math")}


@pytest.mark.parametrize("form", forms.TRACES)
def test_published_traces_are_read(form: str) -> None:
    said_of = {"file": "f.jsonl", "form": form, "teacher": "t"}
    settings = ImportSettings.model_validate(said_of)
    row = Row(Path("f.jsonl"), 1, TRACES[form])
    response, *_ = settings.columns.each(row)
    assert not isinstance(response, InputError)
    prompt = response.prompt if settings.prompt is None else cell(row, settings.prompt)
    assert (prompt, response.thinking, response.answer, response.closed, response.system) == (
        "6 x 7?",
        "hm",
        "42",
        True,
        None,
    )
    if settings.reference:
        assert cell(row, settings.reference) == "42"


def test_settings_beside_a_form_override_it() -> None:
    written = {"file": "f", "form": "math500", "verifier": "exact", "difficulty": None}
    source = ProblemsSettings.model_validate({"sources": [written]}).sources[0]
    assert (source.verifier, source.difficulty, source.prompt, source.licence) == ("exact", None, "problem", "MIT")


def test_a_form_and_its_spelled_out_settings_have_one_fingerprint() -> None:
    spelled = {"file": "f", **forms.PROBLEMS["gsm8k"].settings}
    settings = [ProblemsSettings.model_validate({"sources": [s]}) for s in ({"file": "f", "form": "gsm8k"}, spelled)]
    assert result_settings(settings[0]) == result_settings(settings[1])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("file: f.jsonl, form: gsm8", r"yaml:5: .*did you mean 'gsm8k'"),
        ("file: f.jsonl, form: openthoughts", r"is a form of import"),
        ("file: f.jsonl, prompt: '{{ q', reference: a", r"yaml:5: .*not a Jinja template"),
        ("file: f.jsonl, prompt: '{{ q | nope }}', reference: a", r"not a Jinja template: No filter named 'nope'"),
        ("dataset: ./nowhere, form: gsm8k", r"yaml:5: .*\./nowhere: no such directory"),
        ("file: ., form: gsm8k", r"is a directory; .*`dataset:`"),
    ],
)
def test_mistakes_in_yaml_are_one_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "f.jsonl", [ROWS["gsm8k"][0]])
    with pytest.raises(InputError, match=message):
        run(tmp_path, PROBLEMS.format(source))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ nope }}", "'nope' is undefined"),
        ("{{ solution | boxed }}", r"has no \\boxed"),
        ("{{ ''.__class__.mro() }}", "unsafe|not safe"),
        ("{{ index | letter }}", "is not the index of a choice"),
    ],
)
def test_a_template_that_does_not_fit_a_row_names_the_row(template: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^f:3: .*(?:{message})"):
        cell(Row(Path("f"), 3, {"solution": "none", "index": 99}), template)


def test_a_row_that_does_not_fit_its_form_stops_or_is_skipped(tmp_path: Path) -> None:
    rows = [ROWS["gsm8k"][0], {"question": "2 + 2?", "answer": "four"}, {"question": "2 + 3?", "answer": "#### 5"}]
    file = write(tmp_path / "f.jsonl", rows)
    with pytest.raises(InputError, match=r"f\.jsonl:2: "):
        run(tmp_path, PROBLEMS.format(f"file: {file}, form: gsm8k"))
    done, _ = run(tmp_path, PROBLEMS.format(f"file: {file}, form: gsm8k, on_bad_row: skip"))
    assert done["problems"].figures["train"] == 2


# -- Hugging Face data sets -------------------------------------------------------------------

GSM8K = [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(5)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in each layout on disk."""
    datasets = pytest.importorskip("datasets")
    place = tmp_path_factory.mktemp("datasets")
    train, test = datasets.Dataset.from_list(GSM8K), datasets.Dataset.from_list(GSM8K[:2])
    train.save_to_disk(place / "one")
    datasets.DatasetDict(train=train, test=test).save_to_disk(place / "dict")
    for folder in ("repository/main", "bare"):
        (place / folder).mkdir(parents=True)
        train.to_parquet(place / folder / "train-00000-of-00001.parquet")
        test.to_parquet(place / folder / "test-00000-of-00001.parquet")
    (place / "repository/README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: train, path: main/train-*}\n"
        "  - {split: test, path: main/test-*}\n---\n\n# Sums\n"
    )
    return place


@pytest.mark.parametrize("name", ["one", "dict", "repository", "bare"])
def test_a_data_set_is_read_from_a_directory(name: str, saved: Path) -> None:
    rows = list(huggingface.DataSet(str(saved / name)).rows())
    assert [dict(row.values) for row in rows] == GSM8K
    assert [row.line for row in rows] == [1, 2, 3, 4, 5] and {row.stem for row in rows} == {name}


FIRST = "name: p\nstages:\n  first: {kind: problems, sources: [{family: calc, train: 2}]}\n"


@pytest.mark.parametrize("bad", ["stop", "skip"])
@pytest.mark.parametrize("name", ["dict", "repository"])
@pytest.mark.parametrize(
    "stage",
    [
        "  problems: {sources: [{DATA, reference: anwser}]}\n",
        "  import: {DATA, answer: anwser, teacher: t}\n",
        "  curate: {problems: first, against: {sums: {DATA, reference: anwser}}}\n",
    ],
    ids=["problems", "import", "curate"],
)
def test_a_column_missing_from_a_data_set_is_reported_before_any_stage_runs(
    stage: str, name: str, bad: str, saved: Path, tmp_path: Path
) -> None:
    data = f"dataset: {saved / name}, prompt: question, on_bad_row: {bad}"
    spec, workspace = load(tmp_path, FIRST + stage.replace("DATA", data)), Workspace(tmp_path / "run")
    with pytest.raises(InputError, match=r":1: has no column 'anwser'; it has question, answer"):
        runner.run(spec, workspace, Listener(), lambda: False)
    assert not list(workspace.path.glob("manifests/*/*.json"))


def test_a_row_of_a_data_set_that_does_not_fit_a_template_may_be_skipped(saved: Path, tmp_path: Path) -> None:
    reference = "{{ answer if row.question != '0 + 0?' else nope }}"
    source = f'dataset: {saved / "one"}, prompt: question, reference: "{reference}", on_bad_row: skip'
    done, _ = run(tmp_path, PROBLEMS.format(source))
    assert done["problems"].figures["train"] == len(GSM8K) - 1


def test_splits_and_configurations_are_found_or_reported(saved: Path) -> None:
    for name, named in (("dict", None), ("repository", "main"), ("bare", None)):
        assert len(list(huggingface.DataSet(str(saved / name), "test", named).rows())) == 2
    for found, message in (
        (huggingface.DataSet(str(saved / "dict"), "dev"), "no split 'dev'; it has train, test"),
        (huggingface.DataSet(str(saved / "bare"), "dev"), r"Bad split: dev"),
        (huggingface.DataSet(str(saved / "repository"), "test", "other"), "'other' not found"),
        (huggingface.DataSet(str(saved / "one"), config="main"), "no configuration 'main'"),
    ):
        with pytest.raises(InputError, match=message):
            list(found.rows())


def test_a_data_set_is_identified_by_its_content(saved: Path, tmp_path: Path) -> None:
    data = shutil.copytree(saved / "dict", tmp_path / "sums")
    text = PROBLEMS.format(f"dataset: {data}, dataset_split: test, form: gsm8k, split: heldout")
    done, store = run(tmp_path, text)
    assert done["problems"].figures["heldout"] == 2
    origins = [row["origin"] for row in store.rows("SELECT origin FROM problems ORDER BY origin")]
    assert origins == [f"{data}/test:1", f"{data}/test:2"]
    spec, workspace = load(tmp_path, text), Workspace(tmp_path / "run")
    shutil.rmtree(data)
    shutil.copytree(saved / "dict", data)
    assert make_plan(spec, workspace)[0].status is Status.CACHED
    shutil.rmtree(data / "test")
    shutil.copytree(saved / "dict/train", data / "test")
    found = make_plan(spec, workspace)[0]
    assert found.status is Status.RUN and "data set" in found.reasons[0]


def test_a_damaged_data_set_is_an_error_of_one_line(saved: Path, tmp_path: Path) -> None:
    data = shutil.copytree(saved / "one", tmp_path / "one")
    next(data.glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"data set .*/one: cannot be read: \S"):
        list(huggingface.DataSet(str(data)).rows())


def test_traces_of_a_data_set_are_imported(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([TRACES["openr1-math"]]).save_to_disk(tmp_path / "r1")
    done, store = run(
        tmp_path,
        f"name: p\nstages:\n  import: {{dataset: {tmp_path / 'r1'}, form: openr1-math}}\n  verify: {{traces: import}}\n",
    )
    assert [done["verify"].figures[outcome] for outcome in ("correct", "incorrect")] == [1, 1]
    assert store.rows("SELECT model, thinking, answer FROM traces ORDER BY sample_index") == [
        {"model": "imported:DeepSeek-R1", "thinking": "hm", "answer": "42"},
        {"model": "imported:DeepSeek-R1", "thinking": "no", "answer": "41"},
    ]
    found = store.rows("SELECT verifier, outcome, other_verifier, other_outcome FROM disagreements")
    assert found == [
        {"verifier": "published", "outcome": "correct", "other_verifier": "math", "other_outcome": "incorrect"}
    ]
    judged = store.rows("SELECT verifier, outcome FROM overview ORDER BY sample_index")
    assert [tuple(row.values()) for row in judged] == [("math", "correct"), ("math", "incorrect")]


def test_an_unreachable_hub_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = huggingface.DataSet("openai/gsm8k", config="main")
    with pytest.raises(InputError, match=r"^data set openai/gsm8k: the hub cannot be reached .*hf download"):
        found.identity(FileHashes())
    with pytest.raises(InputError, match="the hub cannot be reached"):
        list(found.rows())
    commit = "0123456789" * 4
    assert huggingface.DataSet("openai/gsm8k", revision=commit).identity(FileHashes()) == commit


# -- the real sets ----------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_the_real_data_sets_are_read_whole_with_file_and_form(tmp_path: Path) -> None:
    sources = [("gsm8k_train.jsonl", "gsm8k", 7473), ("gsm8k_test.jsonl", "gsm8k", 1319),
               ("math500_test.json", "math500", 500), ("HumanEval.jsonl.gz", "humaneval", 164)]  # fmt: skip
    written = "\n".join(f"      - {{file: {SHARED / file}, form: {form}}}" for file, form, _ in sources)
    done, store = run(tmp_path, f"name: p\nstages:\n  problems:\n    sources:\n{written}\n")
    assert done["problems"].figures["members"] == sum(count for *_, count in sources)
    assert done["problems"].figures["verifiers"] == ["code", "math"]
    assert store.rows("SELECT count(*) AS n FROM problems WHERE trim(reference) = ''") == [{"n": 0}]


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_the_answers_of_math_are_extracted_from_its_solutions() -> None:
    with open(SHARED / "math500_test.json", encoding="utf-8") as file:
        rows = json.load(file)
    column = str(forms.PROBLEMS["math"].settings["reference"])
    assert [cell(Row(Path("f"), i, row), column) for i, row in enumerate(rows)] == [row["answer"] for row in rows]


def test_a_gzipped_file_can_have_a_form(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS["gsm8k"][0]).encode()))
    done, _ = run(tmp_path, PROBLEMS.format(f"file: {tmp_path / 'f.jsonl.gz'}, form: gsm8k"))
    assert done["problems"].figures["train"] == 1
