r"""Find the final answer in a visible answer, and name the rule that found it.

The rules are tried in this order. The first that finds something wins and is named in the verdict's evidence:

1. ``boxed``: the last balanced ``\boxed{...}`` (earlier boxes are intermediate results). ``boxes`` if only "and", "or"
   or a comma separates the last ones, which then form a list. If the words around the box deny it, or later ones
   retract it ("Wait, that is wrong"), the answer stated after that counts. If there is none, the box stands with the
   rule ``taken back``, and cannot be `correct` (`at_most`);
2. ``<answer>``: the content of the last ``<answer>...</answer>``, all of it if it has no prose;
3. ``####``: what follows the last ``####`` on its line (GSM8K);
4. ``corrected``: a value that replaces the one that rule 5 finds ("Wait, no: 6", "Actually, it is 6");
5. ``answer:``: what follows the last "answer is", "answer:" or "answer =" on its line, unless it is retracted without a
   replacement ("Hmm, that's wrong");
6. ``last line``: the last line, if it is short and contains no prose;
7. ``last formula``: the last ``$...$`` or ``\(...\)``;
8. ``last clause``: what follows the last "is" or equals sign of the last line, if it contains no prose;
9. ``last number``: the last number in the text, with the unit after it;
10. ``text``: the last line, whatever it is.

Rules 7 to 9 do not apply if the words around the value deny it or change its meaning ("cannot be 5", "more than 5", "3
or 5", "5 is wrong", "5 squared"), nor rule 9 if the text ends with a question, which may be the problem's own.

Nothing here looks at the reference, so a wrong answer cannot pass because the right value occurs somewhere in it. Every
rule takes time linear in the text. `distill.verifiers.number` and `distill.verifiers.latex` interpret the span.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from distill.types import Outcome, Verdict
from distill.verifiers import units
from distill.verifiers.tree import FUNCTIONS, SHORT_WORDS

PROSE = re.compile(
    rf"(?<![\\A-Za-z])(?!(?:{'|'.join(sorted(FUNCTIONS))})(?![A-Za-z]))"
    rf"(?:[A-Za-z]{{3,}}|(?i:{'|'.join(sorted(SHORT_WORDS))})(?![A-Za-z]))"
)
MARKER = re.compile(
    r"\banswers?(?:\s{1,9}(?:to|for|of)\b[^.\n:=]{0,60}?)?[\s*]{0,9}"
    r"(?:\b(?:is|are|(?:should|must|would) be|equals)\b|:|=)"
    r"(?:\s{1,9}(?:therefore|thus|then|simply|just|indeed|clearly|equal to)\b,?)?[\s:*]*(?:is\b[\s:*]*)?"
    r"|(?:答案|答え|정답|ответ|réponse|respuesta|antwort|risposta|resposta)[\s*]{0,3}(?:(?:应该)?[是为选]|[は은는]|(?:est|es|ist|è|é)\b|[:：=])"
    r"[\s:：*]*"
    r"|(?:^|(?<=\n))\**(?-i:A):\**\s{1,9}(?=[-−$(*\d\\][^\n]*\s*\Z)",
    re.IGNORECASE,
)
"""What comes before a stated answer, in English and in short in other languages; "A:" only on the last line, because it
is also what a point or an option is called."""
VALUE = r"(?:[-−+]?\$?\(?[-−]?\.?\d|(?:\$|\*\*)(?=[^\s.,;:!?)*$])|\\[(\[a-z])"
CORRECTION = re.compile(
    r"\b(?:wait|actually|no|correction|sorry|oops|i mean|scratch that|make that|just kidding|my mistake)\b[\s,:;.!—–-]*"
    r"(?:(?:wait|actually|no|sorry|oops|correction|i|mean|it|that|this|is|was|wrong|be|should|must|the|correct|right|"
    r"answer|value|result|make|rather|it's|that's)\b[\s,:;.!—–-]*){0,12}(?=" + VALUE + ")",
    re.IGNORECASE,
)
BETWEEN_BOXES = re.compile(
    r"[\s$.]*(?:\\[\])])?[\s$]*(?:,|;|(?:,\s*)?\b(?:and|or)\b|(?:,\s*)?\\text\s?\{\s*(?:and|or)\s*\})[\s$]*(?:\\[\[(])?"
    r"[\s$]*(?:[A-Za-z]\w?\s*=)?[\s$]*"
)
FORMULA = re.compile(
    r"\$\$((?:\\.|[^$\\]){1,2000})\$\$|(?<!\\)\$((?:\\[^\n]|[^$\\\n]){1,2000})\$"
    r"|\\\(((?:[^\n\\]|\\[^()\n]){1,2000}?)\\\)|\\\[((?:[^\\]|\\[^\[\]]){1,2000}?)\\\]",
    re.DOTALL,
)
NUMBER = re.compile(
    r"(?<![\w.√^/])(?<![A-Za-z]\()[-−]?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:/\d+)?%?", re.ASCII
)
SENTENCE_END = re.compile(r"(?<!\bRs)(?<!\b[MD]r)(?<!\bM[st])(?<!\bMrs)(?<!\bSt)[.?]\s|(?<![\d)}\\])!\s")
FONT = re.compile(r"\\(?:text|mbox|mathrm|textbf|begin|end)\s?\{[^{}]*\}")
CLAUSE = re.compile(r"\b(?:is|are|be|equals)\b|=")
NEGATION = re.compile(r"\bnot\b|n['’]t\b", re.IGNORECASE)
DENIED = re.compile(
    r"(?:\b(?:not|no|never|neither|nor|cannot|hardly|wrong|incorrect|doubt|than|between|above|below|exceeds?"
    r"|at least|at most)\b|n['’]t\b)[^\d.,;:!?\n]{0,40}$|\b(?:negative|minus)\s$"
    r"|\b(?:(?:half|thirds?|quarters?|root|multiples?)\sof|(?:twice|double|triple)(?:\sas\s(?:many|much)\sas)?"
    r"|except|besides|divisible\sby|divided\sby)\s(?:the\s)?$"
    r"|(?<![\w.])\d[\d.,]*[$)\]\\]*(?:\s?[A-Za-z%]{1,12})?\s(?:to|and|or|nor)\s$",
    re.IGNORECASE,
)
"""Words before a value that deny or qualify it."""
TURNED = re.compile(r"\b(?:but|so|then|thus|therefore|hence|instead)\b", re.IGNORECASE)
CHANGED = re.compile(
    r"[\s$)\]\\?]*(?:(?:is|are|was|were|would be|seems?)\s(?:\w+\s)?)?(?:wrong|incorrect|false|impossible|not)\b"
    r"|[\s$-]*(?:(?:more|less|fewer|greater|larger|smaller)\sthan|and\s(?:an?|one|two|three)\s[a-z]+|plus|minus|over|squared|cubed|factorial"
    r"|(?:times|divided by|multiplied by)\s[\w$\\]|half|halves"
    r"|(?:thi|quarte|fou|fif|six|seven|eigh|nin|ten|hundred|thousand)(?:rd|th)s)\b",
    re.IGNORECASE,
)
"""Words after a value that deny or change it."""
WRONG = re.compile(r"\b(?:that|this|it|which)(?:['’]s| is| was) (?:wrong|incorrect|not right)\b", re.IGNORECASE)
RETRACTED = re.compile(
    rf"\b(?:wait|hmm+|oops|scratch that|on second thought|let me (?:re\w+|try again|check))\b|{WRONG.pattern}",
    re.IGNORECASE,
)
DENIED_BOX = re.compile(
    r"(?:\b(?:not|never|cannot)|n['’]t)\s(?:(?:be|equals?|to|the|correct|right|answer|value|simply|just)\s){0,6}[\s$*\\(\[]{0,6}$",
    re.IGNORECASE,
)
"""Words before a box that deny it."""
NOT_RIGHT = r"(?:wrong|incorrect|false|mistaken|a mistake|not (?:right|correct|the answer))"
UNCONDITIONAL = r"\b(?!\s(?:for|if|when|unless|in|only|to)\b)"
WRONG_BOX = re.compile(
    rf"[\s$)\]\\*]{{0,9}}(?:(?:is|was|seems|must be)\s(?:(?!not)\w+\s)?(?:{NOT_RIGHT}|impossible|not possible)"
    rf"|(?:is|was)n['’]t\s(?:right|correct|possible|the answer)"
    rf"|can(?:not|['’]t)\sbe\s(?:right|correct|it|the answer)){UNCONDITIONAL}",
    re.IGNORECASE,
)
"""Words after a box that deny it."""
TAKEN_BACK = re.compile(
    r"(?:\A|[.!?:;\n$\])}—–-])[\s*$\\)\].]{0,9}"
    r"(?:(?:wait|hmm+|oh|ah|no|actually|oops|sorry|but|however|hold on|on second thought|well)\b"
    r"[\s,.!:;…—–-]{0,9}){0,6}"
    rf"(?:(?:(?:(?:that|this|it)(?:['’]s|\sis|\swas)|(?:my|the|this|that)\s(?:\w+\s)?(?:answer|result|value)(?:\sabove)?"
    rf"\s(?:is|was))\s(?:clearly\s|obviously\s|actually\s)?{NOT_RIGHT}"
    rf"|(?:that|this|it)\scan(?:not|['’]t)\sbe\s(?:right|correct)|(?:that|this|it)\sisn['’]t\s(?:right|correct)){UNCONDITIONAL}"
    r"|(?<=[\s,.!:;…—–-])no\b(?=[,.:;!—–-]|\s*$|\s(?:that|it|the|this|i)\b)"
    r"|scratch\sthat\b|i\s(?:was\swrong|made\san?\s(?:mistake|error))\b)",
    re.IGNORECASE,
)
"""The beginning of a later sentence that retracts a box."""
CONDITION = re.compile(
    r"[\s,]*\b(?:or|if|unless|when|otherwise|depending)\b|\s[a-z]{1,12},?\s(?:(?:or|and)\s[$-]?\d|(?:if|unless|depending)\b)",
    re.IGNORECASE,
)
"""Words after a value, or after its unit, that make it one of several."""
UNIT = re.compile(
    r"(?:[\s-](?:square|cubic|sq)\b)?(?:[\s-](?:"
    + "|".join(
        sorted(
            {*units.SCALES, *units.KNOWN, *units.ALIASES, *units.SHORT} - {"$", "¢", "%", "in", "squared", "cubed"},
            key=len,
            reverse=True,
        )
    )
    + r")s?\b(?!['’]))+(?:\^\{?[23]\}?|\s(?:squared|cubed)\b)?(?:\s?(?:/|per\b)\s?[A-Za-z]+)?",
    re.IGNORECASE,
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BOX_TOKEN = re.compile(BOX.pattern + r"|\\.|[{}]", re.DOTALL)
LINE_LENGTH = 200
PHRASE_WORDS = 4
VERB = re.compile(
    r"\b(?:is|are|was|were|be|has|have|had|gets?|needs?|makes?|costs?|earns?|equals|will|can)\b", re.IGNORECASE
)
ROUGHLY = re.compile(r"(?:about|around|approximately|roughly|exactly|just|only)\s(?=[$\\]{0,2}\d)", re.IGNORECASE)
GAP = 60
TAIL = 5_000
"""Rules 4 to 10 read only this many characters at the end of the text."""


class Span(NamedTuple):
    text: str
    rule: str


TAKEN = "taken back"
MARKED = frozenset({"boxed", "boxes", "<answer>", "####", "answer:", "corrected"})
"""The rules that find what the writer marked as the answer. The others guess."""


def at_most(verdict: Verdict, rule: str) -> Verdict:
    """The verdict on a span. A retracted box is never correct: `unverifiable` instead, or incorrect if it is wrong."""
    if rule != TAKEN or verdict.outcome is not Outcome.CORRECT:
        return verdict
    return Verdict.unverifiable("the box is denied or taken back, and no other answer stated", **verdict.evidence)


def final_answer(text: str) -> Span:
    """The span to judge. Its text is empty if there is nothing at all."""
    if boxes := _boxes(text):
        return _from_boxes(text, boxes)
    if "</answer>" in text and (tagged := text.rpartition("</answer>")[0].rpartition("<answer>"))[1]:
        inside = final_answer(tagged[2].strip())
        if inside.rule in ("boxed", "boxes", "####", "answer:"):
            return inside
        return Span(inside.text if _is_prose(tagged[2]) else _clean(tagged[2]), "<answer>")
    if "####" in text:
        return Span(text.rpartition("####")[2].strip().partition("\n")[0].strip(), "####")
    tail = text[-TAIL:].strip()
    if markers := list(MARKER.finditer(tail)):
        rest = tail[markers[-1].end() :].strip()
        corrections = list(CORRECTION.finditer(rest))
        if corrections:
            rest = rest[corrections[-1].end() :]
        if claim := SENTENCE_END.split(rest.partition("\n")[0])[0].strip():
            if _retracted(claim, rest[len(claim) :]):
                return Span(_clean(rest), "text")
            return Span(_without_prose(_clean(claim)), "corrected" if corrections else "answer:")
    line = tail.rpartition("\n")[2].strip()
    if len(line) <= LINE_LENGTH and any(c.isalnum() for c in line) and not _is_prose(line):
        return Span(_clean(line), "last line")
    if (formulas := _formulas(tail)) and not denied(tail, *formulas[-1].span()):
        return Span(_inside(formulas[-1]), "last formula")
    begin = max((found.end() for found in CLAUSE.finditer(line)), default=0)
    clause = _clean(line[begin:])
    sound = re.search(r"\d|\\", clause) and not _is_prose(clause) and not denied(line, begin, len(line))
    if clause != line and len(clause) <= LINE_LENGTH and sound:
        return Span(clause, "last clause")
    numbers = list(NUMBER.finditer(tail))
    if numbers and not tail.endswith("?") and not denied(tail, *numbers[-1].span()):
        return Span(_with_unit(numbers[-1]), "last number")
    return Span(_clean(line), "text")


def _is_prose(text: str) -> bool:
    """Whether there is prose outside of LaTeX's own texts and environments."""
    return PROSE.search(FONT.sub("", text)) is not None


