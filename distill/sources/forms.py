r"""Forms: named column mappings for well-known datasets (``form: gsm8k``).

A form is a set of defaults for the settings of a source of problems or of the import stage. Settings written beside it
override it, ``null`` included, and a stage's fingerprint covers the settings that result. Columns, licences and roles
are recorded as published; tests check those of GSM8K, MATH-500 and HumanEval against the real files. A row that lacks
its columns is reported with file and line. A form describes the shape of rows, whether they come from a file, a
directory or the hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from pipeline.mistakes import nearest

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
FUNCTION = "Think first. Then complete the function, and write all of it in one ```python block."
PROGRAM = "Think first. Then write the whole program in one ```python block."
LETTER = "Think first. Then give the letter of the right answer as \\boxed{letter}."
SKY_TAGS = ["<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>"]

Defaults = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Form:
    about: str
    settings: Defaults


def _maths(about: str, licence: str, **settings: Any) -> Form:
    return Form(about, {"verifier": "math", "instruction": BOXED, "licence": licence, **settings})


def _code(about: str, licence: str, **settings: Any) -> Form:
    return Form(about, {"verifier": "code", "licence": licence, **settings})


CONTEST = {
    "prompt": "{{ question }}{% if starter_code %}\n\n```python\n{{ starter_code }}\n```{% endif %}",
    "reference": "input_output",
    "instruction": PROGRAM,
}

PROBLEMS: dict[str, Form] = {
    "gsm8k": _maths(
        "grade-school maths: question, answer with the result after ####",
        "MIT", prompt="question", reference="answer", reference_pattern="#### (.+)",
    ),
    "math": _maths(
        "MATH (Hendrycks): problem, solution with the answer in its last box, level",
        "MIT", prompt="problem", reference="{{ solution | boxed }}", difficulty="{{ level | number }}",
    ),
    "math500": _maths(
        "MATH-500: problem, answer, level", "MIT", prompt="problem", reference="answer", difficulty="level",
    ),
    "humaneval": _code(
        "HumanEval: prompt, entry_point, test", "MIT", prompt="prompt", instruction=FUNCTION, source="humaneval",
        reference={"prompt": "prompt", "entry_point": "entry_point", "test": "test"},
    ),
    "mbpp": _code(
        "MBPP as published: text, test_list, test_setup_code; the tests are shown, for they name the function",
        "CC-BY-4.0", prompt="{{ text }}\n\nYour code should pass these tests:\n\n{{ test_list | join('\n') }}",
        instruction=PROGRAM, source="mbpp",
        reference={"test_list": "test_list", "test_setup_code": "test_setup_code"},
    ),
    "mbpp-sanitized": _code(
        "MBPP, the sanitized half: prompt, test_list, test_imports",
        "CC-BY-4.0", prompt="{{ prompt }}\n\nYour code should pass these tests:\n\n{{ test_list | join('\n') }}",
        instruction=PROGRAM, source="mbpp", reference={"test_list": "test_list", "test_imports": "test_imports"},
    ),
    "apps": _code("APPS: question, input_output, starter_code", "MIT", **CONTEST, source="apps"),
    "taco": _code("TACO: as APPS", "Apache-2.0", **CONTEST, source="taco"),
    "livecodebench": _code(
        "LiveCodeBench: question_content, starter_code, public and private test cases",
        "unknown", source="livecodebench", instruction=PROGRAM,
        prompt="{{ question_content }}{% if starter_code %}\n\n```python\n{{ starter_code }}\n```{% endif %}",
        reference={name: name for name in ("public_test_cases", "private_test_cases", "metadata")},
    ),
    "mmlu": Form(
        "MMLU: question, choices, answer as a place among them",
        {
            "prompt": "{{ question }}\n{% for choice in choices %}\n"
            "{{ loop.index0 | letter }}. {{ choice }}{% endfor %}",
            "reference": "{{ answer | letter }}", "verifier": "choice", "instruction": LETTER, "licence": "MIT",
        },
    ),
    "arc": Form(
        "ARC: question, choices with text and label, answerKey (where labels are letters)",
        {
            "prompt": "{{ question }}\n{% for label in choices.label %}\n"
            "{{ label }}. {{ choices.text[loop.index0] }}{% endfor %}",
            "reference": "answerKey", "verifier": "choice", "instruction": LETTER, "licence": "CC-BY-SA-4.0",
        },
    ),
}  # fmt: skip

TRACES: dict[str, Form] = {
    "distill": Form(
        "what `distill traces export` writes; source, licence and verifier are one for the whole file",
        {"messages": "messages", "reference": "reference", "difficulty": "difficulty", "finish": "finish"},
    ),
    "messages": Form(
        "conversations of role and content, the thinking in <think> tags", {"messages": "messages"},
    ),
    "sharegpt": Form(
        "conversations of from and value, the thinking in <think> tags", {"messages": "conversations"},
    ),
    "deepseek": Form(
        "prompt, reasoning_content and content, as DeepSeek's API answers",
        {"prompt": "prompt", "thinking": "reasoning_content", "answer": "content"},
    ),
    "openr1-math": Form(
        "OpenR1-Math-220k: problem, all its generations, what math-verify said of each, the reference in answer",
        {
            "prompt": "problem", "generations": "generations", "flags": "correctness_math_verify",
            "reference": "answer", "teacher": "DeepSeek-R1", "licence": "Apache-2.0",
        },
    ),
    "openr1-math-chosen": Form(
        "OpenR1-Math-220k: the one generation of each row that is in messages, and the reference in answer",
        {"messages": "messages", "reference": "answer", "teacher": "DeepSeek-R1", "licence": "Apache-2.0"},
    ),
    "openthoughts": Form(
        "OpenThoughts-114k: conversations with begin_of_thought tags",
        {"messages": "conversations", "tags": SKY_TAGS, "teacher": "DeepSeek-R1", "licence": "Apache-2.0"},
    ),
    "bespoke-stratos": Form(
        "Bespoke-Stratos-17k: conversations with begin_of_thought tags",
        {"messages": "conversations", "tags": SKY_TAGS, "teacher": "DeepSeek-R1", "licence": "Apache-2.0"},
    ),
    "openthoughts3": Form(
        "OpenThoughts3-1.2M: conversations with <think> tags",
        {"messages": "conversations", "teacher": "QwQ-32B", "licence": "Apache-2.0"},
    ),
    "s1k": Form(
        "s1K: question, thinking_trajectories, attempt; solution as reference",
        {
            "prompt": "question", "thinking": "{{ thinking_trajectories | join('\n\n') }}", "answer": "attempt",
            "reference": "solution", "teacher": "gemini-2.0-flash-thinking", "licence": "Apache-2.0",
        },
    ),
    "s1k-1.1": Form(
        "s1K-1.1: question, deepseek_thinking_trajectory, deepseek_attempt; solution as reference",
        {
            "prompt": "question", "thinking": "deepseek_thinking_trajectory", "answer": "deepseek_attempt",
            "reference": "solution", "teacher": "DeepSeek-R1", "licence": "MIT",
        },
    ),
    "r1-math": Form(
        "R1 traces on MATH as rasbt keeps them: problem, message_thinking, message_content, gtruth_answer",
        {
            "prompt": "problem", "thinking": "message_thinking", "answer": "message_content",
            "reference": "gtruth_answer", "teacher": "DeepSeek-R1", "licence": "Apache-2.0",
        },
    ),
}  # fmt: skip

TABLES = {"problems": PROBLEMS, "import": TRACES}


def fill(kind: str, data: Any) -> Any:
    """The settings as written, completed by their form. An unknown form is left to its own field, which reports it."""
    form = data.get("form") if isinstance(data, dict) else None
    found = TABLES[kind].get(form) if isinstance(form, str) else None
    return {**found.settings, **data} if found else data


def _check_name(kind: str, name: str) -> str:
    if name not in TABLES[kind]:
        other = next((k for k, table in TABLES.items() if name in table), None)
        hint = f"; {name!r} is a form of {other}" if other else nearest(name, TABLES[kind])
        raise ValueError(f"no form of {kind} is called {name!r}{hint}")
    return name


def _of(kind: str) -> AfterValidator:
    return AfterValidator(lambda name: _check_name(kind, name))


ProblemForm = Annotated[str, _of("problems")]
TraceForm = Annotated[str, _of("import")]
