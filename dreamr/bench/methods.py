"""Methods that can be measured: their names on the command line and in reports, and changes of their settings.

fpsr                       a schedule of `pipelines.SCHEDULES`
fpsr:alpha=0.5             a schedule with a changed setting; several are joined by +
fpsr+assistant             a schedule whose target has an assistant, the draft unless the configuration names another;
                           without this, an assistant is not used
autoregressive_all_cores   the target alone, with as many threads as the other methods can use cores
draft_alone                the draft alone
transformers               the library's own generate with the target
transformers_assisted      the same with the draft as its assistant
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import yaml
from pydantic import ValidationError

from dreamr.config import ActorConfig, Config, HFEngineConfig, PipelineSettings, first_problem
from dreamr.errors import ConfigError
from dreamr.types import Prompt
from pipelines import BASELINE, SCHEDULES, OnCommit, Request, Trace, check, rule_of, run
from pipelines.handles import Handles

ALL_CORES, DRAFT_ALONE = "autoregressive_all_cores", "draft_alone"
GENERATE, ASSISTED = "transformers", "transformers_assisted"
ASSISTANT = "+assistant"
NAMES = (*SCHEDULES, ALL_CORES, DRAFT_ALONE, GENERATE, ASSISTED)

_BY_NAME = ("method", "assisted")
"""Settings that a method's name determines."""


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method by name, and the settings it runs with."""

    name: str
    settings: PipelineSettings

    @property
    def base(self) -> str:
        """The name without settings and assistant."""
        return self.name.partition(":")[0].removesuffix(ASSISTANT)

    def limited(self, max_tokens: int | None) -> PipelineSettings:
        """The settings, with another budget of tokens if one is given."""
        return self.settings if max_tokens is None else self.settings.model_copy(update={"max_tokens": max_tokens})


class Method(Protocol):
    """Answers prompts."""

    @property
    def spec(self) -> MethodSpec: ...

    @property
    def actors(self) -> dict[str, ActorConfig]:
        """The actors that may work for it, by the lanes of their spans."""
        ...

    async def run(self, prompt: Prompt, on_commit: OnCommit | None = None, max_tokens: int | None = None) -> Trace: ...


class ScheduleMethod:
    """A schedule over actors, which other methods may use as well."""

    def __init__(self, spec: MethodSpec, handles: Handles, actors: dict[str, ActorConfig]) -> None:
        self.spec, self.actors, self._handles = spec, actors, handles

    async def run(self, prompt: Prompt, on_commit: OnCommit | None = None, max_tokens: int | None = None) -> Trace:
        return await run(Request(prompt, self.spec.limited(max_tokens)), self._handles, on_commit)


def parse_methods(methods: str, sweep: str | None, settings: PipelineSettings) -> list[MethodSpec]:
    """The methods of `--methods` and `--sweep`, in order and without repetition.

    Raises ValueError that names the method or setting that does not exist.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    specs = [parse_method(name, settings) for name in names]
    if sweep is not None:
        key, _, values = sweep.partition("=")
        swept = [
            name for name in names if key in PipelineSettings.model_fields and _reads(parse_method(name, settings), key)
        ]
        if not swept or not values:
            raise ValueError(
                f"--sweep {sweep}: write setting=value,value,..., for methods that are schedules and read the setting"
            )
        specs += [
            parse_method(_with(name, f"{key}={value}"), settings) for name in swept for value in values.split(",")
        ]
    return list({spec.name: spec for spec in specs}.values())


def parse_method(name: str, settings: PipelineSettings) -> MethodSpec:
    """One method; `settings` are those it does not change. Raises ValueError."""
    whole, _, own = name.partition(":")
    base = whole.removesuffix(ASSISTANT)
    if base not in NAMES:
        raise ValueError(f"there is no method '{base}'; choose one of {', '.join(NAMES)}.")
    if base != whole and (base not in SCHEDULES or base == "token_speculative"):
        raise ValueError(f"method '{name}': only a schedule whose target writes steps can have an assistant.")
    changes: dict[str, object] = {"method": base if base in SCHEDULES else BASELINE, "assisted": base != whole}
    for part in own.split("+") if own else []:
        key, _, value = part.partition("=")
        if key not in PipelineSettings.model_fields or key in _BY_NAME:
            known = ", ".join(field for field in PipelineSettings.model_fields if field not in _BY_NAME)
            raise ValueError(f"method '{name}': there is no setting '{key}'; the settings are {known}.")
        changes[key] = _value(name, key, value)
    try:
        chosen = PipelineSettings.model_validate(settings.model_dump() | changes)
        check(chosen)
    except ValidationError as error:
        raise ValueError(f"method '{name}': {first_problem(error)}") from error
    except ConfigError as error:
        raise ValueError(f"method '{name}': {error}") from error
    return MethodSpec(name, chosen)


def with_assistant(config: Config, specs: Sequence[MethodSpec]) -> Config:
    """The configuration with the draft as the target's assistant, if a method needs one and the target has none."""
    target, draft = config.group.target, config.group.draft.engine
    if not any(spec.settings.assisted for spec in specs) or not (
        isinstance(target.engine, HFEngineConfig) and isinstance(draft, HFEngineConfig) and not target.engine.assistant
    ):
        return config
    engine = target.engine.model_copy(update={"assistant": draft.model})
    group = config.group.model_copy(update={"target": target.model_copy(update={"engine": engine})})
    return config.model_copy(update={"group": group})


def _value(name: str, key: str, text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"method '{name}': {key} = {text!r} cannot be read; write a number or a word.") from error


def _reads(spec: MethodSpec, key: str) -> bool:
    """Whether the setting changes anything for a schedule, so that its values are worth measuring."""
    if spec.base not in SCHEDULES or spec.base == BASELINE:
        return False
    if key in ("alpha", "threshold") and (key == "alpha") != (rule_of(spec.settings).kind == "rho"):
        return False
    of_schedules = frozenset().union(*(schedule.reads for schedule in SCHEDULES.values()))
    return key in SCHEDULES[spec.base].reads or key not in of_schedules


def _with(name: str, change: str) -> str:
    return f"{name}+{change}" if ":" in name else f"{name}:{change}"