def _retracted(claim: str, after: str) -> bool:
    """Whether an answer is retracted and not reached again."""
    doubt = RETRACTED.search(after)
    if doubt is None:
        return False
    if WRONG.search(after, doubt.start()):
        return True
    values, later = NUMBER.findall(claim), NUMBER.findall(after, doubt.end())
    return bool(later) and later[-1:] != values[-1:]


def denied(text: str, start: int, end: int) -> bool:
    """Whether the words around a value deny it or change its meaning."""
    before = TURNED.split(text[max(0, start - GAP) : start])[-1]
    return DENIED.search(before) is not None or CHANGED.match(text[end : end + GAP]) is not None


def _with_unit(number: re.Match[str]) -> str:
    """A number in a text, with the known units after it: "5 cents"."""
    unit = UNIT.match(number.string, number.end())
    return number.group() + (unit.group() if unit else "")


def last_box(text: str) -> str | None:
    r"""The content of the last balanced ``\boxed{...}`` or ``\fbox{...}``; None if there is none."""
    boxes = _boxes(text)
    return _content(text, boxes[-1]) if boxes else None


def _from_boxes(text: str, boxes: list[_Box]) -> Span:
    """The last box, with those before it that only a connector separates; or the later answer that replaces it."""
    first = len(boxes) - 1
    while first > 0 and _connected(text[boxes[first - 1].end + 1 : boxes[first].start]):
        first -= 1
    contents = list(dict.fromkeys(_content(text, box) for box in boxes[first:]))
    start, end = boxes[first].start, boxes[-1].end + 1
    span = Span(", ".join(contents), "boxes" if len(contents) > 1 else "boxed")
    after = text[end : end + TAIL]
    back = WRONG_BOX.match(after) or _retraction(after, contents)
    if back is None and not DENIED_BOX.search(text[max(0, start - GAP) : start]):
        return span
    rest = after[back.end() :] if back else after
    if MARKER.search(rest):
        return final_answer(rest)
    if corrections := list(CORRECTION.finditer(after)):
        return Span(_without_prose(_clean(SENTENCE_END.split(after[corrections[-1].end() :])[0])), "corrected")
    return span._replace(rule=TAKEN)


