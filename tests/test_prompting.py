"""Prompting by YAML: strict, pure, part of just the keys that it changes; the stored prompt is the one the model saw."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from distill import catalog
from distill.cli import traces
from distill.engines.options import ThinkingSettings
from distill.generation import wanted
from distill.keys import prompt_key, trace_key
from distill.modelspec import EMBEDDED
from distill.prompting import Prompting, asking
from distill.stages.evaluate import EvaluateSettings
from distill.stages.generate import GenerateSettings
from distill.stages.sft import SftSettings
from distill.store import Store
from distill.types import Asked, Problem, Sampling, ThinkingBudget
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.plan import plan
from pipeline.stage import result_settings
from pipeline.workspace import Workspace
from rl.stages.grpo import GrpoSettings

PROBLEM = Problem("x/1", "What is 2 + 2?", "4", "math", "x", origin="p.jsonl:3")


def ask_by(prompting: Any, training: list[Problem] | None = None, **more: Any) -> Any:
    return asking(TypeAdapter(Prompting).validate_python(prompting), training=lambda: training or [], **more)


def contents(asked: Asked) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in asked.messages]


# Keys.


def test_trace_keys_without_prompting_settings_never_change() -> None:
    """Frozen: a changed key makes every user pay again for the traces under it."""
    assert trace_key(PROBLEM, "model", Sampling(max_tokens=64, seed=3), 1) == "6a6c8b38c6c713005a26354432b4cfa4"
    assert trace_key(PROBLEM, "model", Sampling(temperature=0.0), 0) == "ba37ed3543c28b37f8262206d8bd253d"
    brief = Problem("x/1", "What is 2 + 2?", "4", "math", "x", system="Be brief.")
    assert trace_key(brief, "model", Sampling(top_p=0.9, top_k=5), 0) == "a6c4186438353d7933b1bb26a612a0c5"
    assert key_by(None) == key_by("plain") == trace_key(PROBLEM, "model", Sampling(), 0)


def test_stages_without_prompting_settings_keep_their_fingerprints() -> None:
    """A new version of distill must not train a student again because of new settings that the student does not use."""
    new = {"prompting", "thinking", "truncated", "continue_tokens"}
    asked = {"problems": "p", "teacher": "embedded:teacher"}
    plain, other = GenerateSettings(**asked), GenerateSettings(**asked, prompting="boxed", truncated="drop")
    assert not new & result_settings(plain).keys()
    assert {"prompting", "truncated"} <= result_settings(other).keys()
    assert not new & result_settings(GrpoSettings(student="stage:sft", problems="p")).keys()
    assert not new & result_settings(EvaluateSettings(problems="p", models={"a": "embedded:teacher"})).keys()
    assert "prompting" not in result_settings(SftSettings(data="s", student="embedded:student-base"))


def key_by(prompting: Any, problem: Problem = PROBLEM, budget: ThinkingBudget | None = None) -> str:
    ask = ask_by(prompting, budget=budget)
    return wanted([("key", problem)], "model", Sampling(), 1, ask)[0].key


def test_the_key_covers_just_what_changes_the_request() -> None:
    ways: list[Any] = [
        None,
        "boxed",
        {"system": "Be brief."},
        {"template": "{{ prompt }}!"},
        {"examples": [{"prompt": "1 + 1?", "answer": "2"}]},
        {"examples": [{"prompt": "1 + 1?", "answer": "2", "thinking": "one and one"}]},
        {"prefill": "<think>\n"},
    ]
    found = [key_by(way) for way in ways]
    found += [key_by(None, budget=budget) for budget in (ThinkingBudget(most=9), ThinkingBudget(least=9))]
    assert len(set(found)) == len(found)
    assert key_by(None, budget=ThinkingBudget()) == key_by(None)
    assert key_by(None, budget=ThinkingBudget(9, extension="Hm")) == key_by(None, budget=ThinkingBudget(9))


def test_boxed_does_not_repeat_an_instruction_that_the_problem_has() -> None:
    asks = replace(PROBLEM, prompt=contents(ask_by("boxed")(PROBLEM))[-1][1])
    assert contents(ask_by("boxed")(asks))[-1][1].count("\\boxed{}") == 1
    assert key_by("boxed", asks) == key_by(None, asks)


def test_problems_with_the_same_rendered_prompt_keep_separate_traces() -> None:
    other = Problem("x/2", "What is 3 + 3?", "6", "math", "x")
    alike = {"template": "Tell me of {{ source }}."}
    assert ask_by(alike)(PROBLEM) == ask_by(alike)(other)
    assert key_by(alike) != key_by(alike, other)
    assert prompt_key(PROBLEM) != prompt_key(other)


# What a template may use.

YAML = """\
name: small
stages:
  problems: {sources: [{family: calc, train: 3}]}
  generate:
    problems: problems
    teacher: "embedded:teacher"
