"""`Report`: what a run found out, and under which conditions. `report.json` is this, checked when it is read.

`python -m dreamr.bench.schema` prints its JSON schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.trace import End


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Speedup(_Part):
    """How many times sooner than the target alone, over the same problems."""

    geomean: float
    """Geometric mean over problems of autoregressive wall time / own wall time."""
    low: float | None
    """Lower end of the 95 % interval of its bootstrap over problems; null with a single problem."""
    high: float | None
    """Upper end."""


class Tokens(_Part):
    """Sums over all problems."""

    committed: int
    """Tokens of the answers."""
    drafted: int
    """Tokens that the draft wrote, whatever became of them."""
    wasted_draft: int
    """Drafted tokens that were thrown away."""
    wasted_target: int
    """The target's own tokens that were thrown away."""


class Latency(_Part):
    """Wall time of one problem, seconds."""

    p50: float
    """Median over the problems."""
    p95: float
    """Not exceeded in 95 % of the problems, interpolated."""


class MethodReport(_Part):
    """One method over all problems; rates are sums over sums, never means of rates."""

    name: str
    """As on the command line, with settings of its own."""
    accuracy: float
    """Right answers / problems; an answer without an answer line is wrong."""
    unparsed_rate: float
    """Answers without an answer line / problems."""
    speedup: Speedup | None
    """Null when the autoregressive method was not measured."""
    wall_s: float
    """Sum over all problems, seconds."""
    acceptance_rate: float | None
    """Accepted / judged drafted steps (tokens for token_speculative); null when nothing was judged."""
    coverage: float
    """Committed steps (tokens) that came from the draft / all committed ones."""
    tokens: Tokens
    cores: int
    """Compute threads of its actors together, but not more than the machine has."""
    latency_s: Latency
    """Of one problem."""
    num_problems: int
    """Problems that it answered."""
    num_losses: int
    """How often an actor was lost."""
    orchestration_share: float
    """Part of the wall time in which no model that the next commit waits for was running."""
    busy_s: dict[str, float]
    """Seconds of model work by role, whether it was of use or not."""
    actors: list[str]
    """The actors that worked for it."""
    threads: int
    """Compute threads of these actors together."""
    gpus: float
    """GPUs of these actors together."""


class Row(_Part):
    """One problem answered by one method."""

    problem: int
    """Its number in the stream that `seed` fixes."""
    method: str
    """As in `methods`, or in `failed` when the method failed at a later problem."""
    expected: int
    """The right answer."""
    answer: int | None
    """The number on the last answer line; null without one."""
    right: bool
    end: End
    """answered: the model ended its answer; budget: `max_tokens` was reached; loop: two equal steps in a row."""
    wall_s: float
    """From the call of the method to its last commit, seconds."""
    orchestration_s: float
    """Part of it in which no model that the next commit waits for was running."""
    num_steps: int
    """Committed steps."""
    num_drafted: int
    """Drafted steps (tokens for token_speculative), like the next two."""
    num_judged: int
    """Those whose verdict decided something."""
    num_accepted: int
    committed_tokens: int
    """As in `Tokens`, like the next three."""
    drafted_tokens: int
    wasted_draft_tokens: int
    wasted_target_tokens: int
    num_losses: int
    """How often an actor was lost."""


class StepTime(_Part):
    """Seconds of a step of n tokens: first_s + n * token_s, by least squares; a request's first step takes prompt_s
    longer, for reading the prompt."""

    prompt_s: float
    """Reading the prompt."""
    first_s: float
    """Of every step, whatever its length."""
    token_s: float
    """Of every token."""
    num_steps: int
    """Measured steps."""
    tokens_low: int
    """Lengths of the measured steps, delimiter included: the 5 % quantile."""
    tokens_mean: float
    """Their mean."""
    tokens_high: int
    """Their 95 % quantile."""


class Measured(_Part):
    """What the simulator needs, measured where nothing else was running: see docs/bench.md."""

    target: StepTime
    """From the runs of the autoregressive method."""
    draft: StepTime
    """From the runs of the sequential method, like the verdict's time."""
    verdict_s: float
    """Mean time of a verdict, without a request's first, which also reads the prompt."""
    call_s: float
    """What a call costs beside the model's work: Ray, the event loops, the driver."""
    steps_low: int
    """Fewest steps of an answer."""
    steps_high: int
    """Most steps of an answer."""
    acceptance: dict[str, float]
    """Acceptance rate by method, named as in `methods`."""
    together: float
    """How much longer draft and target take when both are at work at once: 1 on cores of their own."""


class MachineReport(_Part):
    """Where it was measured."""

    cpu: str
    """Its model's name."""
    cores: int
    """Cores that the command might use."""
    load: float
    """Processes that ran on the machine in the minute before."""
    system: str
    """Operating system, its version and the architecture."""
    python: str
    """Python's version."""


class Model(_Part):
    """The model in one actor."""

    model: str
    """Folder, hub id or built-in name."""
    device: str
    """Where it runs, as torch names it."""
    num_parameters: int
    """How many numbers it has learned; 0 when the engine has no model."""


class Report(_Part):
    """Everything that one run of `dreamr bench` or `dreamr demo` found out."""

    version: Literal[1] = 1
    """Of this format."""
    command: str
    """The command line that made this report."""
    seed: int
    """Seed of the problems."""
    config: dict[str, Any]
    """The whole configuration, defaults filled in."""
    machine: MachineReport
    models: dict[str, Model]
    """By role."""
    problems: list[Row]
    """A row per problem and method, in the order in which they ran."""
    methods: list[MethodReport]
    """A summary per method that answered every problem."""
    failed: dict[str, str] = {}
    """Methods that could not run here, or failed at some problem, and why."""
    self_acceptance: dict[str, float] = {}
    """How often the target accepts its own steps, by kind of verdict."""
    measured: Measured | None = None
    """Null when a method that it is measured with did not run."""

    def method(self, name: str) -> MethodReport | None:
        return next((method for method in self.methods if method.name == name), None)

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Raises ValueError, in one sentence, for a file that is no report."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such report; `dreamr bench --out DIR` writes one.") from None
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise ValueError(f"{path}: this is no report of this version: {where}: {problem['msg']}.") from error


if __name__ == "__main__":
    print(json.dumps(Report.model_json_schema(), indent=2))