def _retraction(after: str, contents: list[str]) -> re.Match[str] | None:
    """The first words after a box that retract it, if no other value comes before them."""
    found = TAKEN_BACK.search(after)
    if found is None or any(value not in contents for value in NUMBER.findall(after[: found.start()]) if value):
        return None
    return found


def _connected(between: str) -> bool:
    return len(between) <= GAP and BETWEEN_BOXES.fullmatch(between) is not None


class _Box(NamedTuple):
    """Where ``\\boxed`` starts, where its content starts, and where the content ends."""

    start: int
    inside: int
    end: int


def _boxes(text: str) -> list[_Box]:
    """All balanced boxes that are not inside another, in one pass over the text. Unclosed boxes do not count."""
    first = BOX.search(text) if "boxed" in text or "fbox" in text else None
    if first is None:
        return []
    opened: list[tuple[int, int, bool]] = []
    found: list[_Box] = []
    # The text before the first box matters only if it ends in a backslash, which may escape the box's own.
    for match in BOX_TOKEN.finditer(text, 0 if text[: first.start()].endswith("\\") else first.start()):
        token = match.group()
        if token == "}" and opened:
            start, inside, boxed = opened.pop()
            if boxed:
                while found and found[-1].start > start:
                    found.pop()
                found.append(_Box(start, inside, match.start()))
        elif token == "{" or len(token) > 2:
            opened.append((match.start(), match.end(), token != "{"))
    return found


