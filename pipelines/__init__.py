"""Schedules: the order of drafting, verdicts and the target's own steps. No Ray, no torch.

`SCHEDULES` holds them by name, `run` answers one request by one of them. A schedule is an async function over a
`Session`; adding one takes a file and a line in `SCHEDULES` (examples/own_schedule.py).
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from dreamr.config import PipelineSettings
from dreamr.errors import ConfigError
from pipelines.auto import auto
from pipelines.fpsr import fpsr
from pipelines.handles import Handles
from pipelines.lookahead import lookahead, lookahead_batch
from pipelines.parallel_prefix import parallel_prefix
from pipelines.phases import run_in_phases
from pipelines.sequential import autoregressive, sequential
from pipelines.session import Session
from pipelines.token_speculative import token_speculative
from pipelines.trace import OnCommit, Request, Trace
from pipelines.verification import VERDICTS, Rule

__all__ = ["BASELINE", "SCHEDULES", "OnCommit", "Request", "Schedule", "Trace", "check", "rule_of", "run", "window_of"]

_STEPS = frozenset({"alpha", "threshold", "verdict", "skip_above", "first_target_steps"})
"""Settings that every step-level schedule reads."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule, the settings that it reads, and its defaults."""

    run: Callable[[Session], Awaitable[None]]
    reads: frozenset[str] = _STEPS
    """Settings that it reads, besides those that all schedules share."""
    verdict: str = "rho"
    """Kind of verdict when the settings name none."""
    first_target_steps: int = 0
    """Steps at the beginning that are the target's when the settings give no number."""
    window: int = 4
    """How many steps the draft may be ahead of the frontier when the settings give no number."""
    compares: bool = True
    """Whether the target writes its own step for every drafted one, which verdicts that compare need."""


BASELINE = "autoregressive"
"""The target alone: every speedup is relative to it."""

SCHEDULES: dict[str, Schedule] = {
    BASELINE: Schedule(autoregressive, reads=frozenset()),
    "sequential": Schedule(sequential),
    "auto": Schedule(auto, reads=_STEPS | {"window"}, window=8, compares=False),
    "fpsr": Schedule(fpsr, reads=_STEPS | {"window"}, compares=False),
    "specreason": Schedule(sequential, verdict="digit"),
    "lookahead": Schedule(lookahead, reads=_STEPS | {"window"}, verdict="same", first_target_steps=1),
    "lookahead_batch": Schedule(lookahead_batch, reads=_STEPS | {"window"}, verdict="same", first_target_steps=1),
    "parallel_prefix": Schedule(parallel_prefix, reads=_STEPS | {"window"}, compares=False),
    "token_speculative": Schedule(token_speculative, reads=frozenset({"proposed_tokens"})),
}


async def run(
    request: Request,
    handles: Handles,
    on_commit: OnCommit | None = None,
    clock: Callable[[], float] = time.time,
) -> Trace:
    """Answer one request; `clock` is the one that the engines use.

    When this returns, raises or is cancelled, no call of the request is in flight.

    Raises:
        ConfigError: see `check`.
        ActorLost: the target was lost and did not come back.
        ValueError: the target refuses the prompt, or cannot do what the request asks for, in one sentence.
    """
    settings = request.settings
    check(settings)
    schedule, first = SCHEDULES[settings.method], settings.first_target_steps
    async with Session(
        handles,
        request,
        rule_of(settings),
        first_target_steps=schedule.first_target_steps if first is None else first,
        window=window_of(settings),
        on_commit=on_commit,
        clock=clock,
    ) as session:
        session.recorder.restore()
        if session.ended:
            return session.recorder.trace()
        if request.has_phases:
            await run_in_phases(session, schedule.run)
        else:
            await schedule.run(session)
    return session.recorder.trace()


def rule_of(settings: PipelineSettings) -> Rule:
    """Which verdicts accept a drafted step under these settings."""
    kind = settings.verdict or SCHEDULES[settings.method].verdict
    default = VERDICTS[kind].threshold
    if default is None:
        return Rule(kind, settings.alpha)
    return Rule(kind, default if settings.threshold is None else settings.threshold)


def window_of(settings: PipelineSettings) -> int:
    """How many steps the draft may be ahead of the frontier under these settings."""
    return settings.window or SCHEDULES[settings.method].window


def check(settings: PipelineSettings) -> None:
    """Raises ConfigError for a method or a kind of verdict that does not exist, and for two that do not go together."""
    method, verdict = settings.method, settings.verdict
    _check_name("method", method, SCHEDULES)
    if verdict is None:
        return
    _check_name("verdict", verdict, VERDICTS)
    if VERDICTS[verdict].compares and not SCHEDULES[method].compares:
        raise ConfigError(
            f"verdict '{verdict}' compares with the target's own step, which method '{method}' does not have for "
            "every drafted step: use it with lookahead, sequential or specreason."
        )


def _check_name(setting: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise ConfigError(f"{setting} = '{name}': there is no such {setting}; {hint}choose one of {', '.join(known)}.")
