"""The answer in a model's text, and whether it is correct: one definition for rewards, evaluation, bench and demo.

    text ─▶ after the last </think> ─▶ \\boxed{...} ─▶ "the answer is ..." ─▶ a single letter or a short text
                                       first kind that occurs; within a kind, the last one

A text without an answer that can be found is unparsed and counts as wrong; nothing is guessed. Reasoning that was
opened and never closed is not searched. How two answers are compared: `dreamr.tasks.equality`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dreamr.tasks.equality import LATEX_TEXT, equal_texts, equal_values
from dreamr.types import END_OF_THOUGHT, START_OF_THOUGHT

AnswerKind = Literal["ledger", "value", "letter", "text"]
"""`ledger`: a whole number. `value`: a number or an expression. `letter`: the letter of an option. `text`: words or a
number, case and spaces aside."""

LETTERS = string.ascii_uppercase[:8]
MAX_CHARS = 20_000
"""Only this many characters at the end of a text are searched."""
MAX_BOX_CHARS, MAX_BOXES = 1000, 50
MAX_SHORT_WORDS = 6
"""A reply on one line with at most this many words is itself an answer."""


@dataclass(frozen=True, slots=True)
class AnswerKey:
    """The correct answer of one question."""

    kind: AnswerKind
    answers: tuple[str, ...]
    """Any of them is correct."""
    letters: str = LETTERS
    """The options' letters, where the answer is one of them."""
    options: tuple[str, ...] = ()
    """The options' texts, if known: a choice may be given by its full text as well."""

    def given(self, text: str, *, truncated: bool = False) -> str | None:
        """The last answer in `text`; None when there is none. `truncated`: the text was cut off before its end."""
        found = after_reasoning(text[-MAX_CHARS:], truncated=truncated)
        # Also keeps the patterns below linear, in which blanks may match in two places.
        found = re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", found)).strip()
        match self.kind:
            case "letter":
                return _letter(found, self.letters, self.options)
            case "ledger":
                return _whole_number(_text(found))
            case _:
                return _text(found)

    def accepts(self, given: str | None) -> bool:
        """Whether an answer that `given` found is correct."""
        if given is None:
            return False
        match self.kind:
            case "letter":
                return any(given == answer.strip("() ").upper() for answer in self.answers)
            case "text":
                return any(equal_texts(answer, given) for answer in self.answers)
            case _:
                return any(equal_values(answer, given) for answer in self.answers)


def given_answer(kind: AnswerKind, text: str, *, truncated: bool = False) -> str | None:
    """The last answer that `text` gives; None when it gives none."""
    return AnswerKey(kind, ()).given(text, truncated=truncated)


def is_correct(kind: AnswerKind, expected: str, text: str, *, truncated: bool = False) -> bool:
    """Whether the last answer that `text` gives is `expected`.

    May take seconds for expressions that are hard to compare: call it outside of an event loop.
    """
    key = AnswerKey(kind, (expected,))
    return key.accepts(key.given(text, truncated=truncated))


def after_reasoning(text: str, *, truncated: bool = False) -> str:
    """The text outside of the reasoning: empty when the text was cut off before the reasoning ended."""
    _, closed, answer = text.rpartition(END_OF_THOUGHT)
    if not closed and truncated:
        return ""
    return answer.partition(START_OF_THOUGHT)[0].strip()


# -- letters -----------------------------------------------------------------------------------------------------------

_VERB = r"(?:\s+(?:is|would be|should be|must be))?\s*[:=]?\**\s*(?:(?:the\s+)?(?:option|choice)\s+)?"
_REST = r"(?=(?P<rest>[^\n]{1,500}))"
_STATED_LETTER = re.compile(rf"\b(?:answer|(?:correct|right|best) (?:option|choice))\b{_VERB}{_REST}", re.IGNORECASE)
_NAMED_OPTION = re.compile(rf"\b(?:choice|option)\b{_VERB}{_REST}", re.IGNORECASE)
"""Options are also named to be dismissed, so this counts only where nothing is stated as the answer."""
_NOT_CORRECT = r"(?:also\s+)?(?:not|wrong|incorrect|false|too)\b"
_DISMISSED = re.compile(rf"\W*[A-H]\W*\s(?:is|was)\s+{_NOT_CORRECT}")


