"""Process reward models: labels of every source, the head and the measures against plain arithmetic, files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import golden_prm  # noqa: E402
from tiny import chat_tokenizer, multimodal, reward_model, tiny  # noqa: E402

from distill.families.base import labels as family_labels  # noqa: E402
from distill.families.calc import Calc  # noqa: E402
from distill.families.code import Code  # noqa: E402
from distill.families.logic import Logic  # noqa: E402
from distill.prm import exact, files, groups, head, imported, measures, rollouts  # noqa: E402
from distill.prm.examples import StepExample, encode, example_of, unlabelled  # noqa: E402
from distill.prm.labels import Labelled, noisy, of_steps  # noqa: E402
from distill.prm.measures import Scored  # noqa: E402
from distill.prm.reading import PrmScorer, TooLong, load  # noqa: E402
from distill.randomness import generator  # noqa: E402
from distill.steps import splitter  # noqa: E402
from distill.thinking import CLOSE, OPEN, join_thinking  # noqa: E402
from distill.training.forward import pack  # noqa: E402
from distill.training.loop import TrainSettings, train  # noqa: E402
from distill.training.optimizer import OptimizerSettings  # noqa: E402
from distill.training.student import default_learning_rate  # noqa: E402
from distill.types import Problem  # noqa: E402
from pipeline.errors import InputError, PipelineError, Stopped  # noqa: E402
from pipeline.fingerprint import FileHashes  # noqa: E402

LINES = splitter("line")
FAMILIES = (Calc(), Logic(), Code())
CHAIN = Problem("p", "Compute left to right: 12 + 7 * 3 - 4", "53", "math", "calc")

# ------------------------------------------------------------------ labels of families


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_labels_find_just_the_planted_slips(family: Any) -> None:
    for index in range(40):
        problem = family.generate(0, index, "train")
        careful = family.solve(problem)
        lines = careful.thinking.split("\n")
        assert family_labels(family, problem, lines, careful.answer) == [True] * (len(lines) + 1)
        careless = family.solve(problem, 0.5, generator("slips", index))
        written = careless.thinking.split("\n")
        # computed differently: the line with which a careful author would continue the lines before
        expected = [family.next_line(problem, written[:n]) == line for n, line in enumerate(written)]
        found = family_labels(family, problem, written, careless.answer)
        assert found == [*expected, True] and (False in found) == (written != lines)


def test_one_slip_spoils_one_label_and_a_line_after_nonsense_has_none() -> None:
    assert family_labels(Calc(), CHAIN, ["12 + 7 = 19", "19 * 3 = 58", "58 - 4 = 54"], "54") == [
        True,
        False,
        True,
        True,
    ]
    assert family_labels(Calc(), CHAIN, ["12 + 7 = 19", "hm", "58 - 4 = 54"], "54") == [True, False, None, True]
    assert family_labels(Calc(), CHAIN, ["12 + 7 = 19", "19 * 3 = 57"], "57") == [True, True, False]
    assert family_labels(Calc(), CHAIN, ["12 + 7 = 19", "19 * 3 = 57", "57 - 4 = 53", "53 + 1 = 54"], "53")[3:] == [
        False, False,
    ]  # fmt: skip


def test_tagged_and_cut_responses_are_labelled_as_far_as_they_go() -> None:
    checkers = exact.Checkers()

    def labels(text: str, rule: str = "line") -> Any:
        found = exact.checked(checkers, "k", CHAIN, text, splitter(rule))
        return found and found.labels

    whole = join_thinking("12 + 7 = 19\n19 * 3 = 58\n58 - 4 = 54", "54")
    assert labels(whole) == (1.0, 0.0, 1.0, 1.0)
    assert labels(whole, "paragraph") == (0.0, 1.0)  # a step is only as right as its worst line
    assert labels("<think>\n12 + 7 = 19\n19 * 3") == (1.0, 0.0)
    assert labels(whole + "\nor 55") == (1.0, 0.0, 1.0, 1.0, 0.0)
    assert labels("") is None and exact.checked(checkers, "k", replace(CHAIN, source="mine"), whole, LINES) is None


def test_planted_slips_are_a_pure_function_and_have_wrong_lines() -> None:
    problems = [Calc().generate(0, n, "train") for n in range(20)]
    made = list(exact.planted(exact.Checkers(), problems, LINES, 0.3, 2, seed=1))
    assert made == list(exact.planted(exact.Checkers(), problems, LINES, 0.3, 2, seed=1)) and len(made) == 40
    wrong = sum(label == 0.0 for one in made for label in one.labels)
    assert 0.15 < wrong / sum(len(one.labels) for one in made) < 0.4


def test_noise_flips_its_share_of_labels() -> None:
    one = Labelled("k", CHAIN, "", (1.0, 0.0, None) * 500, "exact")
    turned = noisy(one, 0.2, seed=3)
    changed = sum(a != b for a, b in zip(one.labels, turned.labels, strict=True))
    assert 150 < changed < 250 and turned.labels[2] is None and noisy(one, 0.0, 3) == one


@given(st.lists(st.sampled_from([0.0, 1.0, None]), min_size=1, max_size=6))
def test_line_labels_become_step_labels(labels: list[float | None]) -> None:
    text = "\n".join("abcdef"[: len(labels)])
    marked = [((2 * n, 2 * n + 1), label) for n, label in enumerate(labels)]
    assert of_steps(text, LINES, marked) == tuple(labels)
    whole = of_steps(text.replace("\n", " "), LINES, marked)
    assert whole == (0.0,) if 0.0 in labels else whole == (None if None in labels else 1.0,)


def test_a_wrong_span_over_several_steps_blames_only_the_last() -> None:
    assert of_steps("a\nb\nc", LINES, [((0, 3), 0.0), ((4, 5), 1.0)]) == (None, 0.0, 1.0)


# ------------------------------------------------------------------ roll-outs, groups, files


def test_every_prefix_is_completed_and_the_last_step_has_the_response_s_outcome() -> None:
    asked: list[Any] = []

    def outcomes(prefixes: Any) -> dict[Any, list[bool]]:
        asked.extend(prefixes)
        return {prefix: [True, "b" not in prefix[1]] if "c" not in prefix[1] else [] for prefix in prefixes}

    tried = [rollouts.Tried("k", "p", CHAIN, "<think>\na\nb\nc\nd", False)]
    (soft,) = rollouts.every(tried, LINES, "soft", outcomes)
    assert soft.labels == (1.0, 0.5, None, 0.0) and soft.source == "rollouts"
    assert asked == [("p", "<think>\na\n"), ("p", "<think>\na\nb\n"), ("p", "<think>\na\nb\nc\n")]
    assert rollouts.every(tried, LINES, "hard", outcomes)[0].labels == (1.0, 1.0, None, 0.0)
    asked.clear()  # a prompt that opened the thinking is continued as it was
    rollouts.every([replace(tried[0], prompt="<bot><think>\n")], LINES, "hard", outcomes)
    assert [prefix for _, prefix in asked] == ["a\n", "a\nb\n", "a\nb\nc\n"]


@given(st.integers(1, 12), st.data())
def test_binary_search_finds_the_first_error_with_few_rollouts(steps: int, data: Any) -> None:
    first = data.draw(st.integers(1, steps))
    asked: list[Any] = []

    def outcomes(prefixes: Any) -> dict[Any, list[bool]]:
        asked.extend(prefixes)
        return {prefix: [False, prefix[1].count("\n") < first] for prefix in prefixes}

    response = "\n".join(f"line {n}" for n in range(steps))
    tried = rollouts.Tried("k", "p", CHAIN, response, False)
    right = replace(tried, key="r", response="x\ny", correct=True)
    found, sound = rollouts.first_error([tried, right], LINES, outcomes)
    assert found.labels == (*[1.0] * (first - 1), 0.0, *[None] * (steps - first)) and sound.labels == (1.0, 1.0)
    assert len(asked) <= (steps - 1).bit_length()


def test_steps_whose_rollouts_cannot_be_judged_have_no_label() -> None:
    tried = rollouts.Tried("k", "p", CHAIN, "\n".join("abcdefgh"), False)
    asked: list[int] = []

    def outcomes(prefixes: Any) -> dict[Any, list[bool]]:
        asked.extend(prefix[1].count("\n") for prefix in prefixes)
        return {prefix: [True] if prefix[1].count("\n") <= 4 else [] for prefix in prefixes}

    (found,) = rollouts.first_error([tried], LINES, outcomes)
    assert found.labels == (*[1.0] * 4, *[None] * 4) and asked == [4, 6]


def test_a_shared_beginning_is_labelled_by_the_outcomes_of_its_samples() -> None:
    tree = {
        "1": groups.Member("a\nb\nx", True), "2": groups.Member("a\nb\ny", False), "3": groups.Member("a\nc\nz", False),
    }  # fmt: skip
    assert groups.tree_labels(tree, LINES) == {"1": (1 / 3, 0.5, 1.0), "2": (1 / 3, 0.5, 0.0), "3": (1 / 3, None, 0.0)}
    assert groups.tree_labels(tree, LINES, "hard")["3"] == (1.0, None, 0.0)
    assert groups.tree_labels(tree, LINES, shared=1)["3"] == (1 / 3, 0.0, 0.0)


PRM800K = {
    "question": {"problem": "What is 6 x 7?", "ground_truth_answer": "42"},
    "label": {
        "steps": [
            {"completions": [{"text": "6 x 7 is 6 x 5 + 6 x 2.", "rating": 1}], "chosen_completion": 0},
            {
                "completions": [{"text": "That is 30 + 14.", "rating": -1}, {"text": "That is 30 + 12.", "rating": 0}],
                "chosen_completion": 1,
            },
            {"completions": [{"text": "# Answer\n\n43", "rating": -1}], "chosen_completion": None},
        ],
        "finish_reason": "found_error",
    },
}


def test_labels_in_prm800k_and_stepwise_form_are_read(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    stepwise = {"prompt": "1 + 1?", "completions": ["It is 1 + 1.", "3"], "labels": [True, False]}
    file.write_text(json.dumps(PRM800K) + "\n\n" + json.dumps(stepwise) + "\n")
    other, wrong, plain = imported.read(file, LINES)
    assert other.response == "<think>\n6 x 7 is 6 x 5 + 6 x 2.\nThat is 30 + 14." and other.labels == (1.0, 0.0)
    assert wrong.labels == (1.0, 1.0, None, 0.0)  # the wrong step has two lines; the last one carries the label
    assert wrong.problem.reference == "42"
    assert plain.labels == (1.0, 0.0) and plain.problem.prompt == "1 + 1?"
    assert next(imported.read(file, LINES, thinking=False)).response.startswith("6 x 7")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1: not JSON"),
        ('{"a": 1}', ":1: expected a row of PRM800K"),
        ('{"question": {}, "label": 1}', ":1: question.problem: is missing"),
        ('{"prompt": 5, "completions": ["a"], "labels": [true]}', ":1: prompt: should be a valid string"),
        ('{"prompt": "x", "completions": "ab", "labels": [true, false]}', ":1: completions: should be a valid list"),
        ('{"prompt": "x", "completions": ["a", "b"], "labels": [true]}', ":1: 2 completions have 1 labels"),
        ('{"prompt": "x", "completions": ["a"], "labels": ["yes"]}', ":1: labels.0: should be true, false, null"),
        ('{"prompt": "x", "completions": ["a"], "labels": [7]}', ":1: labels.0: should be true, false, null"),
        (json.dumps(PRM800K).replace('"rating": -1', '"rating": 2'), "rating: should be 1, 0, -1 or null, found 2"),
        (json.dumps(PRM800K).replace(": 0}", ": 3}"), "chosen_completion: 3 of 1 completions"),
    ],
)
def test_an_unreadable_line_is_reported(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        list(imported.read(tmp_path / "bad.jsonl", LINES))
    with pytest.raises(InputError, match="cannot be read"):
        list(imported.read(tmp_path / "none.jsonl", LINES))


# ------------------------------------------------------------------ the head

ASKED = [("<user>sum<end>\n<bot>", "ab\ncd ef\ng"), ("<user>sum<end>\n<bot>", "ab\nd"), ("<user>x<end>\n<bot>", "hij")]


def rows(tokenizer: Any, labels: Any = None) -> list[Any]:
    encoded = [encode(tokenizer, *pair, "line") for pair in ASKED]
    if labels is None:
        return [unlabelled(str(n), one) for n, one in enumerate(encoded)]
    return [example_of(str(n), one, row) for n, (one, row) in enumerate(zip(encoded, labels, strict=True))]


@pytest.mark.parametrize("likelihood", [False, True])
def test_packed_logits_equal_those_of_each_response_alone(likelihood: bool) -> None:
    """Against the model's own unpacked pass: states at the steps' last tokens, and sums of their tokens' logprobs."""
    network, tokenizer = tiny().eval(), chat_tokenizer()
    own = head.attach(network, likelihood)
    with torch.no_grad():
        own.weight.copy_(torch.from_numpy(generator("head").normal(0, 1, 32)))
        found = head.step_logits(network, rows(tokenizer))
        for (prompt, response), logits in zip(ASKED, found, strict=True):
            ids = torch.tensor([tokenizer(prompt + response, add_special_tokens=False)["input_ids"]])
            out = network(ids, output_hidden_states=True)
            hidden, logs = out.hidden_states[-1][0], out.logits[0].log_softmax(-1)
            own_logs = [0.0] + [logs[t - 1, ids[0, t]].item() for t in range(1, ids.shape[1])]
            end = ids.shape[1] - len(response) - 1
            for step, logit in zip(response.split("\n"), logits, strict=True):
                begin, end = end + 1, end + len(step) + ("\n" in response[: end + 2 - (ids.shape[1] - len(response))])
                expected = hidden[end] @ own.weight + own.bias[0]
                expected += sum(own_logs[begin : end + 1]) if likelihood else 0.0
                assert logit.item() == pytest.approx(expected.item(), abs=1e-3)


