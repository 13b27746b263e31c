"""The W&B workspace of a training run: `python -m rl.dashboard --entity you --project dreamr-sapo`.

Shows the same panels as `dreamr curves`. With `--out` the definition is written to a file instead, which needs neither
an account nor a network; `configs/wandb-workspace.json` is that file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rl.curves import PANELS
from rl.history import wandb_name

SYSTEM_PANELS: dict[str, tuple[str, ...]] = {
    "rollout tokens per second": ("rollout/tokens_per_s",),
    "seconds": ("rollout/time_s", "weight_sync/time_s", "step_time", "eval/time_s"),
    "rho of the verifier": ("verifier/rho_mean",),
    "completion length": ("completions/mean_length", "completions/max_length"),
    "groups without spread": ("frac_reward_zero_std",),
    "clipped": ("clip_ratio/region_mean", "completions/clipped_ratio"),
    "learning rate": ("learning_rate",),
    "staleness": ("staleness/max",),
}


def workspace(entity: str, project: str) -> Any:
    """The workspace as the `wandb_workspaces` library has it."""
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as spaces

    blocks: Any = reports  # exports its panels at run time only

    def section(name: str, panels: dict[str, tuple[str, ...]], *, is_open: bool) -> Any:
        plots = [
            blocks.LinePlot(title=title, x="step", y=[wandb_name(metric) for metric in metrics])
            for title, metrics in panels.items()
        ]
        return spaces.Section(name=name, is_open=is_open, panels=plots)

    sections = [section("SAPO", PANELS, is_open=True), section("System", SYSTEM_PANELS, is_open=False)]
    return spaces.Workspace(entity=entity, project=project, name="SAPO", sections=sections)


def main(
    entity: Annotated[str, typer.Option(help="User or team.")] = "entity",
    project: Annotated[str, typer.Option(help="As in the run's `log.project`.")] = "dreamr-sapo",
    out: Annotated[Path | None, typer.Option(help="Write the definition here instead of saving it at W&B.")] = None,
) -> None:
    """Save the workspace, or write down its definition."""
    defined = workspace(entity, project)
    if out is None:
        typer.echo(defined.save().url)
        return
    document = json.loads(defined._to_model().model_dump_json(by_alias=True, exclude_none=True))
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