def _letter(text: str, letters: str, options: Sequence[str]) -> str | None:
    """The letter of the chosen option. Several letters at once are no answer."""
    if (box := last_boxed(text)) is not None:
        box = _plain(box)
        box = box.upper() if len(box) == 1 else box
        if _names_several(box, letters):
            return None
        return _leading_letter(box, letters) or _letter_of_option(box, letters, options)
    stated = [found["rest"] for found in _STATED_LETTER.finditer(text)]
    named = [found["rest"] for found in _NAMED_OPTION.finditer(text) if not _DISMISSED.match(found["rest"])]
    for rest in (*reversed(stated), *reversed(named), text.rpartition("\n")[2][:500]):
        if _names_several(rest, letters):
            return None
        if letter := _leading_letter(rest, letters):
            return letter
    return _bare_letter(text, letters) or _letter_of_option(text, letters, options)


def _leading_letter(text: str, letters: str) -> str | None:
    """The letter that a text such as "(B) 30 degrees" or "B is right" begins with; "A dog" does not begin with one."""
    following = r"[)\].:,;*]|\s*$|\s+(?![a-z])|\s+(?:is|because|since|and|but|not)\b"
    found = re.match(rf"[(\[]?([{letters}])(?:{following})", _plain(text))
    return found[1] if found else None


def _several(letters: str) -> re.Pattern[str]:
    """Several letters in a row, such as "B or C" and "A, C"; in "B and C is wrong" there is one."""
    one = rf"[(\[]?[{letters}][)\]]?"
    further = rf"\s*(?:[,/&]|,?\s*\b(?:or|and)\b)\s*(?:option\s+)?{one}(?![\w'])(?!\s+(?:is|are)\s+{_NOT_CORRECT})"
    return re.compile(rf"(?<![\w']){one}(?:{further})+")


def _names_several(text: str, letters: str) -> bool:
    return _several(letters).match(_plain(text)) is not None


def _bare_letter(text: str, letters: str) -> str | None:
    """The last letter that stands by itself, unless it is one of several."""
    bare = list(re.finditer(rf"(?:^|[\s(\[*])([{letters}])(?:[\s)\].,:;*!]|$)(?!\s*[a-z])", text))
    if not bare or any(found.end() > bare[-1].start(1) for found in _several(letters).finditer(text)):
        return None
    return bare[-1][1]


def _letter_of_option(text: str, letters: str, options: Sequence[str]) -> str | None:
    """The letter of the only option whose full text this is."""
    said = [letter for letter, option in zip(letters, options, strict=False) if equal_texts(_plain(text), option)]
    return said[0] if len(said) == 1 else None


# -- texts and numbers -------------------------------------------------------------------------------------------------

_STATED_TEXT = re.compile(rf"\banswer\**\s*(?:is|would be|should be|must be|:|=)\s*:?{_REST}", re.IGNORECASE)
_NUMBERS = re.compile(r"[-−+]?\d[\d,]*(?:[./]\d+)?")
_MARKUP = "*_`$ \t\n"
_BRACKETS = re.compile(r"\\[()\[\]]")
"""LaTeX's marks of a formula."""


def _text(text: str) -> str | None:
    """The answer as the model wrote it."""
    if (box := last_boxed(text)) is not None:
        return _plain(box) or None
    if stated := list(_STATED_TEXT.finditer(text)):
        return _plain(stated[-1]["rest"]) or None
    is_short = "\n" not in text and len(text.split()) <= MAX_SHORT_WORDS
    return (_plain(text) or None) if is_short else None


def _whole_number(text: str | None) -> str | None:
    """The number in a short text such as "42." or "x = 42 points", if there is one and it is whole."""
    numbers = [found.replace(",", "").replace("−", "-") for found in _NUMBERS.findall(text or "")]
    if len(numbers) != 1 or not re.fullmatch(r"[-+]?\d+(?:\.0+)?", numbers[0]):
        return None
    return str(int(numbers[0].partition(".")[0]))


def last_boxed(text: str) -> str | None:
    """What the last complete \\boxed{...} holds, whose braces may be nested."""
    starts = [found.end() for found in re.finditer(r"\\boxed\s*\{", text)]
    for start in reversed(starts[-MAX_BOXES:]):
        depth = 1
        for position in range(start, min(len(text), start + MAX_BOX_CHARS)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
    return None


def _plain(text: str) -> str:
    """Without LaTeX's text commands and brackets, the signs of Markdown around it, and the full stop."""
    text = _BRACKETS.sub("", LATEX_TEXT.sub(r"\1", text))
    return text.strip(_MARKUP).removesuffix(".").strip(_MARKUP)