def test_the_head_computes_in_full_precision_under_autocast() -> None:
    """Autocast would round its product (a logit of 7.25 to sixteenths), and so what the head learns."""
    own = head.StepHead(32, False)
    own.weight.data.copy_(torch.from_numpy(generator("head").normal(0, 1, 32)))
    hidden = torch.from_numpy(generator("states").normal(0, 1, (64, 32))).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = own(hidden, None)
    torch.testing.assert_close(found, hidden @ own.weight + own.bias, atol=1e-5, rtol=0)


@pytest.mark.parametrize("likelihood", [False, True])
def test_an_empty_prompt_leaves_out_the_likelihood_of_the_first_token(likelihood: bool) -> None:
    """No token comes before it that could predict it."""
    network, tokenizer = tiny().eval(), chat_tokenizer()
    head.attach(network, likelihood)
    bare, begun = (unlabelled(prompt, encode(tokenizer, prompt, "ab\nc", "line")) for prompt in ("", "<bot>"))
    found = head.step_logits(network, [bare, begun, bare])
    ids = torch.tensor([bare.input_ids])
    logs = network(ids).logits[0].log_softmax(-1)
    own_logs = [logs[t - 1, ids[0, t]].item() if likelihood else 0.0 for t in range(1, ids.shape[1])]
    expected = [head.PRIOR + own_logs[0], head.PRIOR + sum(own_logs[1:3])]
    assert [len(part) for part in found] == [2, 2, 2]
    for part in (found[0], found[2]):
        assert part.tolist() == pytest.approx(expected, abs=1e-4)


