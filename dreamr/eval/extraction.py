"""The answer in what a model wrote. The reasoning is cut off first, the last match wins, and what cannot be found is
None: it counts as wrong, nobody guesses. Several letters at once are no answer.

    text ─▶ behind the last </think> ─▶ \\boxed{...} ─▶ "the answer is ..." ─▶ a letter or a short text by itself
                                        first kind that occurs; within a kind, the last one
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dreamr.eval.equality import LATEX_TEXT, same_text

END_OF_REASONING = "</think>"
_VERB = r"(?:\s+(?:is|would be|should be|must be))?\s*[:=]?\**\s*(?:(?:the\s+)?(?:option|choice)\s+)?"
_REST = r"(?=(?P<rest>[^\n]+))"
_STATED_LETTER = re.compile(rf"\b(?:answer|(?:correct|right|best) (?:option|choice))\b{_VERB}{_REST}", re.IGNORECASE)
_NAMED_OPTION = re.compile(rf"\b(?:choice|option)\b{_VERB}{_REST}", re.IGNORECASE)
"""Options are also named to be dismissed, so this counts only where nothing is stated as the answer."""
_NOT_RIGHT = r"(?:also\s+)?(?:not|wrong|incorrect|false|too)\b"
_DISMISSED = re.compile(rf"\W*[A-H]\W*\s(?:is|was)\s+{_NOT_RIGHT}")
_STATED_TEXT = re.compile(
    r"\banswer\**\s*(?:is|would be|should be|must be|:|=)\s*:?(?=(?P<rest>[^\n]+))", re.IGNORECASE
)
_MARKUP = "*_`$ \t\n"
_BRACKETS = re.compile(r"\\[()\[\]]")
"""LaTeX's marks of a formula."""
MAX_SHORT_WORDS = 6
"""A reply of so many words or fewer, on one line, is an answer as it stands."""


def after_reasoning(text: str, *, truncated: bool = False) -> str:
    """What follows the reasoning. Nothing does when the text was cut off before the reasoning ended."""
    _, closed, behind = text.rpartition(END_OF_REASONING)
    if closed:
        return behind.strip()
    return "" if truncated or "<think>" in text else text.strip()


def extract_letter(text: str, letters: str, options: Sequence[str] = ()) -> str | None:
    """The letter of the chosen option; `text` is what follows the reasoning."""
    if (box := last_boxed(text)) is not None:
        if _says_several(box, letters):
            return None
        return _leading_letter(box, letters) or _letter_of_option(box, letters, options)
    stated = [found["rest"] for found in _STATED_LETTER.finditer(text)]
    named = [found["rest"] for found in _NAMED_OPTION.finditer(text) if not _DISMISSED.match(found["rest"])]
    for rest in (*reversed(stated), *reversed(named), text.rpartition("\n")[2]):
        if _says_several(rest, letters):
            return None
        if letter := _leading_letter(rest, letters):
            return letter
    return _bare_letter(text, letters) or _letter_of_option(text, letters, options)


def extract_text(text: str) -> str | None:
    """The answer as the model wrote it; `text` is what follows the reasoning."""
    if (box := last_boxed(text)) is not None:
        return _plain(box) or None
    if stated := list(_STATED_TEXT.finditer(text)):
        return _plain(stated[-1]["rest"]) or None
    is_short = "\n" not in text and len(text.split()) <= MAX_SHORT_WORDS
    return (_plain(text) or None) if is_short else None


def last_boxed(text: str) -> str | None:
    """What stands in the last complete \\boxed{...}, whose braces may be nested."""
    for start in reversed([found.end() for found in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
    return None


def _leading_letter(text: str, letters: str) -> str | None:
    """The letter that a text such as "(B) 30 degrees" or "B is right" begins with; "A dog" does not begin with one."""
    behind = r"[)\].:,;*]|\s*$|\s+(?![a-z])|\s+(?:is|because|since|and|but|not)\b"
    found = re.match(rf"[(\[]?([{letters}])(?:{behind})", _plain(text))
    return found[1] if found else None


def _several(letters: str) -> re.Pattern[str]:
    """Several letters in a row, such as "B or C" and "A, C"; in "B and C is wrong" there is one."""
    one = rf"[(\[]?[{letters}][)\]]?"
    further = rf"\s*(?:[,/&]|,?\s*\b(?:or|and)\b)\s*(?:option\s+)?{one}(?![\w'])(?!\s+(?:is|are)\s+{_NOT_RIGHT})"
    return re.compile(rf"(?<![\w']){one}(?:{further})+")


def _says_several(text: str, letters: str) -> bool:
    """Whether the text begins with several letters: an answer names one."""
    return _several(letters).match(_plain(text)) is not None


def _bare_letter(text: str, letters: str) -> str | None:
    """The last letter that stands by itself, unless it is one of several."""
    bare = list(re.finditer(rf"(?:^|[\s(\[*])([{letters}])(?:[\s)\].,:;*!]|$)(?!\s*[a-z])", text))
    if not bare or any(found.end() > bare[-1].start(1) for found in _several(letters).finditer(text)):
        return None
    return bare[-1][1]


def _letter_of_option(text: str, letters: str, options: Sequence[str]) -> str | None:
    """The letter of the one option that the text says in full."""
    said = [letter for letter, option in zip(letters, options, strict=False) if same_text(_plain(text), option)]
    return said[0] if len(said) == 1 else None


def _plain(text: str) -> str:
    """Without LaTeX's text commands and brackets, the signs of Markdown around it, and the full stop."""
    text = _BRACKETS.sub("", LATEX_TEXT.sub(r"\1", text))
    return text.strip(_MARKUP).removesuffix(".").strip(_MARKUP)
