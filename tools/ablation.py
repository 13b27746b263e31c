"""One run per weighting of the reward: `python -m tools.ablation`, then `tools.doc_tables`; see docs/training.md.

Writes the runs' folders, one picture with all of them, and one JSON file with what each run ended with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamr.errors import reported
from dreamr.markdown import markdown_table, percent
from rl.checkpoints import CONFIG
from rl.checks import run_folder
from rl.config import RewardSettings, load_sapo_config
from rl.curves import draw_curves, load_runs
from rl.history import read_history
from rl.train import start

WEIGHTS: dict[str, tuple[float, float, float]] = {
    "equal": (1, 1, 1),
    "outcome-heavy": (5, 1, 1),
    "draft-heavy": (1, 5, 1),
    "length-heavy": (1, 1, 5),
}
"""Weights of R_outcome, R_draft, R_length."""
PICTURE = "images/ablation.png"
"""Where the page has the picture."""
_LAST = 20
"""Batches of rollouts, the last ones, over which the training curves are averaged."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="YAML file of one run; its `run` is the folder of all of them.")],
    out: Annotated[Path, typer.Option(help="JSON file for the results.")],
    picture: Annotated[Path, typer.Option(help="Picture of all curves: .png or .html.")],
) -> None:
    """Train once per weighting, from the same draft on the same problems. Runs that are finished are not made again."""
    with reported():
        settings = load_sapo_config(config)
        folders = []
        for name, (outcome, draft, length) in WEIGHTS.items():
            folder = run_folder(settings.run) / name
            rewards = RewardSettings.model_validate(
                settings.rewards.model_dump() | {"outcome": outcome, "draft": draft, "length": length}
            )
            folders.append(folder)
            if not (folder / "draft").exists():
                one = settings.model_copy(update={"run": folder, "rewards": rewards})
                start(one, resume=(folder / CONFIG).exists())
        results = {folder.name: {"weights": WEIGHTS[folder.name], **ended_with(folder)} for folder in folders}
        out.write_text(json.dumps({"runs": results}, indent=2) + "\n", encoding="utf-8")
        draw_curves(load_runs(folders), picture)


def section(results: dict[str, Any]) -> str:
    """Table and picture, as the page has them."""
    return f"{table(results)}\n\n![Curves of the runs, one colour per weighting]({PICTURE})"


def ended_with(run: Path) -> dict[str, Any]:
    """First and last evaluation of a run, and the means of its last steps."""
    rows = read_history(run)
    evaluations = [row for row in rows if "eval/accuracy" in row]
    steps = [row for row in rows if "reward" in row]
    names = ("rewards/outcome/mean", "rewards/draft/mean", "rewards/length/mean", "rollout/step_tokens")
    last = steps[-_LAST:]
    return {
        "steps": rows[-1]["step"],
        "before": {name: value for name, value in evaluations[0].items() if name.startswith("eval/")},
        "after": {name: value for name, value in evaluations[-1].items() if name.startswith("eval/")},
        "training": {name: sum(row[name] for row in last) / len(last) for name in names},
    }


def table(results: dict[str, Any]) -> str:
    """One row per weighting, above them the draft that all began with."""
    measured = ["acceptance", "tokens per drafted step", "right with the target", "speedup of FPSR"]
    runs: dict[str, Any] = results["runs"]
    first = next(iter(runs.values()))
    rows = [["weights", "outcome : draft : length", *measured], ["before training", "", *_cells(first["before"])]]
    for name, one in runs.items():
        rows.append([name, " : ".join(f"{weight:g}" for weight in one["weights"]), *_cells(one["after"])])
    return markdown_table(rows)


def _cells(evaluation: dict[str, float]) -> list[str]:
    return [
        percent(evaluation["eval/acceptance_rate"], 1),
        f"{evaluation['eval/drafted_step_tokens']:.1f}",
        percent(evaluation["eval/accuracy"], 1),
        f"{evaluation['eval/fpsr_speedup']:.2f}",
    ]


if __name__ == "__main__":
    app()
