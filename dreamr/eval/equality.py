"""When two written answers are the same: as numbers where both are numbers, else as texts without their decoration."""

from __future__ import annotations

import math
import re

_DECORATION = re.compile(r"\\left|\\right|\\!|\\,|\\;|\\ |\$|\^\{?\\circ\}?|°|\\degree|\\%|%")
LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
"""The commands that only say that what they hold is text."""
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_NUMBER = re.compile(r"^(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:/[-+]?\d+\.?\d*)?)(?P<unit>[a-z]*)$")
_NAME = re.compile(r"^\\?[a-z∠]+=")
"""What a value is called, as in `x=5`."""
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")


def same_text(one: str, other: str) -> bool:
    """Whether two answers say the same. A unit counts only where both give one."""
    first, second = normal(one), normal(other)
    if first == second:
        return bool(first)
    left, right = _NUMBER.match(first), _NUMBER.match(second)
    if left is None or right is None:
        return False
    if left["unit"] and right["unit"] and left["unit"] != right["unit"]:
        return False
    values = _value(left["number"]), _value(right["number"])
    return math.isclose(*values, rel_tol=1e-4, abs_tol=1e-9)


def normal(text: str) -> str:
    """The form in which answers are compared."""
    text = _FRACTION.sub(r"\1/\2", LATEX_TEXT.sub(r"\1", text))
    text = _THOUSANDS.sub("", _DECORATION.sub("", text)).lower().rstrip(".")
    text = re.sub(r"\s+", "", text)
    return _NAME.sub("", text)


def _value(number: str) -> float:
    """A fraction with nothing below is no number: it is equal to none."""
    above, slash, below = number.partition("/")
    if not slash:
        return float(above)
    return float(above) / float(below) if float(below) else math.nan