def test_fitness_is_the_log_probability_of_the_labels_that_there_are() -> None:
    network, tokenizer = tiny().eval(), chat_tokenizer()
    head.attach(network, True)
    labelled = rows(tokenizer, [(1.0, None, 0.0), (None, 0.25), (1.0,)])
    logits = torch.cat([part.detach() for part in head.step_logits(network, labelled)])
    p = torch.sigmoid(logits)
    expected = [p[0].log(), (1 - p[2]).log(), 0.25 * p[4].log() + 0.75 * (1 - p[4]).log(), p[5].log()]
    found = head.fitness(network, pack(labelled)).logprobs.tolist()
    assert found == pytest.approx([value.item() for value in expected], abs=1e-5)
    assert [row.supervised for row in labelled] == [2, 1, 1]


def tagged_tokenizer() -> Any:
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens([OPEN, CLOSE])
    return tokenizer


@pytest.mark.parametrize("rule", ["line", "tokens:2"])
@pytest.mark.parametrize("prompt", ["<bot><think>\n", "<bot><think>"])
def test_thinking_opened_by_the_template_is_not_opened_again(rule: str, prompt: str) -> None:
    """A stored response begins with a tag; one sampled after such a template does not. Both are encoded alike."""
    tokenizer = tagged_tokenizer()
    stored, sampled = "<think>\nab\ncd\n</think>\nno", ("" if prompt.endswith("\n") else "\n") + "ab\ncd\n</think>\nno"
    ours = encode(tokenizer, prompt, stored, rule)
    assert ours.ids == (*tokenizer(prompt + sampled, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    assert encode(tokenizer, "<bot>", stored, rule).texts == ours.texts
    if rule == "line":
        assert ours == encode(tokenizer, prompt, sampled, rule)


def test_responses_are_ranked_even_where_their_products_underflow() -> None:
    from distill.prm.training import lessons, measured

    network, tokenizer = tiny(), chat_tokenizer()
    own = head.attach(network, False)
    own.bias.data.fill_(-30.0)  # 1e-13 a step
    responses = {"\n".join("abcdefghijkl"[k % 12] for k in range(steps)): steps == 30 for steps in (30, 40, 60)}
    labelled = [
        Labelled(str(len(text)), CHAIN, text, (1.0,) * len(text.split()), "exact", correct=right)
        for text, right in responses.items()
    ]
    rows, _ = lessons(labelled, tokenizer, "line", lambda one: one.problem.messages, 500)
    assert measured(network, rows, 1000, 0.5, "product")["answer_auc"] == 1.0


def test_labels_by_tokens_match_the_steps_that_are_read() -> None:
    """A slip spoils the step of five tokens in which its line ends, whatever prompt comes before it."""
    from distill.prm.training import lessons

    tokenizer, cut = tagged_tokenizer(), splitter("tokens:5", tagged_tokenizer())
    response = join_thinking("12 + 7 = 19\n19 * 3 = 58\n58 - 4 = 54", "54")
    labelled = exact.checked(exact.Checkers(), "k", CHAIN, response, cut)
    assert labelled and [step.text for step in cut(response)][-1] == "54" and labelled.labels.count(0.0) == 1
    (lesson,), dropped = lessons([labelled], tokenizer, "tokens:5", lambda one: one.problem.messages, 500)
    assert lesson.row.labels == labelled.labels and not dropped


def test_steps_that_end_in_one_token_are_learned_once() -> None:
    tokenizer = chat_tokenizer()
    one = encode(tokenizer, "<bot>", "ab\ncd", "line")
    both = replace(one, ends=(one.ends[1], one.ends[1]))
    assert example_of("k", both, (1.0, 0.0)).labels == (None, 0.0)
    assert example_of("k", both, (1.0, None)) is None


def how(steps: int) -> TrainSettings:
    optimizer = OptimizerSettings(3e-3, own_rates=((head.NAME, 3e-2),))
    return TrainSettings(optimizer, batch_size=2, steps=steps, checkpoint_steps=1)


def test_training_learns_the_labels_and_a_stopped_run_resumes_exactly(tmp_path: Path) -> None:
    tokenizer, labels = chat_tokenizer(), [(1.0, 0.0, 1.0), (1.0, 0.0), (0.0,)]

    def trained(where: str, kills: int) -> tuple[Any, list[float]]:
        network, losses = tiny(), list[float]()
        head.attach(network, True)
        for attempt in range(kills + 1):
            if attempt:
                network = tiny()
                head.attach(network, True)
            seen = len(losses)
            try:
                train(
                    network, rows(tokenizer, labels), how(7), checkpoints=tmp_path / where,
                    on_step=lambda step: losses.append(step.loss), measure=head.fitness,
                    stop=lambda seen=seen, attempt=attempt: attempt < kills and len(losses) >= seen + 2,
                )  # fmt: skip
            except Stopped:
                continue
        return network, losses

    whole, losses = trained("whole", 0)
    assert losses[-1] < 0.6 * losses[0]
    killed, _ = trained("killed", 2)
    for ours, theirs in zip(whole.state_dict().values(), killed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


# ------------------------------------------------------------------ measures


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9]), st.booleans()), max_size=12))
def test_auc_is_the_share_of_correctly_ordered_pairs(pairs: list[tuple[float, bool]]) -> None:
    compared = [(a > b) + 0.5 * (a == b) for a, y in pairs if y for b, z in pairs if not z]
    assert measures.auc(pairs) == (pytest.approx(sum(compared) / len(compared)) if compared else None)


