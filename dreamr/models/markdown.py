"""Puts an evaluation of the pair into a text:
`python -m dreamr.models.markdown docs/results/embedded_pair.json docs/embedded-pair.md`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from dreamr.documents import fill, markdown_table, percent

NAME = "pair results"


def tables(report: dict[str, Any]) -> str:
    """The output of `dreamr.models.evaluate` as two Markdown tables."""
    target, draft = report["alone"]["target"], report["alone"]["draft"]
    alone = [
        ["alone, greedy", "target", "draft"],
        *([name, percent(target[key], 1), percent(draft[key], 1)] for name, key in _SHARES.items()),
        ["tokens per step", f"{target['tokens_per_step']:.1f}", f"{draft['tokens_per_step']:.1f}"],
        ["time of a step", f"{target['step_ms']:.1f} ms", f"{draft['step_ms']:.1f} ms"],
        ["parameters", *(f"{report['num_parameters'][role] / 1e6:.2f} M" for role in ("target", "draft"))],
    ]
    greedy, sampled = report["verdicts_greedy"], report["verdicts_temperature_1"]
    verdicts = [
        ["verdicts on drafted steps", "greedy", "temperature 1"],
        ["steps judged", str(greedy["num_steps"]), str(sampled["num_steps"])],
        *([name, percent(greedy[key], 1), percent(sampled[key], 1)] for name, key in _VERDICTS.items()),
        ["time of a verdict", f"{greedy['verdict_ms']:.1f} ms", f"{sampled['verdict_ms']:.1f} ms"],
    ]
    measured = f"{report['num_problems']} problems; {report['machine']}. "
    ratio = f"A step of the target takes {report['step_time_ratio']:.1f} times as long as one of the draft."
    own = f" Of its own right steps, the target accepts {percent(report['own_right_steps_accepted'], 1)}."
    return f"{markdown_table(alone)}\n\n{markdown_table(verdicts)}\n\n{measured}{ratio}{own}"


_SHARES = {
    "right answers": "right",
    "unparsed answers": "unparsed",
    "right steps": "valid_steps",
    "concise steps": "concise_steps",
}
_VERDICTS = {
    "share of them that are right": "valid",
    "accepted": "accepted",
    "right ones accepted": "right_accepted",
    "wrong ones rejected": "wrong_rejected",
    "balanced accuracy": "balanced_accuracy",
    "right concise ones accepted": "concise_right_accepted",
}


def main(report: Path, document: Path) -> None:
    """Write the tables into the document."""
    fill(document, NAME, tables(json.loads(report.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    typer.run(main)
