"""The final answer in what a model wrote, and whether it is the expected one. No answer found counts as wrong."""

from __future__ import annotations

import re
from typing import Literal

from dreamr.tasks.ledger import extract_answer

AnswerKind = Literal["ledger", "math", "letter", "text"]
"""`ledger`: the number on the answer line. The others stand in `\\boxed{}`: a number or expression (`math`), an
option's letter (`letter`), or words, case and spaces aside (`text`)."""

_LETTER = re.compile(r"\(?\b([A-Z])\b\)?")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf)\{([^}]*)\}")
_DECORATION = re.compile(r"\\(?:left|right|[!,;:])|\^\{?\\circ\}?|\\circ|[$°]")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:/\d+)?")


def is_correct(kind: AnswerKind, expected: str, text: str) -> bool:
    """Whether the last answer that `text` gives is `expected`."""
    given = given_answer(kind, text)
    if given is None:
        return False
    match kind:
        case "ledger":
            return given == expected
        case "letter":
            return given == expected.upper()
        case "math":
            return _same_value(given, expected)
        case "text":
            return _plain(given) == _plain(expected)


def given_answer(kind: AnswerKind, text: str) -> str | None:
    """The last answer that `text` gives; None when it gives none, or one that cannot be read."""
    answer = after_reasoning(text)
    if kind == "ledger":
        found = extract_answer(answer)
        return None if found is None else str(found)
    given = _boxed(answer)
    if given is None or kind != "letter":
        return given
    letters = _LETTER.findall(given.upper())
    return letters[0] if len(letters) == 1 else None


def after_reasoning(text: str) -> str:
    """What follows the reasoning: nothing when it was opened and never closed."""
    answer = text.rpartition("</think>")[2]
    return "" if "<think>" in answer else answer


def _boxed(answer: str) -> str | None:
    """What the last `\\boxed{...}` holds, nested braces included."""
    start = answer.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    body = answer[start + len("\\boxed") :]
    for place, char in enumerate(body):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return body[1:place].strip()
    return None


def _same_value(given: str, expected: str) -> bool:
    """Numbers by value, everything else as it is written, LaTeX spacing and dollar signs aside."""
    one, two = _number(given), _number(expected)
    if one is not None and two is not None:
        return abs(one - two) <= 1e-6 * max(1.0, abs(two))
    return _plain(given) == _plain(expected)


def _number(text: str) -> float | None:
    text = _plain(text).replace(" ", "")
    fraction = re.fullmatch(r"\\d?frac\{(-?\d+)\}\{(\d+)\}", text)
    if fraction:
        text = f"{fraction[1]}/{fraction[2]}"
    if not _NUMBER.fullmatch(text):
        return None
    numerator, _, denominator = text.partition("/")
    return None if denominator == "0" else float(numerator) / float(denominator or 1)


def _plain(text: str) -> str:
    """Lower case, single spaces, without dollar and degree signs and what LaTeX adds for looks."""
    text = _TEXT_COMMAND.sub(r"\1", text)
    text = _DECORATION.sub("", text)
    return " ".join(text.lower().split()).rstrip(".")
