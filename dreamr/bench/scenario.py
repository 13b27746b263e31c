"""`Scenario`: latencies and acceptance rates of a pair of models, from which `dreamr simulate` predicts speedups."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

from dreamr.bench.report import Measured, Report, StepTime
from dreamr.config import PipelineSettings, first_problem
from dreamr.errors import ConfigError
from dreamr.types import Role
from pipelines import rule_of

MAX_BATCH = 64
"""Most steps in one forward of a measured engine."""

PRESETS = ("q32b-q2b", "q32b-q4b", "q32b-q2b-fitted")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Writing(_Part):
    """How long one model takes to write."""

    prompt_s: NonNegativeFloat = 0.0
    """Reading a question with its images, once."""
    first_token_s: NonNegativeFloat = 0.0
    """Fixed time of a step, in addition to the time of its tokens."""
    token_s: NonNegativeFloat
    step_tokens: tuple[PositiveInt, PositiveInt]
    """Shortest and longest step."""


class Scenario(_Part):
    """Latencies in seconds, each measured on a device that does nothing else."""

    assumptions: list[str] = []
    target: Writing
    draft: Writing
    verdict_s: NonNegativeFloat
    """A verdict forward over one step."""
    verdict_step_s: NonNegativeFloat = 0.0
    """Each further step in the same forward."""
    check_s: NonNegativeFloat | None = None
    """The forward that checks proposed tokens; null: as long as one token of the target."""
    read_step_s: NonNegativeFloat = 0.0
    """Reading one step that the draft has written, by target and verifier, before the next one or its verdict."""
    compare_s: NonNegativeFloat | None = None
    """A verdict that compares two steps; null: as long as one over one step."""
    call_s: NonNegativeFloat = 0.0
    """Time of a call without the model's work."""
    num_steps: tuple[PositiveInt, PositiveInt]
    """Fewest and most steps of an answer."""
    acceptance: dict[str, float]
    """Share of drafted steps that each kind of verdict accepts."""
    token_acceptance: float = Field(default=0.8, ge=0, le=1)
    """Share of drafted tokens that are the target's own."""
    max_batch: PositiveInt = 1
    """Steps that the target writes at the same time: without slowing each other down, unless `row_s` is given."""
    row_s: NonNegativeFloat | None = None
    """Tokens of several steps of the target share one forward, which each of them makes so much longer."""
    cores: PositiveInt | None = None
    """Cores that all three share; null: each has a separate device."""
    background: bool = False
    """A speculative step of the target gets only the core time that the others leave."""
    together: float = Field(default=1.0, ge=1)
    """How much longer work on shared cores takes when two or more actors run at once."""
    slowdown: dict[Role, dict[Role, float]] = {}
    """The same for one role beside another, where it was measured."""
    paper: dict[str, float] = {}
    """Speedups that the paper reports."""

    @classmethod
    def read(cls, source: str) -> Self:
        """A preset by its name, or a YAML file by its path. Raises ConfigError."""
        preset = resources.files("dreamr").joinpath("configs", "simulation", f"{source}.yaml")
        try:
            text = preset.read_text("utf-8") if source in PRESETS else Path(source).read_text("utf-8")
            return cls.model_validate(yaml.safe_load(text))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--scenario {source}: no such file, nor one of {', '.join(PRESETS)}.") from error
        except (yaml.YAMLError, ValidationError) as error:
            raise ConfigError(f"--scenario {source}: {' '.join(str(error).split())}") from error

    @classmethod
    def calibrated(cls, report: Report) -> Self:
        """The pair and the machine that a report measured. Raises ConfigError when it lacks the measurements."""
        if report.measured is None:
            raise ConfigError("--calibrate: the report measured no latencies; bench autoregressive and sequential too.")
        measured, group = report.measured, report.config["group"]
        return cls(
            assumptions=[f"latencies as measured by: {report.command}"],
            target=_writing(measured.target),
            draft=_writing(measured.draft),
            verdict_s=measured.verdict_s,
            verdict_step_s=measured.verdict_step_s,
            check_s=measured.check_s,
            read_step_s=measured.verdict_step_s,  # what a further step in a verdict forward adds is its reading
            compare_s=_compare_s(report),
            call_s=measured.call_s,
            num_steps=(measured.steps_low, measured.steps_high),
            acceptance=_acceptance(measured, settings_of(report)),
            token_acceptance=_token_acceptance(report),
            cores=None if group["target"]["num_gpus"] else report.machine.cores,
            background=group["target"]["engine"].get("background", False),
            together=measured.together,
            slowdown=measured.slowdown,
            row_s=measured.row_s or 0.0,
            max_batch=MAX_BATCH,
        )


def _writing(time: StepTime) -> Writing:
    spread = min(time.tokens_mean - time.tokens_low, time.tokens_high - time.tokens_mean)
    shortest, longest = (max(1, round(time.tokens_mean + sign * spread)) for sign in (-1, 1))
    return Writing(
        prompt_s=time.prompt_s, first_token_s=time.first_s, token_s=time.token_s, step_tokens=(shortest, longest)
    )


def settings_of(report: Report) -> PipelineSettings:
    """How the report's methods ran. Raises ConfigError."""
    try:
        return PipelineSettings.model_validate(report.config["pipeline"])
    except ValidationError as error:
        raise ConfigError(
            f"--calibrate: the report's config.pipeline is of another version: {first_problem(error)}"
        ) from error


# In `lookahead`, timing decides which steps are judged, so prefer the rate of `lookahead_batch`.
_WITNESSES: tuple[str, ...] = ("sequential", "specreason", "lookahead_batch", "lookahead")


def _acceptance(measured: Measured, settings: PipelineSettings) -> dict[str, float]:
    """By kind of verdict, from the first method that was measured with it."""
    rates: dict[str, float] = {}
    for method in _WITNESSES:
        if method in measured.acceptance:
            kind = rule_of(settings.model_copy(update={"method": method})).kind
            rates.setdefault(kind, measured.acceptance[method])
    return rates


def _compare_s(report: Report) -> float | None:
    """Mean time of a verdict that compares two steps, from the first method that was measured with such verdicts.

    Equal texts take none, and how many are equal depends on the draft.
    """
    for name in ("lookahead", "lookahead_batch"):
        one, judged = report.method(name), sum(row.num_judged for row in report.problems if row.method == name)
        if one and judged:
            return one.busy_s.get("verifier", 0.0) / judged
    return None


def _token_acceptance(report: Report) -> float:
    """Rate q from the share a of proposed tokens that were accepted: a = (q + q^2 + ... + q^k) / k, solved for q."""
    one = report.method("token_speculative")
    if one is None or one.acceptance_rate is None:
        return 0.8
    num, low, high = settings_of(report).proposed_tokens, 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        share = sum(middle**place for place in range(1, num + 1)) / num
        low, high = (middle, high) if share < one.acceptance_rate else (low, middle)
    return low