def test_a_head_that_only_knows_the_problem_has_auc_one_half_within_it() -> None:
    easy = [Scored("easy", [0.9], [1.0], True, 0.9)] * 3 + [Scored("easy", [0.9], [0.0], False, 0.9)]
    hard = [Scored("hard", [0.1], [1.0], True, 0.1)] + [Scored("hard", [0.1], [0.0], False, 0.1)] * 3
    found = measures.summary(easy + hard)
    assert found["step_auc"] == 0.75 and found["step_auc_within"] == 0.5 == found["answer_auc_within"]
    assert measures.in_words(found) == (
        "75.0% of a problem's steps classified correctly (50.0% by always giving the same answer; 8 steps), "
        "AUC within a problem 0.500"
    )


def test_the_same_answer_for_every_step_is_as_good_as_its_accuracy_says() -> None:
    """Problems count equally in both, though one has most of the steps."""
    long, short = Scored("long", [0.9] * 9, [1.0] * 9), Scored("short", [0.9], [0.0])
    found = measures.summary([long, short])
    assert (found["step_accuracy"], found["right"]) == (0.5, 0.5)


def test_first_error_and_calibration_measures() -> None:
    scored = [
        Scored("a", [0.9, 0.2, 0.9], [1.0, 0.0, 1.0]),  # found
        Scored("a", [0.9, 0.9, 0.2], [1.0, 0.0, 0.0]),  # found too late
        Scored("b", [0.9, 0.6], [1.0, 1.0]),  # no error to find
        Scored("b", [0.4, 0.9], [1.0, None]),  # a false alarm
    ]
    assert measures.first_error_accuracy(scored) == 0.5
    assert measures.first_error_f1([*scored, scored[2]]) == pytest.approx(2 / (1 / 0.5 + 1 / (2 / 3)))
    assert measures.first_error_f1(scored[2:]) is None and measures.first_error_f1([scored[1], scored[2]]) == 0.0
    bins = measures.reliability([(0.95, True), (0.92, False), (1.0, True), (0.05, False)])
    assert [(b["steps"], b["right"]) for b in bins] == [(1, 0.0), (3, 0.6667)]
    predicted = (0.95 + 0.92 + 1.0) / 3
    assert measures.expected_calibration_error(bins) == pytest.approx((3 * (predicted - 2 / 3) + 0.05) / 4, abs=1e-4)
    assert measures.summary([])["step_accuracy"] is None
    assert "no labelled step" in measures.in_words(measures.summary([]))


