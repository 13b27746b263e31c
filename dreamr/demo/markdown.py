"""Puts a demo's report into a text: `python -m dreamr.demo.markdown docs/results/demo.json README.md`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from dreamr.documents import fill, markdown_table, percent

NAME = "demo results"


def table(report: dict[str, Any]) -> str:
    """The report of `dreamr demo --out` as a Markdown table, with what is needed to judge and repeat it."""
    methods = report["methods"]
    rows = [
        ["", *(f"`{one['method']}`" for one in methods)],
        ["right", *(f"{one['right']} of {one['num_problems']}" for one in methods)],
        ["unparsed answers", *(str(one["unparsed"]) for one in methods)],
        ["mean wall time", *(f"{one['mean_wall_s']:.3f} s" for one in methods)],
        ["speedup (95 % interval)", *(_speedup(one["speedup"]) for one in methods)],
        ["acceptance rate", *(percent(one["acceptance_rate"]) for one in methods)],
        ["coverage by the draft", *(percent(one["coverage"]) for one in methods)],
        ["tokens committed", *(str(one["committed_tokens"]) for one in methods)],
        [
            "wasted by draft, target",
            *(f"{one['wasted_draft_tokens']}, {one['wasted_target_tokens']}" for one in methods),
        ],
        ["orchestration share", *(percent(one["orchestration_share"]) for one in methods)],
        ["actors", *(", ".join(one["actors"]) for one in methods)],
        ["compute threads", *(str(one["threads"]) for one in methods)],
        ["GPUs", *(f"{one['gpus']:g}" for one in methods)],
    ]
    machine = report["machine"]
    sizes = ", ".join(f"{role} {model['num_parameters'] / 1e6:.1f} M" for role, model in report["models"].items())
    hardware = f"{machine['cpu']}, {machine['cores']} cores"
    return f"{markdown_table(rows)}\n\n`{report['command']}` on {hardware}; batch size 1; parameters: {sizes}."


def _speedup(speedup: dict[str, float | None] | None) -> str:
    if speedup is None:
        return "1"
    interval = f" ({speedup['low']:.2f} to {speedup['high']:.2f})" if speedup["low"] is not None else ""
    return f"**{speedup['mean']:.2f}**{interval}"


def main(report: Path, document: Path, name: str = NAME) -> None:
    """Write the report's table into the document, between the marks of that name."""
    fill(document, name, table(json.loads(report.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    typer.run(main)
