"""Which entries of a report belong to one sweep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dreamr.bench.schema import MethodReport, Report

Points = list[tuple[float, MethodReport]]


def sweeps(methods: Sequence[MethodReport]) -> dict[tuple[str, str], Points]:
    """Entries that differ in their last setting alone, by (name without it, setting), where it has several values."""
    found: dict[tuple[str, str], Points] = defaultdict(list)
    for one in methods:
        name, colon, settings = one.name.partition(":")
        rest, _, last = settings.rpartition("+")
        key, _, value = last.partition("=")
        try:
            found[name + colon * bool(rest) + rest, key].append((float(value), one))
        except ValueError:
            continue  # an entry without settings, or one whose setting is no number
    return {where: sorted(points, key=lambda point: point[0]) for where, points in found.items() if len(points) > 1}


def swept_settings(report: Report) -> list[str]:
    """The settings that have a picture."""
    return list(dict.fromkeys(setting for _, setting in sweeps(report.methods)))
