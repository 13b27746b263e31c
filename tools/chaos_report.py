"""The report of `tools.chaos` as Markdown tables."""

from __future__ import annotations

from typing import Any

from dreamr.markdown import markdown_table
from tools.reports import conditions


def table(report: dict[str, Any]) -> str:
    """Both tables, with the command and the machine."""
    parts = []
    if report["faults"]:
        parts.append(markdown_table([_FAULTS, *map(_fault, report["faults"])]))
    if report["junk"]:
        parts.append(markdown_table([_JUNK, *(_junk(row, report["junk"][0]) for row in report["junk"])]))
    return "\n\n".join([*parts, conditions(report)])


_FAULTS = ["victim", "fault", "failed once", "failed with retries", "recovery", "longest stall", "different answers"]
_JUNK = ["junk", "valid requests failed", "p50", "p95", "p95 against no junk", "answers to junk"]


def _fault(row: dict[str, Any]) -> list[str]:
    recovery = row["recovery_s"]
    return [
        f"{row['what']}, with a spare" if row["spare"] else row["what"],
        row["fault"],
        f"{row['failed_once']} of {row['requests']}",
        f"{row['failed']} of {row['requests']}",
        "never" if recovery is None else f"{recovery:.1f} s",
        f"{row['longest_stall_s']:.1f} s",
        str(row["different"]),
    ]


def _junk(row: dict[str, Any], calm: dict[str, Any]) -> list[str]:
    said = ", ".join(f"{status}: {number}" for status, number in sorted(row["junk_statuses"].items()))
    return [
        row["junk"],
        f"{row['failed']} of {row['requests']}",
        f"{row['p50_s']:.2f} s",
        f"{row['p95_s']:.2f} s",
        f"{row['p95_s'] / calm['p95_s']:.2f}",
        said or "–",
    ]
