"""Curation: duplicates, overlap with evaluation sets, and the evidence of both."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from distill import catalog
from distill.cli.main import app
from distill.curation import words
from distill.curation.contamination import CANDIDATES, Evaluations, Item
from distill.curation.duplicates import near_duplicates
from distill.curation.frame import Frames
from distill.curation.minhash import Sketches, candidates, estimates, jaccard, rows_of_a_band
from distill.curation.review import Entry, Overlap, Rules, review
from distill.store import Store
from pipeline import config, runner
from pipeline.errors import InputError
from pipeline.events import Listener
from pipeline.manifest import Manifest
from pipeline.plan import Status
from pipeline.plan import plan as make_plan
from pipeline.workspace import Workspace

quick = settings(deadline=None, max_examples=25, database=None)

VOCABULARY = [f"w{n}" for n in range(400)]
ACCENTED = "Déterminez l'aire du triangle équilatéral dont le côté mesure trois mètres et dont la base est inconnue"
ITALIC = "Let \U0001d465 be a real number such that \U0001d465² is \uff19; which values can \U0001d465 have?"


def sentence(seed: object, length: int) -> list[str]:
    return random.Random(str(seed)).choices(VOCABULARY, k=length)


# -- words ------------------------------------------------------------------------------------


@quick
@given(st.text(st.characters(codec="ascii")))
def test_ascii_texts_are_split_like_all_others(text: str) -> None:
    folded = text.casefold()
    assert words.words(text) == words.WORD.findall(folded)
    assert words.tokens(text) == words.TOKEN.findall(folded)
    assert "".join(words.tokens(text)) == "".join(folded.split())


@quick
@given(st.text())
def test_how_unicode_writes_a_letter_makes_no_difference(text: str) -> None:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert words.words(unicodedata.normalize(form, text)) == words.words(text)
        assert words.tokens(unicodedata.normalize(form, text)) == words.tokens(text)


def test_tokens_keep_signs_and_chinese_characters_are_words() -> None:
    assert words.tokens("2 + 3") != words.tokens("2 * 3") and words.words("2 + 3") == words.words("2 * 3")
    assert words.words("小明有3个苹果") == ["小", "明", "有", "3", "个", "苹", "果"]


@quick
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=8), max_size=8), st.integers(1, 5))
def test_ngrams_do_not_cross_texts(texts: list[list[str]], n: int) -> None:
    found, owners = words.ngram_hashes(*words.WordHashes().of(texts), n)
    runs = [(owner, tuple(text[at : at + n])) for owner, text in enumerate(texts) for at in range(len(text) - n + 1)]
    assert owners.tolist() == [owner for owner, _ in runs]
    by_hash = dict(zip(found.tolist(), [run for _, run in runs], strict=True))
    assert len(by_hash) == len({run for _, run in runs})
    assert all(by_hash[value] == run for value, (_, run) in zip(found.tolist(), runs, strict=True))


# -- near duplicates --------------------------------------------------------------------------


@quick
@given(st.integers(0, 10**6), st.integers(0, 60))
def test_the_estimate_is_close_to_the_true_similarity(seed: int, changed: int) -> None:
    one = sentence(seed, 120)
    other = [f"x{at}" if at < changed else word for at, word in enumerate(one)]
    sketches = Sketches(3, 0.8)
    texts = [" ".join(one), " ".join(other)]
    sketches.add(texts)
    low_bytes, _ = sketches.taken()
    estimated = float(estimates(low_bytes, np.array([0]), np.array([1]))[0])
    (true,) = jaccard(texts, [(0, 1)], 3)
    assert abs(estimated - true) <= 6 * max((true * (1 - true) / low_bytes.shape[1]) ** 0.5, 0.01)


def test_bands_find_pairs_at_the_requested_similarity() -> None:
    for similarity in (0.5, 0.7, 0.8, 0.9, 0.95):
        rows = rows_of_a_band(similarity)
        found = 1 - (1 - similarity**rows) ** (128 // rows)
        assert found >= 0.99
    assert rows_of_a_band(0.9) > rows_of_a_band(0.5)


def duplicates_of(texts: Sequence[str], similarity: float = 0.8, batch: int = 7) -> dict[int, int]:
    batches = [texts[at : at + batch] for at in range(0, len(texts), batch)]
    found = near_duplicates(batches, lambda some: [texts[n] for n in some], similarity, 3)
    for duplicate in found:
        (exact,) = jaccard(texts, [(duplicate.index, duplicate.of)], 3)
        assert duplicate.similarity == exact >= similarity
    return {duplicate.index: duplicate.of for duplicate in found}


def test_fixed_texts_stay_and_their_near_duplicates_are_removed_or_reported() -> None:
    one, other = (" ".join(sentence(n, 60)[:-1]) for n in (1, 2))
    texts = [f"{one} a", f"{one} b", f"{one} c", f"{one} d", f"{other} e", f"{other} f"]
    found = [
        near_duplicates([texts[:3], texts[3:]], lambda some: [texts[n] for n in some], 0.8, 3, 2, spare)
        for spare in (False, True)
    ]
    removed, reported = [[(duplicate.index, duplicate.of) for duplicate in each] for each in found]
    assert removed == [(2, 0), (3, 0), (5, 4)]
    assert reported == [(2, 0), (3, 0), (3, 2), (5, 4)]


@quick
@given(st.integers(0, 10**6), st.integers(1, 15))
def test_the_first_of_near_duplicates_is_kept_and_nothing_else_is_removed(seed: int, batch: int) -> None:
    texts = [" ".join(sentence((seed, n), 60)) for n in range(20)]
    planted = {20 + n: n for n in range(0, 20, 3)}
    texts += [" ".join([*texts[n].split()[:-1], "another"]) for n in planted.values()]
    texts = texts[:20] + [text for _, text in zip(planted, texts[20:], strict=True)]
    expected = dict(zip(range(20, len(texts)), planted.values(), strict=True))
    assert duplicates_of(texts, batch=batch) == expected


def test_many_near_duplicates_leave_one_text() -> None:
    base = sentence("crowd", 80)
    crowd = [" ".join([*base[:n], f"x{n}", *base[n + 1 :]]) for n in range(80)] * 2
    crowd = [f"{text} {n}" for n, text in enumerate(crowd)]
    removed = duplicates_of(crowd)
    assert set(removed) == set(range(1, len(crowd)))


def test_the_estimate_decides_if_too_many_pairs_are_near_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.curation.duplicates.DOUBTS", 0)
    base = [" ".join(sentence(n, 80)) for n in range(6)]
    alike = [" ".join([*text.split()[:-4], "a", "b", "c", "d"]) for text in base]
    texts = [*base, *alike]
    assert duplicates_of(texts, 0.8) == {6 + n: n for n in range(6)}
    assert duplicates_of([*base, *(" ".join([*text.split()[:30], *sentence(text, 50)]) for text in base)], 0.8) == {}


def test_texts_with_different_numbers_are_different_problems() -> None:
    texts = [f"What is {a} + {b}?" for a in range(12) for b in range(12)]
    assert duplicates_of(texts) == {}


def test_texts_that_share_a_band_become_a_candidate_pair() -> None:
    keys = np.array([[1, 5], [1, 6], [2, 5], [3, 7]], np.uint32)
    pairs = [
        tuple(sorted(pair))
        for one, other in candidates(keys)
        for pair in zip(one.tolist(), other.tolist(), strict=True)
    ]
    assert sorted(pairs) == [(0, 1), (0, 2)]


# -- overlap with evaluation sets -------------------------------------------------------------


@quick
@given(st.integers(0, 10**6), st.sampled_from([8, 13]), st.data())
def test_every_planted_overlap_is_found_and_nothing_else(seed: int, n: int, data: st.DataObject) -> None:
    items = [Item("set", f"i{k}", f"f:{k}", " ".join(sentence((seed, "item", k), 30))) for k in range(10)]
    texts = [" ".join(sentence((seed, "text", k), 40)) for k in range(10)]
    planted = data.draw(st.dictionaries(st.integers(0, 9), st.integers(0, 9), max_size=5))
    for text, item in planted.items():
        at, length = data.draw(st.integers(0, 30 - n)), data.draw(st.integers(n, 30))
        run = items[item].text.split()[at : at + max(length, n)]
        texts[text] = f"{texts[text]}, {' '.join(run).upper()}! {texts[text]}"
    hits = Evaluations(items, n).find(texts)
    assert {k: hit[0].item.name for k, hit in enumerate(hits) if hit} == {k: f"i{v}" for k, v in planted.items()}
    for k, found in enumerate(hits):
        for hit in found:
            assert len(hit.ngram.split()) == n and hit.ngram in " ".join(words.words(texts[k]))
            assert hit.ngram in hit.item.text and 0 < hit.share <= 1


def test_the_share_tells_a_copy_from_a_common_phrase() -> None:
    item = Item("set", "i", "f:1", " ".join(sentence("item", 40)))
    ((copy,), (phrase,)) = Evaluations([item], 13).find([f"Well, {item.text}", " ".join(item.text.split()[5:18])])
    assert copy.share == 1.0 and phrase.share == pytest.approx(1 / 28)


def test_the_item_that_was_copied_is_found_among_many_that_share_more_of_their_words() -> None:
    preamble = " ".join(sentence("preamble", 30))
    items = [Item("set", f"{k:03}", "", f"{preamble} {' '.join(sentence(k, 15))}") for k in range(150)]
    (hits,) = Evaluations(items, 13).find([items[140].text + " and more"])
    assert (hits[0].item.name, hits[0].share) == ("140", 1.0)
    phrase, short = " ".join(sentence("phrase", 14)), Item("set", "short", "", " ".join(sentence("short", 13)))
    long = [Item("set", f"l{k}", "", f"{' '.join(sentence(k, 90))} {phrase}") for k in range(CANDIDATES + 1)]
    (hits,) = Evaluations([*long, short], 13).find([f"{phrase}: {short.text}"])
    assert (hits[0].item.name, hits[0].share) == ("short", 1.0)


@pytest.mark.parametrize(
    ("published", "copied"),
    [
        (unicodedata.normalize("NFC", ACCENTED), unicodedata.normalize("NFD", ACCENTED)),
        ("Let x be a real number such that x² is 9; which values can x have?", ITALIC),
    ],
    ids=["composed and decomposed", "mathematical italics"],
)
def test_the_same_text_in_another_unicode_form_is_found(published: str, copied: str) -> None:
    (hits,) = Evaluations([Item("set", "i", "", published)], 13).find([copied])
    assert [hit.share for hit in hits] == [1.0]
    assert jaccard([published, copied], [(0, 1)], 3) == [1.0]


def test_the_vowel_signs_of_hindi_divide_no_word() -> None:
    assert len(words.words("हिन्दी में गणित")) == 3


def test_short_items_match_as_a_whole_and_the_shortest_only_if_equal() -> None:
    items = [Item("s", "ten", "", " ".join(VOCABULARY[:10])), Item("s", "sum", "", "What is 2 + 3?")]
    texts = [f"so {items[0].text} so", "what is 2 + 3 ?", "What is 2 * 3?", "Say: What is 2 + 3?"]
    found = [[hit.item.name for hit in hits] for hits in Evaluations(items, 13).find(texts)]
    assert found == [["ten"], ["sum"], [], []]


def test_there_is_no_overlap_without_evaluation_items() -> None:
    assert Evaluations([], 13).find(["a b c"]) == [[]] and Evaluations([Item("s", "x", "", "?")], 13).find([""]) == [[]]


# -- text that all prompts share ---------------------------------------------------------------


def test_a_shared_instruction_is_neither_overlap_nor_similarity() -> None:
    instruction = "\n\nPlease reason step by step, and put your final answer within a box, and nothing else after it."
    texts = [f"Solve this now: {' '.join(sentence(n, 6))}{instruction}" for n in range(12)]
    frames = Frames()
    frames.see(("s", text) for text in texts)
    cut = frames.cutter()
    assert [cut(text) for text in texts] == [" ".join(sentence(n, 6)) for n in range(12)]
    assert cut("Another" + instruction) == "Another" and cut("Another") == "Another"
    assert cut(texts[0][:16] + instruction) == texts[0][:16] + instruction
    entries = [Entry(f"{n:02}", "s", text) for n, text in enumerate(texts)]
    assert reviewed(entries, [Item("e", "i", "", f"Other words, {instruction}")], Rules()) == []


def test_a_few_texts_have_no_frame() -> None:
    frames = Frames()
    frames.see(("s", f"How many are {n} apples") for n in range(9))
    assert frames.cutter()("How many are 3 apples") == "How many are 3 apples"


# -- the review -------------------------------------------------------------------------------


def reviewed(entries: Sequence[Entry], items: Sequence[Item], rules: Rules, batch: int = 4) -> list[Overlap]:
    in_order = sorted(entries, key=lambda entry: entry.key)
    text_of = {entry.key: entry.text for entry in entries}

    def read() -> Iterator[Sequence[Entry]]:
        yield from (in_order[at : at + batch] for at in range(0, len(in_order), batch))

    return review(read, lambda keys: [text_of[key] for key in keys], items, rules)


def test_the_review_finds_each_kind() -> None:
    base = [" ".join(sentence(n, 40)) for n in range(4)]
    item = Item("set", "i", "f:9", base[2])
    entries = [
        Entry("a", "s", base[0]),
        Entry("b", "s", base[1]),
        Entry("c", "s", base[0].replace(" ", "\n")),
        Entry("d", "s", " ".join([*base[1].split()[:-1], "end"])),
        Entry("e", "t", base[2] + " and more"),
        Entry("f", "t", base[3]),
    ]
    found = reviewed(entries, [item], Rules())
    assert [(o.key, o.kind, o.other) for o in found] == [
        ("c", "exact", "a"), ("e", "evaluation", item), ("d", "near", "b"),
    ]  # fmt: skip
    reported = reviewed(entries, [item], Rules(exact=False, similarity=None, tell=True))
    assert [(o.key, o.removed) for o in reported] == [("e", False)]
    alike = Item("set", "n", "", " ".join(word if n % 12 else "other" for n, word in enumerate(base[3].split(), 1)))
    (near,) = [o for o in reviewed(entries, [item, alike], Rules(similarity=0.5)) if o.key == "f"]
    assert (near.kind, near.other, near.ngram, near.removed) == ("near", alike, None, True) and 0.5 <= near.share < 1
    (kept,) = [o for o in reviewed(entries, [alike], Rules(similarity=0.5, tell=True)) if o.key == "f"]
    assert (kept.other, kept.removed) == (alike, False)
    half = Item("set", "j", "", f"{base[2]} {base[3]} x")
    assert [o.key for o in reviewed(entries, [half], Rules(share=0.9)) if o.kind == "evaluation"] == []
    assert [o.key for o in reviewed(entries, [half], Rules(share=0.3)) if o.kind == "evaluation"] == ["e", "f"]


def test_an_instruction_that_only_some_problems_share_with_an_evaluation_set_is_no_overlap() -> None:
    instruction = " ".join(sentence("instruction", 20))
    items = [Item("set", f"{n}", "", f"{' '.join(sentence(('item', n), 15))}\n{instruction}") for n in range(12)]
    entries = [Entry(f"{n:02}", "s", " ".join(sentence(n, 15)) + f" {instruction}" * (n % 2)) for n in range(12)]
    assert reviewed(entries, items, Rules()) == []
    copied = Entry("copied", "s", " ".join(sentence(("item", 3), 15)))
    (found,) = reviewed([*entries, copied], items, Rules(share=1.0, tell=True))  # once, though it is a near one too
    assert found == Overlap(
        "copied", "evaluation", replace(items[3], text=copied.text), 1.0, found.ngram, removed=False
    )


@quick
@given(st.permutations(range(12)), st.integers(1, 5))
def test_the_review_does_not_depend_on_order_and_batches(order: list[int], batch: int) -> None:
    texts = [" ".join(sentence(n % 5, 30)) + f" {n % 3}" for n in range(12)]
    entries = [Entry(f"k{n:02}", "s", text) for n, text in enumerate(texts)]
    items = [Item("set", "i", "", texts[4])]
    assert reviewed([entries[n] for n in order], items, Rules(), batch) == reviewed(entries, items, Rules())


# -- the stages -------------------------------------------------------------------------------


def run(tmp_path: Path, text: str) -> tuple[dict[str, Manifest], Store]:
    yaml = tmp_path / "pipeline.yaml"
    yaml.write_text(text)
    workspace = Workspace(tmp_path / "run")
    spec = config.load(yaml, catalog.stage, workspace=workspace.path)
    done = runner.run(spec, workspace, Listener(), lambda: False)
    assert all(plan.status is Status.CACHED for plan in make_plan(spec, workspace))
    return {item.manifest.stage: item.manifest for item in done}, Store(workspace.path)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def questions(*texts: str) -> list[dict[str, Any]]:
    return [{"question": text, "answer": f"#### {n}"} for n, text in enumerate(texts)]


SAME, OTHER, THIRD, ASKED, HELD = (" ".join(sentence(name, 40)) for name in ("a", "b", "c", "d", "e"))
STAGES = """\
name: p
stages:
  problems:
    sources:
      - {file: train.jsonl, form: gsm8k}
      - {file: heldout.jsonl, form: gsm8k, split: heldout}
  curate:
    problems: problems
    against:
      exam: {file: exam.jsonl, form: gsm8k}
      clean: {file: clean.jsonl, form: gsm8k}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    near = " ".join([*OTHER.split()[:-1], "end"])
    write(
        tmp_path / "train.jsonl", questions(SAME, SAME + " ", OTHER, near, THIRD, f"Now: {ASKED}", f"So {HELD[:150]}")
    )
    write(tmp_path / "heldout.jsonl", questions(HELD))
    write(tmp_path / "exam.jsonl", questions("something else", ASKED))
    write(tmp_path / "clean.jsonl", questions("nothing like it"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_curate_keeps_new_problems_and_records_the_evidence(files: Path) -> None:
    done, store = run(files, STAGES)
    figures = done["curate"].figures
    assert {k: figures[k] for k in ("members", "train", "heldout", "verifiers", "against")} == {
        "members": 4, "train": 3, "heldout": 1, "verifiers": ["math"], "against": {"exam": 1, "heldout": 1, "clean": 0},
    }  # fmt: skip
    assert (figures["exact_duplicates"], figures["near_duplicates"], figures["contaminated"]) == (1, 1, 2)
    rows = store.rows("SELECT * FROM curation ORDER BY kind, evaluation")
    assert {row["run"] for row in rows} == {done["curate"].fingerprint} and all(row["removed"] for row in rows)
    by = {(row["kind"], row["evaluation"]): row for row in rows}
    exam = by["evaluation", "exam"]
    assert (exam["other_origin"], exam["share"], exam["ngram"]) == ("exam.jsonl:2", 1.0, " ".join(ASKED.split()[:13]))
    assert by["evaluation", "heldout"]["other_origin"] == "heldout.jsonl:1" and by["evaluation", "heldout"]["share"] < 1
    assert 0.8 <= by["near", None]["share"] < 1 and by["exact", None]["other"].startswith("train/")
    (view,) = store.rows("SELECT * EXCLUDE (run, for_example) FROM contamination WHERE evaluation = 'exam'")
    assert view == {"evaluation": "exam", "problems": 1, "items": 1, "removed": 1, "largest_share": 1.0}


def test_the_card_lists_every_evaluation_set_that_was_checked_even_clean_ones(files: Path) -> None:
    teacher = "{problems: curate, teacher: embedded:teacher, sampling: {max_tokens: 4}}"
    run(files, STAGES + "    heldout: false\n  generate: " + teacher)
    for choice in (["--selection", "generate"], []):
        result = CliRunner().invoke(app, ["card", "--workspace", "run", "--json", *choice])
        shown = json.loads(result.stdout)
        assert [(row["evaluation"], row["problems"], row["among_these"]) for row in shown["overlap"]] == [
            ("exam", 1, 0), ("clean", 0, 0),
        ]  # fmt: skip
        assert shown["name"] == ("run, stage generate" if choice else "run")


def test_the_order_of_the_file_does_not_change_what_is_kept(files: Path) -> None:
    kept = []
    for _ in range(2):
        done, store = run(files, STAGES)
        sql = "SELECT row_key FROM members WHERE collection = ? ORDER BY row_key"
        kept.append([row["row_key"] for row in store.rows(sql, [done["curate"].digest])])
        lines = (files / "train.jsonl").read_text().splitlines(keepends=True)
        (files / "train.jsonl").write_text("".join(reversed(lines)))
    assert kept[0] == kept[1]


def test_another_evaluation_file_or_setting_changes_the_result(files: Path) -> None:
    run(files, STAGES)
    write(files / "exam.jsonl", questions("something else altogether"))
    done, _ = run(files, STAGES)
    assert done["curate"].figures["train"] == 4
    done, _ = run(files, STAGES + "    contaminated: tell\n    near: null\n    heldout: false\n    exact: false\n")
    assert done["curate"].figures["train"] == 7


def test_curation_that_leaves_nothing_is_an_error(files: Path) -> None:
    write(files / "train.jsonl", questions(f"x {ASKED}"))
    with pytest.raises(InputError, match=r"stage curate: no training problem is left.*curation"):
        run(files, STAGES)


def test_published_traces_are_curated_by_their_problems(files: Path) -> None:
    answers = [{"prompt": text, "reasoning_content": "hm", "content": "\\boxed{1}"} for text in (SAME, ASKED, THIRD)]
    write(files / "traces.jsonl", [*answers, answers[0] | {"content": "It is \\boxed{1}."}])
    done, store = run(
        files,
        "name: p\nstages:\n  import: {file: traces.jsonl, form: deepseek, teacher: r1}\n"
        "  curate-traces: {traces: import, against: {exam: {file: exam.jsonl, form: gsm8k}}}\n"
        "  verify: {traces: curate-traces, verifier: format}\n",
    )
    assert done["curate-traces"].figures["traces"] == 3 and done["verify"].figures["correct"] == 3
    assert store.rows("SELECT kind, evaluation FROM curation") == [{"kind": "evaluation", "evaluation": "exam"}]
