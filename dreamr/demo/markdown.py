"""Puts a demo's report into a text: `python -m dreamr.demo.markdown docs/results/demo.json README.md`.

The text between the two marks is replaced, so that no number in it is ever written by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

BEGIN, END = "<!-- demo results: begin -->", "<!-- demo results: end -->"


def table(report: dict[str, Any]) -> str:
    """The report of `dreamr demo --out` as a Markdown table, with what is needed to judge and repeat it."""
    methods = report["methods"]
    head = ["", *(f"`{one['method']}`" for one in methods)]
    rows = [
        ["right", *(f"{one['right']} of {one['num_problems']}" for one in methods)],
        ["unparsed answers", *(str(one["unparsed"]) for one in methods)],
        ["mean wall time", *(f"{one['mean_wall_s']:.3f} s" for one in methods)],
        ["speedup (95 % interval)", *(_speedup(one["speedup"]) for one in methods)],
        ["acceptance rate", *(_percent(one["acceptance_rate"]) for one in methods)],
        ["coverage by the draft", *(_percent(one["coverage"]) for one in methods)],
        ["tokens committed", *(str(one["committed_tokens"]) for one in methods)],
        [
            "wasted by draft / target",
            *(f"{one['wasted_draft_tokens']} / {one['wasted_target_tokens']}" for one in methods),
        ],
        ["orchestration share", *(_percent(one["orchestration_share"]) for one in methods)],
        ["actors, threads", *(f"{', '.join(one['actors'])}: {one['threads']}" for one in methods)],
    ]
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    machine = report["machine"]
    sizes = ", ".join(f"{role} {model['num_parameters'] / 1e6:.1f} M" for role, model in report["models"].items())
    hardware = f"{machine['cpu']}, {machine['cores']} cores, no GPU"
    made = f"`{report['command']}` on {hardware}; batch size 1; parameters: {sizes}."
    return "\n".join([*lines, "", made])


def _speedup(speedup: dict[str, float | None] | None) -> str:
    if speedup is None:
        return "1"
    interval = f" ({speedup['low']:.2f} to {speedup['high']:.2f})" if speedup["low"] is not None else ""
    return f"**{speedup['mean']:.2f}**{interval}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def main(report: Path, text: Path) -> None:
    """Write the report's table into the text."""
    before, _, rest = text.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise typer.BadParameter(f"{text} has no place for the table: put {BEGIN} and {END} into it.")
    filled = table(json.loads(report.read_text(encoding="utf-8")))
    text.write_text(f"{before}{BEGIN}\n{filled}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