def _content(text: str, box: _Box) -> str:
    content = text[box.inside : box.end].strip()
    inner = BOX.match(content)
    return content[inner.end() : -1].strip() if inner and content.endswith("}") else content


def _formulas(text: str) -> list[re.Match[str]]:
    """The formulas between dollar signs or other delimiters, but not the prose between two amounts of money."""
    return [match for match in FORMULA.finditer(text) if not _is_prose(_inside(match))]


def _inside(formula: re.Match[str]) -> str:
    return next(filter(None, formula.groups())).strip()


def _without_prose(sentence: str) -> str:
    """The formula, the only number of "Tom has 42 apples", or the first of "42 because 6 times 7 is that"; a short
    phrase stays whole."""
    if not _is_prose(sentence) or NEGATION.search(sentence):
        return sentence
    if formulas := _formulas(sentence):
        first = formulas[0]
        return sentence if denied(sentence, *first.span()) or _is_conditional(first) else _inside(first)
    sentence = ROUGHLY.sub("", sentence)
    stated = [found for found in NUMBER.finditer(sentence) if found.group()] if VERB.search(sentence) else []
    if len(stated) == 1 and not denied(sentence, *stated[0].span()) and not _is_conditional(stated[0]):
        return _with_unit(stated[0])
    if len(sentence.split()) <= PHRASE_WORDS:
        return sentence
    number = NUMBER.match(sentence)
    if not number or not number.group() or CHANGED.match(sentence, number.end()) or _is_conditional(number):
        return sentence
    return _with_unit(number)


def _is_conditional(value: re.Match[str]) -> bool:
    """Whether a condition or an alternative follows the value ("if", "or")."""
    return CONDITION.match(value.string, value.end()) is not None


def _clean(line: str) -> str:
    return line.strip().strip("*").strip().rstrip(".,;").strip("`").strip()
