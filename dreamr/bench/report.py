"""`Report`: the results of a run and its conditions, in the format of `report.json`, which is checked when it is read.

`python -m dreamr.bench.report` prints the JSON schema.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dreamr.types import Role
from pipelines.trace import End


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Speedup(_Part):
    """How many times as fast as the target alone, over the same questions."""

    geomean: float
    """Geometric mean over questions of autoregressive wall time / the method's wall time."""
    low: float | None
    """Lower end of the 95 % interval of its bootstrap over questions; null with a single question."""
    high: float | None
    """Upper end."""


class Tokens(_Part):
    """Sums over all questions."""

    committed: int
    """Tokens of the answers."""
    drafted: int
    """Tokens that the draft wrote, committed or not."""
    wasted_draft: int
    """Drafted tokens that were not committed."""
    wasted_target: int
    """Tokens of the target that were not committed."""
    salvaged: int = 0
    """Tokens of rejected drafted steps that the target's own steps begin with, and that it did not write again."""


class Latency(_Part):
    """Wall time of one answer, seconds."""

    p50: float
    """Median over the questions."""
    p95: float
    """Not exceeded for 95 % of the questions, interpolated."""


class MethodReport(_Part):
    """One method over all questions; rates are sums over sums, never means of rates."""

    name: str
    """As on the command line, with its settings."""
    computed_from: str | None = None
    """The method from whose recorded times this row was computed; null for a method that ran. See `oracle`."""
    accuracy: float
    """Correct answers / questions; unparsed answers count as wrong."""
    unparsed_rate: float
    """Texts in which no answer was found / questions."""
    truncated_rate: float
    """Texts that the budget of tokens or a loop ended / questions."""
    speedup: Speedup | None
    """Null when the autoregressive method was not measured."""
    wall_s: float
    """Sum over all questions, seconds."""
    acceptance_rate: float | None
    """Accepted / judged drafted steps (tokens for token_speculative); null when nothing was judged."""
    coverage: float
    """Committed steps (tokens) that came from the draft / all committed ones."""
    skipped_share: float = 0.0
    """Steps that were committed without a verdict, by `skip_above` / all committed steps."""
    token_acceptance: list[float] = []
    """For token-level speculation, by position in the proposal: forwards that accepted the proposed tokens up to this
    one / forwards in which so many were proposed. Empty without such speculation."""
    verdict_mass: float | None = None
    """Mean probability of all the words that a verdict is read from: verdicts from a small mass say little. Null when
    no verdict was read from words."""
    tokens: Tokens
    cores: int
    """Compute threads of its actors together, but not more than the machine has."""
    latency_s: Latency
    """Of one answer."""
    num_problems: int
    """Questions that it answered."""
    num_losses: int
    """How often an actor was lost."""
    orchestration_share: float
    """Share of the wall time in which no model that the next commit waits for was running."""
    busy_s: dict[str, float]
    """Seconds of model work by role, committed or not."""
    actors: list[str]
    """The actors that worked for it."""
    threads: int
    """Compute threads of these actors together."""
    gpus: float
    """GPUs of these actors together."""


class Row(_Part):
    """One question answered by one method."""

    problem: int
    """Number of the question: in the stream that `seed` fixes, or in the data."""
    id: str = ""
    """Name of the question in the data."""
    method: str
    """As in `methods`, or in `failed` when the method failed at a later question."""
    expected: str
    """The correct answer; several are joined by " | "."""
    answer: str | None
    """The answer that was found in the text; null without one."""
    correct: bool
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
    """Drafted steps that were judged at the frontier."""
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
    """The part of a step that does not depend on its length."""
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
    """The times that the simulator needs, measured while nothing else was running: see docs/bench.md."""

    target: StepTime
    """From the runs of the autoregressive method."""
    draft: StepTime
    """From the runs of the sequential method, like the verdict's time."""
    verdict_s: float
    """Mean time of a verdict, without a request's first, which also reads the prompt."""
    verdict_step_s: float = 0.0
    """Time of each further step that is judged in the same forward; a control."""
    check_s: float | None = None
    """Time of the forward that checks `proposed_tokens` tokens; a control. Null for engines without this."""
    call_s: float
    """Time of a call without the model's work: Ray, the event loops, the driver."""
    steps_low: int
    """Fewest steps of an answer."""
    steps_high: int
    """Most steps of an answer."""
    acceptance: dict[str, float]
    """Acceptance rate by method, named as in `methods`."""
    together: float
    """How much longer the target takes while the draft writes: 1 when they share nothing."""
    slowdown: dict[Role, dict[Role, float]] = {}
    """The same for every role beside each other one; a control."""
    row_s: float | None = None
    """How much longer a forward of the target takes for each further step that it writes at the same time; a control.
    Null for engines without this."""


class Machine(_Part):
    """The machine that a report was measured on."""

    cpu: str
    """Name of the processor."""
    cores: int
    """Cores that the command may use."""
    load: float
    """Processes that ran on the machine in the minute before: other work makes every number worse."""
    system: str
    """Operating system, its version and the architecture."""
    python: str
    """Version of Python."""

    @classmethod
    def this(cls) -> Self:
        """The machine that this process runs on."""
        return cls(
            cpu=_cpu_name() or platform.processor() or platform.machine(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            load=os.getloadavg()[0],
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
        )


def _cpu_name() -> str | None:
    """Linux's name of the CPU, which `platform.processor` does not give."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


class Model(_Part):
    """The model in one actor."""

    model: str
    """Folder, hub id or built-in name."""
    device: str
    """Where it runs, as torch names it."""
    num_parameters: int
    """Number of parameters; 0 when the engine has no model."""


class Report(_Part):
    """All results of one run of `dreamr bench` or `dreamr demo`."""

    version: Literal[2] = 2
    """Of this format."""
    command: str
    """The command line that made this report."""
    seed: int
    """Seed of the problems."""
    benchmark: str = "ledger"
    """Where the questions are from: the ledger task, or a public benchmark by its name."""
    data: str = ""
    """The file or the hub's data set that the questions were read from; empty for the ledger task."""
    config: dict[str, Any]
    """The whole configuration, defaults filled in."""
    machine: Machine
    models: dict[str, Model]
    """By role."""
    problems: list[Row]
    """A row per question and method, in the order in which they ran."""
    methods: list[MethodReport]
    """A summary per method that answered every question."""
    failed: dict[str, str] = {}
    """Methods that could not run here, or failed at some question, and why."""
    self_acceptance: dict[str, float] = {}
    """Share of the target's own steps that it accepts, by kind of verdict."""
    measured: Measured | None = None
    """Null when a method that it is measured with did not run."""

    def method(self, name: str) -> MethodReport | None:
        return next((method for method in self.methods if method.name == name), None)

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Raises ValueError, in one sentence, for a file that is not a report."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such report; `dreamr bench --out DIR` writes one.") from None
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise ValueError(f"{path}: not a report of this version: {where}: {problem['msg']}.") from error


if __name__ == "__main__":
    print(json.dumps(Report.model_json_schema(), indent=2))
