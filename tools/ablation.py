"""One run per weighting of the reward: `python -m tools.ablation`, then `tools.doc_tables`; see docs/training.md.

Writes a folder per run, one picture with the curves of all, and one JSON file with their results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamr.errors import reported
from dreamr.markdown import markdown_table, percent
from rl.checkpoints import CONFIG, run_folder
from rl.config import RewardSettings, load_sapo_config
from rl.curves import draw_curves, load_runs
from rl.history import read_history
from rl.rewards import REWARD_PARTS
from rl.train import start

HEAVY = 5.0
REWARDS: dict[str, dict[str, Any]] = {
    "equal": {},
    **{f"{part.name}-heavy": {part.name: HEAVY} for part in REWARD_PARTS},
}
"""Changes of each run to the rewards of the configuration, whose weights are equal."""
PICTURE = "images/ablation.png"
"""Path of the picture, relative to docs/training.md."""
_LAST = 20
"""Number of last batches of rollouts over which the training curves are averaged."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    config: Annotated[Path, typer.Option(help="YAML file of one run, with equal weights; `run` is the folder of all.")],
    out: Annotated[Path, typer.Option(help="JSON file for the results.")],
    picture: Annotated[Path, typer.Option(help="Picture of all curves: .png or .html.")],
) -> None:
    """Train once per weighting, from the same draft on the same problems. Finished runs are not repeated."""
    with reported():
        settings = load_sapo_config(config)
        above = run_folder(settings.run, config.stem)
        results = {}
        for name, changes in REWARDS.items():
            rewards = RewardSettings.model_validate(settings.rewards.model_dump() | changes)
            if not (above / name / "draft").exists():
                one = settings.model_copy(update={"run": above / name, "rewards": rewards})
                start(one, resume=(above / name / CONFIG).exists())
            weights = [part.weight(rewards) for part in REWARD_PARTS]
            results[name] = {"weights": weights, **ended_with(above / name)}
        out.write_text(json.dumps({"runs": results}, indent=2) + "\n", encoding="utf-8")
        draw_curves(load_runs([above / name for name in REWARDS]), picture)


def section(results: dict[str, Any]) -> str:
    """The section of docs/training.md: table and picture."""
    return f"{table(results)}\n\n![Curves of the runs, one colour per weighting]({PICTURE})"


def ended_with(run: Path) -> dict[str, Any]:
    """First and last evaluation of a run, and the means of its last steps."""
    rows = read_history(run)
    evaluations = [row for row in rows if "eval/accuracy" in row]
    steps = [row for row in rows if "reward" in row]
    names = [*(f"rewards/{part.name}/mean" for part in REWARD_PARTS), "rollout/step_tokens"]
    last = steps[-_LAST:]
    return {
        "steps": rows[-1]["step"],
        "before": {name: value for name, value in evaluations[0].items() if name.startswith("eval/")},
        "after": {name: value for name, value in evaluations[-1].items() if name.startswith("eval/")},
        "training": {name: sum(row[name] for row in last) / len(last) for name in names},
    }


def table(results: dict[str, Any]) -> str:
    """One row per weighting, above them the draft before training."""
    measured = ["acceptance", "tokens per drafted step", "correct with the target", "speedup of FPSR"]
    runs: dict[str, Any] = results["runs"]
    first = next(iter(runs.values()))
    parts = " : ".join(part.name for part in REWARD_PARTS)
    rows = [["weights", parts, *measured], ["before training", "", *_cells(first["before"])]]
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
