"""`dreamr ask`: one question about images, its steps as they are committed, then the answer, counts and speedup."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamr.api import Phase, answer
from dreamr.bench.summary import model_reports
from dreamr.cli.inputs import check_timeline, read_config, read_prompt
from dreamr.cli.running import run_with_actors
from dreamr.cli.terminal import percent, print_step, printable
from dreamr.config import PipelineSettings, with_draft
from dreamr.result import Result, split_answer
from dreamr.types import EngineInfo, Role
from pipelines import Trace

if TYPE_CHECKING:
    from actors.group import ActorGroup

_PHASES: dict[Phase, str] = {
    "warm up": "Warming up, for the comparison with the target alone ...",
    "compare": "Answering again by the target alone ...",
}
_ENDINGS = {
    "budget": "stopped at max_tokens = {}: raise --max-tokens",
    "loop": "stopped, because the model began to repeat itself",
}


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
    screen, notices = Console(stderr=as_json), Console(stderr=True)

    def announce(phase: Phase) -> None:
        if phase in _PHASES:
            # A line, no spinner: that would compete with the models for the cores while time is measured.
            notices.print(_PHASES[phase], style="dim")

    async def answered(group: ActorGroup) -> tuple[Result, PipelineSettings, dict[Role, EngineInfo]]:
        chosen = settled.pipeline.with_recommended(group.infos["target"].recommended)
        if chosen != settled.pipeline:
            notices.print(_recommendation(chosen), style="dim")
        result = await answer(
            group.handles,
            prompt,
            chosen,
            lambda step: print_step(screen, step),
            compare=compare,
            on_phase=announce,
        )
        return result, chosen, group.infos

    result, chosen, models = run_with_actors(settled, notices, answered)
    if as_json:
        document = _document(result, images, chosen, models)
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _print_answer(screen, result, chosen)
    if timeline:
        result.timeline(timeline)
        typer.echo(f"timeline: {timeline}", err=True)


def _recommendation(chosen: PipelineSettings) -> str:
    sampling = (
        f"temperature {chosen.temperature:g}, top_p {chosen.top_p:g}, top_k {chosen.top_k}, min_p {chosen.min_p:g}"
    )
    return f"Sampling as the target's generation_config.json recommends: {sampling}. Greedy: --temperature 0."


def _document(
    result: Result, images: Sequence[Path], settings: PipelineSettings, models: Mapping[Role, EngineInfo]
) -> dict[str, Any]:
    return {
        "question": result.question,
        "images": [str(path) for path in images],
        "answer": result.answer,
        "speedup": result.speedup,
        "settings": settings.model_dump(),
        "models": {role: model.model_dump() for role, model in model_reports(models).items()},
        "result": _trace_document(result.trace),
        "plain_decoding": _trace_document(result.plain) if result.plain else None,
    }


def _trace_document(trace: Trace) -> dict[str, Any]:
    """The fields of the trace and the values derived from them."""
    reasoning, final = split_answer(trace)
    return {
        **asdict(trace),
        "text": trace.text,
        "reasoning": reasoning,
        "answer": final,
        "acceptance_rate": trace.acceptance_rate,
        "coverage": trace.coverage,
        "orchestration_share": _orchestration_share(trace),
    }


def _print_answer(console: Console, result: Result, settings: PipelineSettings) -> None:
    """The answer and one line per count."""
    console.print()
    if ending := _ENDINGS.get(result.trace.end):
        console.print(Text(ending.format(settings.max_tokens), "yellow"))
    final = result.answer
    if final is None:
        console.print(Text("no answer: the text ends before its reasoning does", "bold yellow"))
    else:
        console.print(Text("answer  ", "bold").append(printable(final), "bold green"))
    console.print()
    counts = Table.grid(padding=(0, 2))
    counts.add_column(style="dim")
    counts.add_column()
    for name, value in _counts(result):
        counts.add_row(name, value)
    console.print(counts)


def _counts(result: Result) -> list[tuple[str, str]]:
    trace, plain = result.trace, result.plain
    drafted = sum(step.source == "draft" for step in trace.steps)
    rows = [
        ("wall time", f"{trace.wall_s:.3f} s by {trace.method}, {len(trace.steps)} steps, {len(trace.tokens)} tokens"),
        ("orchestration", f"{percent(_orchestration_share(trace))} of it was spent waiting while no model ran"),
    ]
    if trace.num_judged:
        accepted = f"{trace.num_accepted} of {trace.num_judged} drafted steps that were judged at the frontier"
        rows += [
            ("acceptance", f"{percent(trace.acceptance_rate)}, {accepted}"),
            ("coverage", f"{percent(trace.coverage)}, {drafted} of {len(trace.steps)} steps come from the draft"),
        ]
    rows.append(("wasted tokens", f"draft {trace.wasted_draft_tokens}, target {trace.wasted_target_tokens}"))
    if trace.num_losses:
        rows.append(("actors lost", str(trace.num_losses)))
    if plain and result.speedup:
        final = split_answer(plain)[1]
        same = "the same answer" if final == result.answer else f"its answer: {printable(final or 'none')}"
        rows.append(("plain decoding", f"{plain.wall_s:.3f} s by the target alone, {same}"))
        rows.append(("speedup", f"{result.speedup:.2f} x, one run each, both from cold prefix caches"))
    return rows


def _orchestration_share(trace: Trace) -> float | None:
    return trace.orchestration_s / trace.wall_s if trace.wall_s else None