"""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("prompting: boxes", "7: stages.generate.prompting: no template is called 'boxes'; did you mean 'boxed'?"),
        ("prompting:\n      template: '{{ promt }}'", "8: stages.generate.prompting.template: there is no field 'promt' of "
         "a problem; did you mean 'prompt'?"),
        ("prompting: {system: '{{ prompt', template: boxed}", "prompting.system: not a Jinja template: unexpected end"),
        ("prompting: {template: '{{ reference }}'}", "there is no field 'reference' of a problem"),
        ("prompting: {template: '{{ 1 }}'}", "names no field of the problem"),
        ("prompting: {template: '{{ prompt | randm }}'}", "No filter named 'randm'"),
        ("prompting: {template: '{{ prompt | random }}'}", "No filter named 'random'"),
        ("prompting: {template: '{{ lipsum() }} {{ prompt }}'}", "there is no field 'lipsum'"),
        ("prompting: {temlate: boxed}", "prompting.temlate: unknown key; did you mean 'template'?"),
        ("prompting: {examples: {file: none.jsonl}}", "prompting.examples.file: none.jsonl: no such file"),
        ("prompting: {examples: []}", "prompting.examples: should hold at least 1"),
        ("prompting: {examples: {count: 2, answer: '{{ refrence }}'}}", "prompting.examples.answer: there is no field"),
        ("prompting: 5", "7: stages.generate.prompting"),
        ("thinking: {}", "7: stages.generate.thinking: sets no bound"),
        ("thinking: {budget: 512}", "512 tokens of thinking leave no room for the answer in sampling.max_tokens 512"),
        ("thinking: {budget: 5, least: 6}", "least 6 is more than the budget of 5"),
        ("thinking: {budget: 5, closing: stop}", "must hold </think>"),
        ("seed: 9223372036854775808", "stages.generate.seed: should be less than"),
        ("sampling: {max_tokens: 2147483648}", "sampling.max_tokens: should be less than"),
        ("truncated: continue", "truncated: continue and continue_tokens"),
        ("continue_tokens: 900", "truncated: continue and continue_tokens"),
        ("truncated: continue\n    continue_tokens: 512", "continue_tokens must rise from sampling.max_tokens, 512"),
    ],
)  # fmt: skip
def test_a_mistake_in_yaml_is_one_line_with_its_place(lines: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"{YAML}    {lines}\n")
    with pytest.raises(InputError) as caught:
        config.load(file, catalog.stage)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ prompt }} {{ metadata.topic }}", "metadata has no 'topic'; metadata has level"),
        ("{{ prompt }} of {{ difficulty }}", "it has no difficulty"),
        ("{{ prompt + difficulty|default(1) }}", "TypeError: can only concatenate str"),
        ("{{ prompt.upper }}", "a value in it is not text but a builtin_function_or_method"),
        ("{{ prompt.__class__ }}", "access to attribute '__class__'"),
        ("{{ prompt }}{{ metadata.level }}", "a value in it is null"),
    ],
)
def test_a_template_that_does_not_fit_a_problem_names_both(template: str, message: str) -> None:
    problem = Problem("x/1", "What is 2 + 2?", "4", "math", "x", metadata={"level": None}, origin="p.jsonl:3")
    with pytest.raises(InputError) as caught:
        ask_by({"template": template}, key="generate.prompting")(problem)
    assert str(caught.value).startswith("generate.prompting.template: does not fit problem x/1 (p.jsonl:3): ")
    assert message in str(caught.value)


def test_system_exemplars_prompt_and_prefill_come_in_order() -> None:
    asked = ask_by(
        {
            "system": "Level {{ metadata.level }}.",
            "template": "Q: {{ prompt }}{% if difficulty is defined %} ({{ difficulty }}){% endif %}",
            "examples": [{"prompt": "1 + 1?", "answer": "2", "thinking": "one and one"}],
            "prefill": "<think>\nOkay",
        }
    )(Problem("x/1", "2 + 2?", "4", "math", "x", system="of its own", metadata={"level": 5}))
    assert contents(asked) == [
        ("system", "Level 5."),
        ("user", "Q: 1 + 1?"),
        ("assistant", "<think>\none and one\n</think>\n\n2"),
        ("user", "Q: 2 + 2?"),
    ]
    assert asked.prefix == "<think>\nOkay"


def test_a_problem_keeps_its_own_system_prompt_where_none_is_set() -> None:
    problem = Problem("x/1", "2 + 2?", "4", "math", "x", system="of its own")
    assert contents(ask_by("boxed")(problem))[0] == ("system", "of its own")
    assert contents(ask_by({"system": "{{ system }} And more."})(problem))[0] == ("system", "of its own And more.")
    assert [role for role, _ in contents(ask_by({"system": ""})(problem))] == ["user"]


def test_thinking_settings_become_the_budget() -> None:
    thinking = ThinkingSettings(budget=100, least=20, extension="\nHm", extensions=2)
    assert thinking.thinking_budget() == ThinkingBudget(100, 20, "\n</think>\n\n", "\nHm", 2)


# Exemplars.


def test_exemplars_from_a_file_never_include_the_problem_itself(tmp_path: Path) -> None:
    """Even if it differs by an added instruction, spaces or letter case."""
    file = tmp_path / "shots.jsonl"
    questions = ["What is 2 + 2?", "What is 3 + 3?", "What is 4 + 4?"]
    file.write_text(
        "\n".join(json.dumps({"q": q, "a": f"<think>\nhm\n</think>\n\n{i}"}) for i, q in enumerate(questions))
    )
    ask = ask_by({"examples": {"file": str(file), "prompt": "q", "answer": "a", "count": 2}})
    other = Problem("x/9", "What is 9 + 9?", "18", "math", "x")
    assert [said for role, said in contents(ask(other)) if role == "user"] == [*questions[:2], other.prompt]
    assert contents(ask(other))[1] == ("assistant", "<think>\nhm\n</think>\n\n0")
    same = Problem("x/1", "what is  2 + 2?\n\nAnswer with a number.", "4", "math", "x")
    assert [said for role, said in contents(ask(same)) if role == "user"] == [*questions[1:], same.prompt]


def test_an_unusable_exemplar_is_named(tmp_path: Path) -> None:
    file = tmp_path / "shots.jsonl"
    file.write_text('{"prompt": "1?", "answer": "1"}\n{"prompt": "2?", "answer": "<think>\\nand"}\n')
    with pytest.raises(InputError, match=r"shots\.jsonl:2: an example needs an answer"):
        ask_by({"examples": {"file": str(file)}})
    file.write_text('{"prompt": "1?", "answer": "1"}\n')
    with pytest.raises(InputError, match=r"prompting\.examples: 2 asked for, but there are only 1"):
        ask_by({"examples": {"file": str(file), "count": 2}})
    with pytest.raises(InputError, match=r"shots\.jsonl:1: has no column 'q'"):
        ask_by({"examples": {"file": str(file), "prompt": "q"}})


def test_an_exemplar_never_shares_the_problem_s_structure() -> None:
    training = [Problem(f"x/{i}", f"f({i})?", str(i), "math", "x", structure="fg"[i > 1]) for i in range(4)]
    ask = ask_by({"examples": {"count": 1, "answer": "= {{ reference }}"}}, training)
    assert contents(ask(training[0]))[:2] == [("user", "f(2)?"), ("assistant", "= 2")]


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30)
problems = st.builds(
    Problem,
    id=st.just("x/1"), prompt=texts, reference=texts, verifier=st.just("math"), source=texts,
    system=st.none() | texts, difficulty=st.none() | st.integers(0, 9), metadata=st.dictionaries(texts, texts, max_size=2),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(training=st.lists(problems, min_size=2, max_size=6), problem=problems)
def test_a_request_is_a_function_of_the_problem_alone(training: list[Problem], problem: Problem) -> None:
    prompting = {
        "template": "{{ source }}: {{ prompt }} {{ metadata }}",
        "examples": {"count": 2},
        "prefill": "{% if difficulty is defined %}<think>\nLevel {{ difficulty }}{% endif %}",
    }
    ask, again = ask_by(prompting, training), ask_by(prompting, training)
    first = ask(problem)
    assert [ask(other) for other in training] == [again(other) for other in reversed(training)][::-1]
    assert ask(problem) == again(problem) == first
    shown = contents(first)[-1][1]
    assert shown == f"{problem.source}: {problem.prompt} {dict(problem.metadata)}"  # letter for letter, no escaping
    fit = [t for t in training if " ".join(t.prompt.casefold().split()) != " ".join(problem.prompt.casefold().split())]
    asked = [said for role, said in contents(first)[:-1] if role == "user"]
    assert len(asked) <= 2
    assert set(asked) <= {f"{t.source}: {t.prompt} {dict(t.metadata)}" for t in fit}


# What the model saw.

FEW_SHOTS = """\
name: small
stages:
  problems: {sources: [{family: calc, train: 4}]}
  generate:
    problems: problems
    teacher: "embedded:teacher"
    engine: {kind: transformers, workers: 1}
    sampling: {max_tokens: 24}
    prompting: {system: "From {{ source }}.", template: boxed, examples: {count: 1, answer: "So {{ reference }}."}}
