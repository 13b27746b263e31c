"""`dreamr ask`: one question about images, its steps as they are committed, answer, counts and speedup."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from dreamr.bench.contender import Entry, PipelineContender
from dreamr.bench.runner import Runner
from dreamr.cli.answer import Answered, print_answer
from dreamr.cli.inputs import check_timeline, read_config, read_prompt
from dreamr.cli.lines import print_step
from dreamr.cli.picture import draw_timeline
from dreamr.cli.running import run_with_actors
from dreamr.config import PipelineSettings, with_draft
from dreamr.types import Prompt
from pipelines import BASELINE

if TYPE_CHECKING:
    from actors.group import ActorGroup


def ask(
    question: str,
    images: Sequence[Path],
    config: Path | None,
    settings: Mapping[str, object],
    *,
    compare: bool,
    timeline: Path | None,
    as_json: bool,
    draft: str | None = None,
) -> None:
    """Run the command. Raises BadInput, ConfigError, and what `run_with_actors` and the pipeline raise."""
    prompt, settled = read_prompt(question, images), with_draft(read_config(config, settings), draft)
    check_timeline(timeline)
    screen = Console(stderr=as_json)

    async def answer(group: ActorGroup) -> Answered:
        return await _answer(group, settled.pipeline, prompt, images, compare, screen)

    answered = run_with_actors(settled, Console(stderr=True), answer)
    if as_json:
        typer.echo(json.dumps(answered.document(), indent=2, ensure_ascii=False))
    else:
        print_answer(screen, answered)
    if timeline:
        draw_timeline(answered.trace, timeline)


async def _answer(
    group: ActorGroup,
    settings: PipelineSettings,
    prompt: Prompt,
    images: Sequence[Path],
    compare: bool,
    screen: Console,
) -> Answered:
    notices = Console(stderr=True)
    runner = Runner()
    chosen, alone = (
        PipelineContender(Entry(method, settings.model_copy(update={"method": method})), group.handles, {})
        for method in (settings.method, BASELINE)
    )
    # Without an image, the second run could only be made from the caches that the first one has filled.
    compares = compare and bool(prompt.images) and settings.method != BASELINE
    if compares:
        with notices.status("Warming up ..."):
            await runner.warm_up(chosen, prompt)
            await runner.warm_up(alone, prompt)
    trace = await runner.run(chosen, prompt, lambda step: print_step(screen, step))
    plain = None
    if compares:
        # No spinner here: it would compete with the models for the cores while time is measured.
        notices.print("Once more by the target alone ...", style="dim")
        plain = await runner.run(alone, prompt)
    return Answered(prompt.question, images, settings, group.infos, trace, plain)