def test_predicting_the_soft_labels_themselves_is_calibrated() -> None:
    shares = [n / 20 for n in range(1, 20)]
    assert measures.summary([Scored("a", shares, shares)])["ece"] == 0.0
    assert measures.summary([Scored("a", shares, [float(p >= 0.5) for p in shares])])["ece"] > 0.2


# ------------------------------------------------------------------ files


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a random body, as a stage writes it."""
    from distill.training.export import export_student

    directory = tmp_path_factory.mktemp("prm")
    network, tokenizer = tiny(max_position_embeddings=64), chat_tokenizer()
    export_student(network, tokenizer, directory)
    files.write(directory, head.StepHead(32, True), about(tokenizer))
    return directory


def about(tokenizer: Any, **changes: Any) -> files.About:
    known = {"format": 1, "rule": "line", "width": 32, "likelihood": True, "start": "x"}
    return files.About(**known, tokenizer=files.tokenizer_identity(tokenizer)).model_copy(update=changes)


def test_a_written_model_is_loaded_and_scores_a_batch_like_single_calls(artifact: Path) -> None:
    scorer = load(artifact)
    found = scorer.score([*ASKED, ASKED[0], ("<bot>", " \n")])
    assert [len(row) for row in found] == [3, 2, 1, 3, 0] and found[0] == found[3]
    assert all(0.0 < p < 1.0 for row in found for p in row)
    for pair, row in zip(ASKED, found, strict=False):
        assert scorer.score([pair])[0] == pytest.approx(row, abs=1e-5)
    begun = scorer.score([(ASKED[0][0], "ab\ncd ef")])[0]
    assert begun == pytest.approx(found[0][:2], abs=1e-5)
    with pytest.raises(TooLong, match="64 positions"):
        scorer.score([("<bot>", "a" * 70)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "prm.json").unlink(), "has no prm.json: not a process reward model"),
        (lambda d: (d / "prm.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "prm.json").write_text(about(chat_tokenizer(), format=9).model_dump_json()), "upgrade distill"),
        (lambda d: (d / "prm.json").write_text(about(chat_tokenizer(), width=16).model_dump_json()), "width 16, but"),
        (lambda d: (d / "head.safetensors").write_bytes(b"xx"), "head.safetensors"),
        (lambda d: chat_tokenizer("{{ messages }}").save_pretrained(d / "model"), None),
        (lambda d: _other_tokenizer().save_pretrained(d / "model"), "not the one that it was trained with"),
    ],
)
def test_parts_that_do_not_fit_are_an_error_of_one_line(
    artifact: Path, tmp_path: Path, spoil: Any, message: str | None
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    spoil(copy)
    if message is None:  # the chat template is not part of a tokenizer's identity
        load(copy)
        return
    with pytest.raises(InputError, match=message) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def _other_tokenizer() -> Any:
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens(["ab"])
    return tokenizer


def test_a_response_is_scored_after_the_prompt_used_in_training(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "prm")
    written = about(chat_tokenizer(), prompting={"template": "sum {{ prompt }}"}).model_dump_json()
    (tmp_path / "prm" / "prm.json").write_text(written)
    problem = replace(CHAIN, prompt="a b")
    assert load(artifact).prompt(problem) == "<user>a b<end>\n<bot>"
    assert load(tmp_path / "prm").prompt(problem) == "<user>sum a b<end>\n<bot>"


def test_the_identity_covers_what_scores_depend_on_and_no_figures(artifact: Path, tmp_path: Path) -> None:
    def identity(**changes: Any) -> str:
        (tmp_path / "prm" / "prm.json").write_text(about(chat_tokenizer(), **changes).model_dump_json())
        return files.identity_of(tmp_path / "prm", FileHashes())

    shutil.copytree(artifact, tmp_path / "prm")
    same = identity(figures={"steps": 3}, start="another name")
    assert same == files.identity_of(artifact, FileHashes())
    assert len({same, identity(rule="paragraph"), identity(prompting={"system": "s"}), identity(likelihood=False)}) == 4


def test_a_multimodal_body_has_the_width_of_its_language_model(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    network = multimodal(len(tokenizer))
    assert not hasattr(network.config, "hidden_size")
    assert head.attach(network, True).weight.shape == (32,)
    head.detach(network)
    assert default_learning_rate(network) == default_learning_rate(tiny())
    scores = load(Path(reward_model(tmp_path / "prm", tokenizer, "line", network))).score(ASKED)
    assert all(0 < p < 1 for row in scores for p in row) and len(set(map(tuple, scores))) > 1


def test_a_reward_model_is_named_by_its_directory(artifact: Path) -> None:
    assert files.directory_of(str(artifact)) == artifact
    with pytest.raises(InputError, match="is not a directory"):
        files.directory_of("no/such/place")
    with pytest.raises(InputError, match="name the directory"):
        files.directory_of("prm:judge")


def test_a_policy_with_another_tokenizer_is_refused(artifact: Path) -> None:
    files.check_reads(artifact, "mine", chat_tokenizer(), "the student")
    with pytest.raises(InputError, match="prm mine: its tokenizer is not that of the student"):
        files.check_reads(artifact, "mine", _other_tokenizer(), "the student")


def test_nan_scores_are_an_error_and_no_verdict() -> None:
    network = tiny()
    own = head.attach(network, False)
    own.bias.data.fill_(float("nan"))
    with pytest.raises(PipelineError, match="weights are broken"):
        PrmScorer(network, chat_tokenizer(), "line").score(ASKED)


def test_the_head_learns_what_trl_learns_from_the_same_rows(tmp_path: Path) -> None:
    expected = json.loads(golden_prm.FILE.read_text())
    network = tiny(**golden_prm.SHAPE)
    golden_prm.fill(network.model)
    network.lm_head.requires_grad_(False)  # TRL's model has none
    ours = head.attach(network, likelihood=False)
    with torch.no_grad():
        ours.weight.copy_(golden_prm.direction())
        ours.bias.zero_()
    rows = []
    for n, (ids, ends, labels) in enumerate(golden_prm.rows()):
        mask = tuple(t - 1 in ends for t in range(len(ids)))
        rows.append(StepExample(str(n), tuple(ids), mask, 4, tuple(ends), tuple(map(float, labels))))
    rate = golden_prm.RATE  # the head's is twice that: it stands for two logits, each of which AdamW moves by that rate
    optimizer = OptimizerSettings(rate, schedule="constant", warmup=0, clip=0, own_rates=((head.NAME, 2 * rate),))
    settings = TrainSettings(optimizer, batch_size=len(rows), epochs=golden_prm.EPOCHS, checkpoint_seconds=None)
    losses: list[float] = []
    train(
        network, rows, settings, checkpoints=tmp_path, on_step=lambda step: losses.append(step.loss),
        measure=head.fitness,
    )  # fmt: skip
    assert losses == pytest.approx(expected["losses"], abs=1e-5)
    assert ours.weight.tolist() == pytest.approx(expected["weight"], abs=1e-5)
    assert ours.bias.item() == pytest.approx(expected["bias"], abs=1e-5)
    first = network.model.layers[0].mlp.up_proj.weight[0]
    assert first.tolist() == pytest.approx(expected["first_layer"], abs=1e-5)