"""


def test_the_stored_prompt_is_the_one_the_model_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the embedded teacher: the stored prompt equals the input token for token, and plan knew the keys."""
    from transformers import AutoTokenizer

    (tmp_path / "p.yaml").write_text(FEW_SHOTS)
    monkeypatch.chdir(tmp_path)
    spec = config.load(Path("p.yaml"), catalog.stage)
    workspace = Workspace(spec.workspace)
    runner.run(spec, workspace, Listener(), lambda: False, ["problems"])
    assert [foreseen(spec, workspace, samples) for samples in (1, 2)] == [(4, 0), (8, 0)]
    runner.run(spec, workspace, Listener(), lambda: False)
    assert foreseen(spec, workspace, 2) == (8, 4)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "teacher")
    rows = Store(workspace.path).rows(
        "SELECT t.trace_key, t.prompt, t.prompt_ids, p.prompt AS asked FROM traces t JOIN prompts p USING (prompt_key)"
    )
    assert len(rows) == 4
    for row in rows:
        assert tokenizer.decode(row["prompt_ids"]) == row["prompt"]
        assert row["prompt"].count("put your final answer within \\boxed{}") == 2
        assert row["prompt"].count(row["asked"]) == 1
        assert "From calc." in row["prompt"] and "So " in row["prompt"]
    traces.show(rows[0]["trace_key"], Path("p.yaml"), None, False)
    assert rows[0]["prompt"] in capsys.readouterr().out


def foreseen(spec: config.PipelineSpec, workspace: Workspace, samples: int) -> tuple[int | None, int]:
    """(all traces, those that exist) in the forecast of `plan` for ``generate`` with so many samples."""
    spec = config.load(spec.file, catalog.stage, overrides=[f"generate.samples={samples}"])
    (found,) = [item for item in plan(spec, workspace) if item.spec.name == "generate"]
    assert found.forecast
    return found.forecast.total, found.forecast.done
