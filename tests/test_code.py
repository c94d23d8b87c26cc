"""The `code` verifier: every form of tests, which outputs count as equal, where evidence is weak, and real data."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.types import Outcome, Problem, Verdict
from distill.verifiers import VerifierPool, build, judge, sandbox
from distill.verifiers.cases import cases_of_asserts, cases_of_check, same_text
from distill.verifiers.sandbox.inside.data import decode, encode

DATA = next((p / "shared" / "data" for p in Path(__file__).parents if (p / "shared" / "data").is_dir()), Path("shared"))
ADD = {"entry_point": "add", "cases": [{"args": [2, 3], "expected": 5}, {"args": [-1, 1], "expected": 0}]}
HONEST = "def add(a, b):\n    return a + b\n"
FAULTS = sandbox.survey()
needs_sandbox = pytest.mark.skipif(all(FAULTS.values()), reason=str(FAULTS))


def verify(reference: object, code: str, metadata: dict[str, Any] | None = None, **options: object) -> Verdict:
    problem = Problem("p", "?", json.dumps(reference), "code", "test", metadata=metadata or {})
    return judge(build({"code": options}), problem, f"```python\n{code}\n```")


SUM = "print(sum(map(int, input().split())))"
METHOD = "class Solution:\n    def add(self, a: List[int], b: int) -> List[int]:\n        return [x + b for x in a]"
FUNCTIONAL = [{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]
PACKED = base64.b64encode(zlib.compress(pickle.dumps(json.dumps([{"input": "4 5", "output": "9"}])))).decode()
ROW = {"public_test_cases": '[{"input": "2 3", "output": "5", "testtype": "stdin"}]', "private_test_cases": PACKED}
HELPER = "def twice(x):\n    return 2 * x\n\ndef add(a, b):\n    '''Add.'''\n"
CHECK = "def check(candidate):\n    for i in range(9):\n        assert candidate(i, i) == twice(i)\n"
STACK = """
class Empty(LookupError): pass
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self):
        if not self.items: raise Empty('nothing')
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __eq__(self, other): return self.items == other.items
"""
TEST_FILE = """
import pytest
import unittest
from solution import Empty, Stack

@pytest.fixture
def stack():
    made = Stack()
    made.push([1])
    return made

@pytest.mark.parametrize("x", [1, "a", None])
def test_push(stack, x):
    stack.push(x)
    assert len(stack) == 2 and stack.pop() == x and isinstance(stack, Stack)

class Case(unittest.TestCase):
    def test_empty(self):
        with self.assertRaises(LookupError):
            Stack().pop()
        with pytest.raises(Empty, match="nothing"):
            Stack().pop()
