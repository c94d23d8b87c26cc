r"""Detect the script of a text from its letters, which is enough to notice that a model switched language midway.

Words are counted: a run of letters of one script is a word, and so is each Chinese or Japanese character, since these
are written without spaces. LaTeX, code, links, numbers and single Latin or Greek letters, which are symbols in any
language, do not count. Languages that share a script are not distinguished.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

SCRIPTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ("cs", "da", "de", "en", "es", "fi", "fr", "hu", "id", "it", "nl", "no", "pl", "pt", "ro", "sv", "tr", "vi"),
        frozenset({"LATIN"}),
    ),
    **dict.fromkeys(("bg", "ru", "uk"), frozenset({"CYRILLIC"})),
    **dict.fromkeys(("ar", "fa", "ur"), frozenset({"ARABIC"})),
    **dict.fromkeys(("hi", "mr", "ne"), frozenset({"DEVANAGARI"})),
    "zh": frozenset({"CJK"}),
    "ja": frozenset({"CJK", "HIRAGANA", "KATAKANA"}),
    "ko": frozenset({"HANGUL"}),
    "bn": frozenset({"BENGALI"}),
    "el": frozenset({"GREEK"}),
    "he": frozenset({"HEBREW"}),
    "ka": frozenset({"GEORGIAN"}),
    "hy": frozenset({"ARMENIAN"}),
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}),
}
"""Scripts by language. A script is the first word of its characters' Unicode names."""
UNSPACED = frozenset({"CJK", "HIRAGANA", "KATAKANA"})
SYMBOLS = frozenset({"LATIN", "GREEK"})
LEAST_WORDS = 5
"""A text with fewer words has no detectable language."""
LETTER = re.compile(r"^(?!MODIFIER|MATHEMATICAL)\w+ .*\b(?:LETTER|IDEOGRAPH|SYLLABLE|CHARACTER|LIGATURE)\b")
"""Matches the Unicode names of characters that write words, not of symbols such as DOUBLE-STRUCK CAPITAL R."""
NOT_PROSE = re.compile(r"\\(?:begin|end)\{[^{}]*\}|\\[A-Za-z]+|https?://\S+")
OPENING = re.compile(r"```|`|\$\$|\$|\\\(|\\\[")
CLOSING = {"```": "```", "`": "`", "$$": "$$", "$": "$", "\\(": "\\)", "\\[": "\\]"}
ON_ONE_LINE = ("`", "$")


def words_by_script(text: str) -> Counter[str]:
    """The number of words in each script in the prose of ``text``."""
    counts: Counter[str] = Counter()
    run_of, length = "", 0
    for character in [*_prose(text), " "]:
        script = script_of(character)
        if script == run_of or (script == "MARK" and run_of):
            length += 1
            continue
        _count(counts, run_of, length)
        run_of, length = ("", 0) if script == "MARK" else (script, 1)
    return counts


def _prose(text: str) -> str:
    """The text without formulas, code and links. Linear: a closing delimiter that never comes is searched only once."""
    kept, at = [], 0
    unclosed: set[str] = set()
    while (found := OPENING.search(text, at)) is not None:
        opening = found.group()
        end = -1 if opening in unclosed else text.find(CLOSING[opening], found.end())
        if end < 0:
            unclosed.add(opening)
        kept.append(text[at : found.start()])
        inside = end >= 0 and not (opening in ON_ONE_LINE and "\n" in text[found.end() : end])
        at = end + len(CLOSING[opening]) if inside else found.end()
    return NOT_PROSE.sub(" ", " ".join([*kept, text[at:]]))


def _count(counts: Counter[str], script: str, length: int) -> None:
    if script in UNSPACED:
        counts[script] += length
    elif script and not (length == 1 and script in SYMBOLS):
        counts[script] += 1


@lru_cache(maxsize=1 << 14)
def script_of(character: str) -> str:
    """The script of a letter, MARK for a combining mark, empty for anything else."""
    kind = unicodedata.category(character)
    if kind.startswith("M"):
        return "MARK"
    if not kind.startswith("L"):
        return ""
    name = unicodedata.name(character, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    return name.partition(" ")[0] if LETTER.search(name) else ""


def scripts_of(text: str) -> frozenset[str]:
    """The scripts of the language that ``text`` seems to be in; empty if it has too few words."""
    counts = words_by_script(text)
    if counts.total() < LEAST_WORDS:
        return frozenset()
    script = counts.most_common(1)[0][0]
    japanese = counts["HIRAGANA"] + counts["KATAKANA"] > 0
    return SCRIPTS["ja"] if japanese and script in SCRIPTS["ja"] else frozenset({script})


def share(text: str, scripts: frozenset[str]) -> tuple[float, int]:
    """(share of the words in ``scripts``, number of words). The share is 1 if there are no words."""
    counts = words_by_script(text)
    total = counts.total()
    return (sum(counts[script] for script in scripts) / total if total else 1.0), total
