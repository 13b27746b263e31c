"""When two written answers are the same: as numbers where both are numbers, else as texts without their decoration."""

from __future__ import annotations

import math
import re

_DECORATION = re.compile(r"\\left|\\right|\\!|\\,|\\;|\\ |\$|\^\{?\\circ\}?|°|\\degree|\\%|%")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
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
    return None not in values and math.isclose(values[0] or 0.0, values[1] or 0.0, rel_tol=1e-4, abs_tol=1e-9)


def normal(text: str) -> str:
    """The form in which answers are compared."""
    text = _FRACTION.sub(r"\1/\2", _LATEX_TEXT.sub(r"\1", text))
    text = _THOUSANDS.sub("", _DECORATION.sub("", text)).lower().rstrip(".")
    text = re.sub(r"\s+", "", text)
    return _NAME.sub("", text)


def _value(number: str) -> float | None:
    above, slash, below = number.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except ZeroDivisionError:
        return None
