"""When two answers are equal: as texts without decoration, else as numbers, else as expressions.

"5 cm", "5"                    equal: a unit only counts where both give one
"0.3333", "1/3"                equal: a decimal of three or more digits, and the other rounded to them
"2 \\sqrt{221}", "\\sqrt{884}"   equal: as expressions, by math-verify
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from dreamr.tasks.math_process import Comparison, compare_expressions

MAX_CHARS = 300
"""Longer answers are only compared as texts."""
MIN_ROUNDED_DIGITS = 3
"""Significant digits that a rounded number must have to stand for an exact one."""

LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
"""Commands that only mark their argument as text."""
_DECORATION = re.compile(r"\\left|\\right|\\!|\\,|\\;|\\:|\\ |\$|\^\{?\\circ\}?|\\circ|°|\\degree|\\%|%")
_FRACTION = re.compile(r"(?<!\d)(?<!\d )\\[dtc]?frac\s*(?:\{([^{}]+)\}|(\d))\s*(?:\{([^{}]+)\}|(\d))")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_NAME = re.compile(r"^(?:\\?[a-z∠][\\a-z∠_{}\d()']{0,30}=|\\approx|≈|~)")
"""The name of a value, as in `x=5`, or a sign for "about"."""
_NUMBER = re.compile(
    r"^(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:/[-+]?\d+\.?\d*)?)(?P<unit>[a-z]*(?:\^?\{?[23]\}?|²|³)?)$"
)
_MATHEMATICAL = re.compile(r"[\d\\+*/^<>=π√]|^[a-z]$")


def equal_texts(one: str, other: str) -> bool:
    """Whether two answers are the same words, or the same number."""
    first, second = normal(one), normal(other)
    if first == second:
        return bool(first)
    numbers = _number(first), _number(second)
    return numbers[0] is not None and numbers[1] is not None and _equal_numbers(numbers[0], numbers[1])


def equal_values(one: str, other: str) -> bool:
    """As `equal_texts`, and whether two expressions have the same value. May take seconds."""
    if equal_texts(one, other):
        return True
    first, second = normal(one), normal(other)
    if not first or not second or (_number(first) and _number(second)) or max(len(one), len(other)) > MAX_CHARS:
        return False
    if not (_MATHEMATICAL.search(first) and _MATHEMATICAL.search(second)):
        return False
    comparison = compare_expressions(_expression(one), _expression(other))
    return comparison.equal or _equal_rounded(first, second, comparison)


def normal(text: str) -> str:
    """The form in which answers are compared."""
    text = LATEX_TEXT.sub(r"\1", text.replace("−", "-").replace("×", "\\times"))
    text = _THOUSANDS.sub("", _DECORATION.sub("", _FRACTION.sub(_as_quotient, text))).lower().rstrip(".")
    return _NAME.sub("", re.sub(r"\s+", "", text))


def _expression(text: str) -> str:
    return LATEX_TEXT.sub(r"\1", text).replace("$", "").strip()


def _as_quotient(fraction: re.Match[str]) -> str:
    above, below = (part if re.fullmatch(r"-?[\w.]+", part) else f"({part})" for part in fraction.groups() if part)
    return f"{above}/{below}"


@dataclass(frozen=True, slots=True)
class _Number:
    value: Fraction
    unit: str = ""
    decimals: int | None = None
    """Digits after the point; None for whole numbers and fractions, which are exact."""
    digits: int = 0
    """Significant digits."""

    def stands_for(self, other: Fraction) -> bool:
        """Whether this is the other number, rounded."""
        if self.decimals is None or self.digits < MIN_ROUNDED_DIGITS:
            return False
        return abs(self.value - other) <= Fraction(1, 2 * 10**self.decimals)


def _number(text: str) -> _Number | None:
    found = _NUMBER.match(text) if len(text) <= MAX_CHARS else None
    if found is None:
        return None
    above, slash, below = found["number"].partition("/")
    if slash:  # a fraction over nothing is no number
        return _Number(Fraction(above) / Fraction(below), found["unit"]) if Fraction(below) else None
    point = above.find(".")
    decimals = len(above) - point - 1 if point >= 0 else None
    return _Number(Fraction(above), found["unit"], decimals, len(above.lstrip("+-0.").replace(".", "")))


def _equal_numbers(one: _Number, other: _Number) -> bool:
    if one.unit and other.unit and one.unit != other.unit:
        return False
    return one.value == other.value or one.stands_for(other.value) or other.stands_for(one.value)


def _equal_rounded(first: str, second: str, comparison: Comparison) -> bool:
    """Whether one is a decimal for which the other, an expression, is too long: 8.66 and 5 sqrt(3)."""
    for text, value in ((first, comparison.values[1]), (second, comparison.values[0])):
        number = _number(text)
        if number is not None and value is not None and number.stands_for(Fraction(value)):
            return True
    return False
