"""The base of all settings: unknown keys are refused, and each mistake is reported in one sentence."""

from __future__ import annotations

import difflib
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dreamr.errors import ConfigError

_UNION_TAGS = frozenset({"hf", "vllm", "import", "scripted", "own", "shared"})


class Strict(BaseModel):
    """Base of all settings: unknown keys are errors, with the nearest known one as a way out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: object) -> object:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(_unknown_key(str(key), list(cls.model_fields)))
        return values


StrictT = TypeVar("StrictT", bound=Strict)


def _unknown_key(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    way_out = f"did you mean '{close[0]}'?" if close else f"the keys are: {', '.join(known)}."
    return f"unknown key '{key}': {way_out}"


def parse_strict(kind: type[StrictT], text: str, source: str) -> StrictT:
    """Read YAML text as settings of one kind; `source` names it in errors. Raises ConfigError."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        keys = " and ".join(f"'{key}'" for key in list(kind.model_fields)[:2])
        raise ConfigError(f"{source}: expected keys such as {keys}, found {values!r}.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first mistake in one sentence: where it is, the value, and what is wrong with it."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"] if part not in _UNION_TAGS)
    match problem["type"]:
        case "missing":
            return f"{where}: this key is missing."
        case "union_tag_not_found":
            return f"{where}: the key 'kind' is missing; it selects the engine."
        case "union_tag_invalid":
            context = problem["ctx"]
            return f"{where}.kind = '{context['tag']}': choose one of {context['expected_tags']}."
        case "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            return f"{where}: {message}" if where else message
        case _:
            return f"{where} = {problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}."