"""

FORMS: list[tuple[str, object, str, str, str]] = [
    ("cases", ADD, HONEST, "a + b|a - b", "strong"),
    ("MBPP", {"asserts": ["assert add(1, 2) == 3", "assert add(b=1, a=1) == 2"]}, HONEST, "a + b|a - b", "strong"),
    ("MBPP as published", {"test_list": ["assert add(1, 2) == 3"], "test_setup_code": ""}, HONEST, "a + b|3.5", "strong"),
    ("asserts that compute", {"asserts": ["assert add(1, 2) == sum([1, 2])"]}, HONEST, "a + b|a - b", "strong"),
    ("HumanEval", {"entry_point": "add", "prompt": HELPER, "test": CHECK}, HONEST, "a + b|a - b", "strong"),
    ("texts", {"stdio": [{"input": "2 3\n", "output": "5"}]}, SUM, "sum|max", "strong"),
    ("APPS texts", {"inputs": ["2 3\n", ["4 5"]], "outputs": ["5\n", ["9"]]}, SUM, "sum|max", "strong"),
    ("APPS function", {"inputs": [[[1, 2], 3]], "outputs": [[[4, 5]]], "fn_name": "add"}, METHOD, "x + b|x", "strong"),
    ("LiveCodeBench texts", ROW, SUM, "sum|max", "strong"),
    ("LiveCodeBench function", {"tests": FUNCTIONAL, "fn_name": "add"}, METHOD, "x + b|x", "strong"),
    ("pytest", {"pytest": TEST_FILE}, STACK, "self.items.pop()|0", "strong"),
    ("pytest beside", {"pytest": TEST_FILE, "beside": True}, STACK, "self.items.pop()|0", "weak"),
    ("changed in place", {"asserts": ["x = [2, 1]\nadd(x)\nassert x == [1, 2]"]}, "def add(x): x.sort()", "sort|copy", "strong"),
    ("a generator", {"asserts": ["assert list(add(3)) == [0, 1, 2][:]"]}, "def add(n): yield from range(n)", "(n)|(1)", "strong"),
    ("functions handed over", {"asserts": ["assert add(lambda x: x + 1) == 2"]}, "def add(f): return f(1)", "(1)|(2)", "weak"),
    ("functions handed over in a test file", {"pytest": "from solution import add\ndef test(): assert add(lambda x: x + 1) == 2"}, "def add(f): return f(1)", "(1)|(2)", "weak"),
    ("a patched answer", {"asserts": ["import inspect\nassert inspect.getsource and add(1) == 1"]}, "def add(x): return x", "n x|n 2", "weak"),
    ("objects compared", {"asserts": ["assert Stack() == Stack() and len(Stack()) == 0"]}, STACK, "len(self.items)|1", "weak"),
]  # fmt: skip


@needs_sandbox
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0])
def test_every_form_of_tests_accepts_the_right_program_and_rejects_a_wrong_one(
    form: tuple[str, object, str, str, str],
) -> None:
    _, reference, code, spoil, level = form
    right, wrong = verify(reference, code), verify(reference, code.replace(*spoil.split("|")))
    assert (right.outcome, right.evidence["level"]) == (Outcome.CORRECT, level), right
    assert wrong.outcome is Outcome.INCORRECT and wrong.score == 0.0, wrong
    assert right.evidence["passed"] == right.evidence["cases"] > 0
    assert right.evidence["sandbox"] in sandbox.BACKENDS and right.evidence["usage"]["memory_kib"] > 0


@needs_sandbox
def test_the_problem_may_name_the_function() -> None:
    assert verify(FUNCTIONAL, METHOD, {"fn_name": "add"}).outcome is Outcome.CORRECT
    unnamed = verify(FUNCTIONAL, METHOD)
    assert unnamed.outcome is Outcome.UNVERIFIABLE and "fn_name" in unnamed.reason


@pytest.mark.parametrize(
    "reference",
    ["", "[]", "{}", '{"entry_point": "f", "cases": []}', '{"asserts": ["x ("]}', "[" * 10**5, '{"pytest": "", "module": "a b"}',
     '{"inputs": ["1"], "outputs": []}', '{"private_test_cases": "AAAA"}', '{"pytest": "def ("}', "null",
     json.dumps({"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Path("x")))).decode()})],
)  # fmt: skip
def test_a_reference_without_tests_is_unverifiable(reference: str) -> None:
    problem = Problem("p", "?", reference, "code", "test")
    assert judge(build("code"), problem, HONEST).outcome is Outcome.UNVERIFIABLE


@needs_sandbox
@pytest.mark.parametrize(
    "reference",
    [
        {"asserts": ["import no_such_package\nassert sum([add(1, 1)]) == 2"]},
        {"asserts": ["add(1, 1)\nwhile True: pass"]},
        {"pytest": "import solution\n"},
    ],
)
def test_a_test_that_fails_by_itself_is_unverifiable(reference: object) -> None:
    assert verify(reference, HONEST, cpu_seconds=1).outcome is Outcome.UNVERIFIABLE


@needs_sandbox
def test_partial_scores_are_shares_and_the_outcome_stays_all_or_nothing() -> None:
    texts = {"stdio": [{"input": str(n), "output": str(min(n, 2))} for n in (1, 2, 3, 2)]}
    whole, share = verify(texts, "print(input())"), verify(texts, "print(input())", partial=True)
    assert (whole.outcome, whole.score, len(whole.evidence["results"])) == (Outcome.INCORRECT, 0.0, 3)
    assert (share.outcome, share.score, len(share.evidence["results"])) == (Outcome.INCORRECT, 0.75, 4)
    assert share.evidence["failed"] == 2 and share.reason == "case 3: a different output"
    assert verify(ADD, "def add(a, b): return 5", partial=True).score == 0.5
    assert verify(ADD, "def add(a, b) return", partial=True).score == 0.0
    script = {"asserts": ["assert add(1, 1) == sum([2])", "assert add(2, 2) == sum([4])"]}
    assert verify(script, "def add(a, b): return 4", partial=True).score == 0.5


@needs_sandbox
def test_the_evidence_is_bounded_and_shows_the_first_failure() -> None:
    cases = [{"args": [n, 0], "expected": n if n < 150 else -1} for n in range(200)]
    verdict = verify({"entry_point": "add", "cases": cases}, HONEST, partial=True)
    assert len(verdict.evidence["results"]) == 20 and len(json.dumps(verdict.evidence)) < 3000
    assert verdict.evidence["results"][-1] == ["case 151", "a different value"] and verdict.score == 0.75


@needs_sandbox
def test_floats_match_within_a_tolerance_only_if_one_is_set() -> None:
    third = {"stdio": [{"input": "", "output": "0.333333 yes"}]}
    assert verify(third, "print(1/3, 'yes')").outcome is Outcome.INCORRECT
    assert verify(third, "print(1/3, 'yes')", tolerance=1e-5).outcome is Outcome.CORRECT
    assert verify(third | {"tolerance": 1e-5}, "print(1/3, 'yes')").outcome is Outcome.CORRECT
    assert verify(third, "print('nan yes')", tolerance=1e-5).outcome is Outcome.INCORRECT
    nested = {"entry_point": "f", "cases": [{"args": [], "expected": {"a": [0.333333]}}]}
    assert verify(nested, "def f(): return {'a': [1/3]}", tolerance=1e-5).outcome is Outcome.CORRECT


@needs_sandbox
@pytest.mark.parametrize(
    ("given", "code", "output"),
    [
        (
            "3",
            "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(30000))",
            "30000",
        ),
        ("", "import threading\nthreading.Thread(target=lambda: print('late')).start()", "late"),
        ("", "import atexit\natexit.register(print, 'bye')", "bye"),
        ("", "import sys\nprint('x')\nsys.exit(0)", "x"),
        ("", "print(len(str(10**10000)))", "10001"),
        ("a\nb", "import sys\nfor line in sys.stdin: print(line.strip().upper())", "A\nB"),
        ("a\nb", "print(len(open(0).read()))", "3"),
        ("é", "print(input())", "é"),
        ("", "if __name__ == '__main__': print(1)", "1"),
        ("", "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 1\nprint(A())", "A(x=1)"),
    ],
)
def test_whole_programs_run_as_in_the_interpreter(given: str, code: str, output: str) -> None:
    verdict = verify({"stdio": [{"input": given, "output": output}]}, code)
    assert verdict.outcome is Outcome.CORRECT, verdict


@needs_sandbox
def test_a_program_that_ends_with_an_error_is_incorrect_whatever_it_printed() -> None:
    for code in (
        "print(5)\nraise ValueError('no')",
        "import sys\nprint(5)\nsys.exit(3)",
        "import sys\nprint(5)\nsys.exit('x')",
    ):
        verdict = verify({"stdio": [{"input": "", "output": "5"}]}, code)
        assert verdict.outcome is Outcome.INCORRECT, verdict
    assert "ValueError: no" in verify({"stdio": [{"input": "", "output": "5"}]}, "raise ValueError('no')").reason


def test_asserts_become_data() -> None:
    test = "def check(candidate):\n    assert candidate([1], k=2) == (3,)\n    assert abs(candidate(1) - 0.5) < 1e-6\n"
    cases, whole = cases_of_check(test + "    assert not candidate('')\n    assert True\n")
    assert whole and [(c.arguments, c.named, c.expected, c.tolerance, c.truth) for c in cases] == [
        ([[1]], {"k": 2}, (3,), None, None),
        ([1], {}, 0.5, 1e-6, None),
        ([""], {}, None, None, False),
    ]
    name, cases, whole = cases_of_asserts(["assert f(1) == g(2)", "assert set(f(1)) == {1}"])
    assert name == "f" and not cases and not whole


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)


def typed(value: Any) -> Any:
    """A value with the types of all its parts, which == alone does not compare."""
    if isinstance(value, list | tuple):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return type(value), [(typed(k), typed(v)) for k, v in value.items()]
    return type(value), value


@settings(max_examples=50, deadline=None)
@given(PLAIN)
def test_plain_data_crosses_the_sandbox_border_unchanged(value: Any) -> None:
    assert typed(decode(json.loads(json.dumps(encode(value))))) == typed(value)


@given(st.lists(st.lists(st.text("abc1.", min_size=1, max_size=5), min_size=1, max_size=4), min_size=1, max_size=4))
def test_spacing_does_not_count_in_texts_but_words_do(lines: list[list[str]]) -> None:
    plain = "\n".join(" ".join(words) for words in lines)
    spaced = "\r\n".join("  " + "\t ".join(words) + " " for words in lines) + "\n\n"
    assert same_text(spaced, plain) and same_text(plain, spaced)
    assert not same_text(plain + " x", plain) and not same_text(plain + "\nx", plain)


@needs_sandbox
def test_humaneval_solutions_are_correct_with_strong_evidence_and_others_are_not() -> None:
    path = DATA / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip("HumanEval is not here")
    rows = [json.loads(text) for text in gzip.decompress(path.read_bytes()).decode().splitlines()]
    items = []
    for index, row in enumerate(rows):
        problem = Problem(row["task_id"], row["prompt"], json.dumps(row), "code", "humaneval")
        items.append(((index, "own"), "code", problem, row["canonical_solution"]))
        items.append(((index, "shifted"), "code", problem, rows[index - 1]["canonical_solution"]))
    with VerifierPool(workers=2) as pool:
        verdicts = dict(pool.verify_many(items))
    for (_, whose), verdict in verdicts.items():
        assert verdict.outcome is (Outcome.CORRECT if whose == "own" else Outcome.INCORRECT), verdict
        assert verdict.evidence["level"] == "strong"


CHECKED = {
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(5) == 6\n",
}
CHECKED |= {"prompt": 'def f(x):\n    """One more."""\n'}


@needs_sandbox
@pytest.mark.parametrize(
    "answer",
    [
        "```python\nf = lambda x: x + 1\n```",
        "```python\nf: object = lambda x: x + 1\n```",
        "```python\ndef f (x):\n    return x + 1\n```",
        "```python\r\ndef f(x):\r\n    return x + 1\r\n```",
        "```python title=a.py\ndef f(x):\n    return x + 1\n```",
        "~~~python\ndef f(x):\n    return x + 1\n~~~",
        "1. So:\n\n   ```python\n   def f(x):\n       return x + 1\n   ```",
        "```bash\npip install nothing\n```\nThen\n```python\ndef f(x):\n    return x + 1\n```\nIt prints\n```\n2\n```",
        '```python\ndef f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return x + 1\n```',
        "```python\ndef f(x):\n    return x + 1",
    ],
)
def test_a_program_is_found_however_it_is_fenced_and_written(answer: str) -> None:
    verdict = judge(build("code"), json.dumps(CHECKED), answer)
    assert verdict.outcome is Outcome.CORRECT, verdict


@needs_sandbox
def test_an_answer_without_its_beginning_is_told_from_one_that_is_wrong() -> None:
    """An answer that continues its prompt defines no function if the reference lacks that prompt."""
    body = "    return x + 1"
    assert judge(build("code"), json.dumps(CHECKED), body).outcome is Outcome.CORRECT
    lacking = {key: value for key, value in CHECKED.items() if key != "prompt"}
    verdict = judge(build("code"), json.dumps(lacking), body)
    assert verdict.outcome is Outcome.INCORRECT
    assert "it defines no f: an answer that continues the code of its prompt needs that code" in verdict.reason
    assert "it defines no" not in judge(build("code"), json.dumps(lacking), "def f(x):\n    return x").reason


ONCE = "from solution import f\ndef test_a(): pass\ndef test_b(): assert f(1) == 3\n"
CAUGHT = "import pytest\nfrom solution import f\ndef test_a():\n    with pytest.raises(Exception):\n        f(1)\n"


@needs_sandbox
@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ({"pytest": ONCE}, "def f(x): raise KeyboardInterrupt"),
        ({"pytest": CAUGHT}, "import os\ndef f(x): os._exit(0)"),
        ({"asserts": ["for i in map(f, range(3)): assert i > 9"]}, "def f(x): raise StopIteration"),
        ({"asserts": ["assert all(map(f, range(3)))"]}, "def f(x): raise StopIteration"),
        ({"asserts": ["assert f(1) is True"]}, "def f(x): return 1"),
        (
            {"asserts": ["assert math.isclose(f(1), 2.0)"]},
            "class math:\n    isclose = staticmethod(lambda a, b: True)\ndef f(x): return 5.0",
        ),
        ({"asserts": ["for i in (1, 2): assert f(i) == i"]}, "import nowhere\ndef f(x): return x"),
        ({"pytest": "from solution import f\ndef test_a(): assert f(1) == 1\n"}, "def f(x): raise KeyboardInterrupt"),
        (
            {"pytest": "from solution import f\ndef test_a(): assert f(1) == 1\n", "beside": True},
            "def f(x): raise KeyboardInterrupt",
        ),
        ({"asserts": ["y = f(1)", "assert y == 1"]}, "def f(x):\n    import nowhere\n    return x"),
    ],
)
def test_an_answer_does_not_pass_by_ending_its_test_or_replacing_what_it_uses(
    reference: dict[str, object], code: str
) -> None:
    verdict = verify(reference, code)
    assert verdict.outcome is Outcome.INCORRECT, verdict


@needs_sandbox
def test_a_test_that_compares_with_a_function_of_the_answer_is_weak_evidence() -> None:
    code = "def f(x): return 5.0\ndef close(a, b): return True"
    assert verify({"asserts": ["assert close(f(1), 2.0)"]}, code).evidence["level"] == "weak"


SORTED = "r = f([3, 1])\nr.sort(key=lambda x: -x)\nassert r[0] == 99"
FAKE = """
class Fake:
    def __init__(self): self.items = [1]
    def sort(self, key=None): pass
    def visit(self, step): pass
    def __getitem__(self, at): return 1
