r"""Extract the answer to a logic problem: one of a few words, or a block of text.

A word is taken from the last ``\boxed{...}``, ``<answer>`` tag, "####" or "answer:", or else from the last line. A
lead-in ("Therefore, the conclusion is") and a reason after it are ignored. The rest must be one of the words *as a
whole*, so that "not entailed" is never "entailed". A block (a proof) is the last box, the last fenced block, or the
whole answer; for a model, an introduction that ends in a colon is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from distill.verifiers.extract import MARKER, last_box

YES_NO = {
    "yes": "yes true correct valid follows entailed entails entailment holds proved proven 'it follows' 'is entailed'",
    "no": "no false incorrect invalid 'not valid' 'not entailed' 'does not follow' 'not follow' 'does not entail' "
    "'does not hold' 'non-entailment' 'not entailment' 'cannot be concluded' 'not true' 'it does not follow'",
}
SAYINGS: dict[str, dict[str, str]] = {
    "entailment": {
        "True": "true yes entailed entailment entails follows proved proven valid 'entail the conclusion'",
        "False": "false no refuted disproved contradiction contradicted contradictory",
        "Uncertain": "uncertain unknown undetermined undecided neither neutral 'cannot be determined' 'not determined' "
        "'neither true nor false' 'not known' 'cannot tell' 'not enough information' 'insufficient information' "
        "'neither entailed nor contradicted' 'neither proved nor disproved' 'neither proven nor disproven'",
    },
    "follows": YES_NO,
    "satisfiable": {
        "yes": "yes true satisfiable sat consistent",
        "no": "no false unsatisfiable unsat inconsistent 'not satisfiable' 'not consistent' contradictory",
    },
    "equivalent": {
        "yes": "yes true equivalent 'logically equivalent' 'are equivalent'",
        "no": "no false 'not equivalent' inequivalent 'not logically equivalent' 'are not equivalent'",
    },
    "model": {
        "none": "none no unsatisfiable unsat inconsistent 'not satisfiable' 'no model' 'no countermodel' "
        "'there is none' 'does not exist' 'no model exists' 'no countermodel exists' 'there is no model' "
        "'there is no countermodel' valid 'it is valid'",
    },
}
WORD = re.compile(r"'([^']+)'|(\S+)")
LEAD = re.compile(
    r"(?:(?:the )?(?:final )?(?:conclusion|verdict|result|truth value|label): ?)?"
    r"(?:(?:therefore|thus|hence|so|then|in conclusion)[\s,:]*)?"
    r"(?:i (?:think|believe|conclude|(?:would |'d )?say|am sure)(?: that)?(?: (?!$))?)?"
    r"(?:(?:that|it|this|they)(?:'s)?|(?:the|these|this|both) (?:\w+ ){0,2}\w+)?(?: ?(?:is|are|must be|has to be))?"
    r"(?: ?(?:logically|necessarily|definitely|indeed))?"
)
LEADS = frozenset({"therefore", "thus", "hence", "so", "then", "that", "conclusion", "in", "the", "statement"})
NEGATION = re.compile(r"\b(?:not|no|never|cannot|neither|nor)\b|n't")
REASON = re.compile(r"[.,;:!]|\s(?:because|since|as|by|from)\s")
HEDGE = re.compile(r"(?:(?:or|and|but|maybe|perhaps|possibly|even|also)\b\s*)*")
TURN = re.compile(r"\b(?:wait|actually|correction|scratch that|on second thought)\b[\s,:.;!-]*(?:no\b[\s,:.;!-]*)?")
"""Words after an answer that take it back."""
FENCE = re.compile(r"```[^\n]*\n(.*?)```", re.DOTALL)
LONGEST = 300
MOST_LEADING = 8


def saying(text: str, sayings: dict[str, str]) -> str | None:
    """The key in ``sayings`` of the word that ``text`` is, or None."""
    if len(text) > LONGEST:
        return None
    text = re.sub(r"\\[A-Za-z]+|[${}*_`\"()\[\]]", " ", text.lower().replace("’", "'"))
    text = " ".join(text.split())
    known = {found[1] or found[2]: key for key, words in sayings.items() for found in WORD.finditer(words)}
    words = text.split()
    for start in range(min(len(words), MOST_LEADING)):
        lead, rest = " ".join(words[:start]), " ".join(words[start:])
        if not LEAD.fullmatch(lead) or NEGATION.search(lead):
            continue
        if (key := known.get(rest.strip(" .,;:!"))) is not None:
            return key
        first, *reason = REASON.split(rest, maxsplit=1)
        if (key := known.get(first.strip(" .,;:!"))) is not None:
            return _after_reason(key, reason[0] if reason else "", known, sayings)
    return None


def _after_reason(key: str, reason: str, known: dict[str, str], sayings: dict[str, str]) -> str | None:
    """The key, unless what follows takes it back ("True. Wait, it is False") or names another ("True, or Unknown")."""
    if turns := list(TURN.finditer(reason)):
        rest = reason[turns[-1].end() :]
        named = {known[word] for word in re.findall(r"\w+", rest) if word in known}
        return saying(rest, sayings) or (None if named - {key} else key)
    others = {known.get(HEDGE.sub("", part.strip(), count=1)) for part in re.split(r"[.,;:!]", reason)}
    return None if others - {None, key} else key


def about(text: str, sayings: dict[str, str], is_asked: Callable[[str], bool]) -> str | None:
    """The key in ``sayings`` of what ``text`` says about the formula in question ("So Q(a) is true"), or None."""
    words = re.sub(r"[$*`]|\\[()]", " ", text[:LONGEST]).split()
    while words and words[0].lower().strip(",:") in LEADS:
        words = words[1:]
    for end in range(1, len(words)):
        rest = " ".join(words[end + (words[end].lower() in ("is", "must", "holds")) :]) or words[end]
        if (key := saying(rest, sayings)) is not None:
            return key if is_asked(" ".join(words[:end])) else None
    return None


def last_line(answer: str) -> str:
    """The text of a one-line answer."""
    box = last_box(answer)
    if box is not None:
        return box
    if "</answer>" in answer and "<answer>" in answer:
        return answer.rpartition("</answer>")[0].rpartition("<answer>")[2].strip().strip("*` ")
    if "####" in answer:
        return answer.rpartition("####")[2].strip().partition("\n")[0].strip("*` ")
    return _after_marker(answer).partition("\n")[0].strip("*` ") or _last(answer)


def _after_marker(answer: str) -> str:
    markers = list(MARKER.finditer(answer))
    return answer[markers[-1].end() :].strip() if markers else ""


def _last(answer: str) -> str:
    lines = [line.strip("*` ") for line in answer.splitlines() if line.strip("*` ")]
    return lines[-1] if lines else ""


def block(answer: str) -> str:
    """The text of an answer of several lines."""
    box = last_box(answer)
    if box is not None:
        return box
    fences = FENCE.findall(answer)
    return (fences[-1] if fences else answer).strip()


def model_block(answer: str) -> str:
    """The block, without anything up to the last "answer:" or an introduction that ends in a colon."""
    text = block(answer)
    lines = (_after_marker(text) or text).splitlines()
    introductions = [at for at, line in enumerate(lines) if line.rstrip(" *").endswith(":") and " " in line.strip()]
    return "\n".join(lines[introductions[-1] + 1 :] if introductions else lines).strip() or text
