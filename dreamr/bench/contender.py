"""`Contender`: one way of answering, as it is named on the command line and in a report.

fpsr                       a schedule
fpsr:alpha=0.5             a schedule with a setting of its own; several are joined by +
autoregressive_all_cores   the target alone, with as many threads as the other methods can use cores
transformers               the library's own generate
transformers_assisted      the same with the draft as its assistant
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import yaml
from pydantic import ValidationError

from dreamr.config import ActorConfig, PipelineSettings, first_problem
from dreamr.errors import ConfigError
from dreamr.types import Prompt
from pipelines import BASELINE, SCHEDULES, OnCommit, Request, Trace, check, rule_of, run
from pipelines.handles import Handles

ALL_CORES = "autoregressive_all_cores"
GENERATE = "transformers"
ASSISTED = "transformers_assisted"
NAMES = (*SCHEDULES, ALL_CORES, GENERATE, ASSISTED)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be measured: its name, and the settings under which a schedule runs."""

    name: str
    settings: PipelineSettings

    @property
    def base(self) -> str:
        """The name without settings."""
        return self.name.partition(":")[0]


class Contender(Protocol):
    """Answers prompts."""

    @property
    def entry(self) -> Entry: ...

    @property
    def actors(self) -> dict[str, ActorConfig]:
        """The actors that may work for it, by the lanes of their spans."""
        ...

    async def run(self, prompt: Prompt, on_commit: OnCommit | None = None, max_tokens: int | None = None) -> Trace: ...


class PipelineContender:
    """A schedule over actors that it shares with other contenders."""

    def __init__(self, entry: Entry, handles: Handles, actors: dict[str, ActorConfig]) -> None:
        self.entry, self.actors, self._handles = entry, actors, handles

    async def run(self, prompt: Prompt, on_commit: OnCommit | None = None, max_tokens: int | None = None) -> Trace:
        settings = self.entry.settings
        if max_tokens is not None:
            settings = settings.model_copy(update={"max_tokens": max_tokens})
        return await run(Request(prompt, settings), self._handles, on_commit)


def parse_entries(methods: str, sweep: str | None, settings: PipelineSettings) -> list[Entry]:
    """The entries of `--methods` and `--sweep`, in order and without repetition.

    Raises ValueError that names the method or setting that cannot be had.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    entries = [parse_entry(name, settings) for name in names]
    if sweep is not None:
        key, _, values = sweep.partition("=")
        swept = [
            name for name in names if key in PipelineSettings.model_fields and _reads(parse_entry(name, settings), key)
        ]
        if not swept or not values:
            raise ValueError(
                f"--sweep {sweep}: write setting=value,value,..., for methods that are schedules and read the setting"
            )
        entries += [
            parse_entry(_with(name, f"{key}={value}"), settings) for name in swept for value in values.split(",")
        ]
    return list({entry.name: entry for entry in entries}.values())


def parse_entry(name: str, settings: PipelineSettings) -> Entry:
    """One entry. Raises ValueError."""
    base, _, own = name.partition(":")
    if base not in NAMES:
        raise ValueError(f"there is no method '{base}'; choose out of {', '.join(NAMES)}.")
    changes: dict[str, object] = {"method": base if base in SCHEDULES else BASELINE}
    for part in own.split("+") if own else []:
        key, _, value = part.partition("=")
        if key not in PipelineSettings.model_fields or key == "method":
            known = ", ".join(field for field in PipelineSettings.model_fields if field != "method")
            raise ValueError(f"method '{name}': there is no setting '{key}'; the settings are {known}.")
        changes[key] = _value(name, key, value)
    try:
        chosen = PipelineSettings.model_validate(settings.model_dump() | changes)
        check(chosen)
    except ValidationError as error:
        raise ValueError(f"method '{name}': {first_problem(error)}") from error
    except ConfigError as error:
        raise ValueError(f"method '{name}': {error}") from error
    return Entry(name, chosen)


def _value(name: str, key: str, text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"method '{name}': {key} = {text!r} cannot be read; write a number or a word.") from error


def _reads(entry: Entry, key: str) -> bool:
    """Whether the setting changes anything for a schedule, so that its values are worth measuring."""
    if entry.base not in SCHEDULES or entry.base == BASELINE:
        return False
    if key in ("alpha", "threshold") and (key == "alpha") != (rule_of(entry.settings).kind == "rho"):
        return False
    of_schedules = frozenset().union(*(schedule.reads for schedule in SCHEDULES.values()))
    return key in SCHEDULES[entry.base].reads or key not in of_schedules


def _with(name: str, change: str) -> str:
    return f"{name}+{change}" if ":" in name else f"{name}:{change}"