def f(x): return Fake()
def apply(step, x): return step(x)
"""


@needs_sandbox
@pytest.mark.parametrize(
    ("test", "code", "outcome", "level"),
    [
        (SORTED, FAKE, Outcome.INCORRECT, "strong"),
        (SORTED.replace("99", "3"), "def f(x): return list(x)", Outcome.CORRECT, "strong"),
        ("r = f(1)\ntry:\n    r.sort(key=abs)\nexcept Exception: pass\nassert True", FAKE, Outcome.INCORRECT, "strong"),
        ("f(1).visit(print)", FAKE, Outcome.UNVERIFIABLE, "strong"),
        ("assert f(1)[0] == 2\nf(1).visit(print)", FAKE, Outcome.INCORRECT, "strong"),
        ("r = Fake()\nr.items.sort(key=abs)\nassert r.items == [1]", FAKE, Outcome.CORRECT, "strong"),
        ("r = Fake()\nr.visit(abs)\nassert r.items == [1]", FAKE, Outcome.CORRECT, "weak"),
        ("assert apply(abs, -3) == 3", FAKE, Outcome.CORRECT, "weak"),
    ],
)
def test_an_answer_cannot_pull_its_test_into_its_own_process(
    test: str, code: str, outcome: Outcome, level: str
) -> None:
    """There it could write its own result rows. What the test passes to objects that it names itself is its own choice."""
    verdict = verify({"asserts": [test]}, code)
    assert (verdict.outcome, verdict.evidence["level"]) == (outcome, level), verdict


@needs_sandbox
def test_a_missing_module_is_explained_by_only_the_standard_library_being_there() -> None:
    said = "No module named 'numpy' (only the standard library is there)"
    assert said in verify(ADD, "import numpy\n" + HONEST).reason
    assert said in verify({"asserts": ["for i in (1,): assert add(i, i)"]}, "import numpy\n" + HONEST).reason


@needs_sandbox
def test_an_object_that_an_answer_returns_is_sliced_in_its_own_process() -> None:
    """It must not move the test into the process of the answer, which could then write its own result rows."""
    code = "class Row:\n    def __getitem__(self, at): return [1, 2]\ndef f(x): return Row()"
    verdict = verify({"asserts": ["assert f(3)[:2] == [1, 2]"]}, code)
    assert (verdict.outcome, verdict.evidence["level"]) == (Outcome.CORRECT, "strong")


@needs_sandbox
def test_tests_under_a_wrong_key_of_the_reference_are_explained() -> None:
    """The reason names the keys found instead of tests. A bare list of asserts is accepted as tests."""
    code = build("code")
    answer = "```python\ndef double(x):\n    return 2 * x\n```"
    wrong = judge(code, json.dumps({"tets": "assert double(1) == 2", "entry_point": "double"}), answer)
    assert wrong.outcome is Outcome.UNVERIFIABLE and "'tets'" in wrong.reason and "test_list" in wrong.reason
    text = judge(code, json.dumps({"tests": "def check(candidate): ...", "entry_point": "double"}), answer)
    assert text.outcome is Outcome.UNVERIFIABLE and "goes by the key test" in text.reason
    assert judge(code, json.dumps(["assert double(2) == 4"]), answer).outcome is Outcome.CORRECT
