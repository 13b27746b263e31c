"""Fits a simulation preset to two published speedups and predicts the others: `python -m tools.fit_preset`.

The paper gives speedups and no latencies. If all steps are alike, two numbers decide how much faster a schedule is: the
acceptance rate, and what a drafted step with its verdict costs relative to a step of the target (the overhead). They
are fitted so that the simulated SpecReason and FPSR reach their published speedups. The rest is as in the base preset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from dreamr.bench.scenario import Scenario, Writing
from dreamr.bench.simulation import predict
from dreamr.config import PipelineSettings

BASE = "q32b-q2b"
SPECREASON, FPSR = 1.18, 1.86
"""Published for scheduling alone, Qwen3-VL 32B with a 2B draft before training."""
PUBLISHED_ACCEPTANCE = 0.526
"""With a trained 2B draft on MathVerse; none is published for the untrained one."""
TRAINED_SPEEDUPS = (2.38, 2.48)
TRAINED_ACCEPTANCE = (PUBLISHED_ACCEPTANCE, 0.7145)
KINDS = ("rho", "digit", "same")
TOKENS_AT_ONCE = 4
"""Fewer, longer tokens: a simulation takes as long as it has tokens, and predicts the same."""
ROUNDS = 8


def mean_step_s(writing: Writing) -> float:
    """Seconds of a step of mean length."""
    return writing.first_token_s + writing.token_s * sum(writing.step_tokens) / 2


def scenario(acceptance: float, overhead: float) -> Scenario:
    """The base preset with this acceptance and overhead; draft and verdict take half of the overhead each."""
    base = Scenario.read(BASE)
    half = overhead * mean_step_s(base.target) / 2
    draft = base.draft.model_copy(update={"first_token_s": 0.0, "token_s": half / (sum(base.draft.step_tokens) / 2)})
    changes = {"draft": draft, "verdict_s": half, "acceptance": dict.fromkeys(KINDS, acceptance)}
    return base.model_copy(update=changes)


def speedup_of(method: str, chosen: Scenario, num_problems: int) -> float:
    """The simulator's prediction."""
    coarse = {"target": _coarse(chosen.target), "draft": _coarse(chosen.draft)}
    settings = PipelineSettings(max_tokens=10**9)
    [prediction] = predict(chosen.model_copy(update=coarse), settings, [method], num_problems)
    assert prediction is not None, "the scenario has an acceptance rate for every kind of verdict"
    return prediction.speedup.geomean


def _coarse(writing: Writing) -> Writing:
    shortest, longest = (max(1, count // TOKENS_AT_ONCE) for count in writing.step_tokens)
    return writing.model_copy(update={"token_s": writing.token_s * TOKENS_AT_ONCE, "step_tokens": (shortest, longest)})


def overhead_for(acceptance: float, num_problems: int) -> float:
    """The overhead at which SpecReason has its published speedup: its time is linear in the overhead."""
    low, high = 0.1, 0.9
    times = [1 / speedup_of("specreason", scenario(acceptance, overhead), num_problems) for overhead in (low, high)]
    return low + (1 / SPECREASON - times[0]) * (high - low) / (times[1] - times[0])


def fit(num_problems: int) -> tuple[float, float]:
    """Acceptance and overhead."""

    def fpsr_at(acceptance: float) -> float:
        return speedup_of("fpsr", scenario(acceptance, overhead_for(acceptance, num_problems)), num_problems)

    acceptance = bisect(fpsr_at, FPSR, 0.3, 0.95)
    return acceptance, overhead_for(acceptance, num_problems)


def bisect(rising: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a rising function has the wanted value."""
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def main(problems: Annotated[int, typer.Option(help="Simulated problems per prediction.")] = 20) -> None:
    """Print the fitted values and the predictions from them."""

    def show(name: str, value: float) -> None:
        typer.echo(f"{name:58} {value:.3f}")

    def fpsr(acceptance: float, overhead: float) -> float:
        return speedup_of("fpsr", scenario(acceptance, overhead), problems)

    acceptance, overhead = fit(problems)
    fitted = scenario(acceptance, overhead)
    show("fitted acceptance", acceptance)
    show("fitted (draft + verdict) / target step", overhead)
    typer.echo(f"in the preset: draft token_s {fitted.draft.token_s:.4f}, verdict_s {fitted.verdict_s:.3f}")
    for method in ("specreason", "fpsr", "lookahead", "lookahead_batch"):
        show(f"{method}, predicted", speedup_of(method, fitted, problems))
    for published in TRAINED_SPEEDUPS:
        needed = bisect(lambda value: fpsr(value, overhead), published, 0.3, 1.0)
        show(f"acceptance that FPSR needs for {published}", needed)
    for rate in TRAINED_ACCEPTANCE:
        show(f"FPSR at an acceptance of {rate}", fpsr(rate, overhead))
        show(f"FPSR at an acceptance of {rate}, no overhead", fpsr(rate, 0.0))
    alone = bisect(lambda value: -fpsr(PUBLISHED_ACCEPTANCE, value), -FPSR, 0.0, 1.0)
    show(f"overhead that FPSR needs for {FPSR} at {PUBLISHED_ACCEPTANCE}", alone)
    show("SpecReason then", speedup_of("specreason", scenario(PUBLISHED_ACCEPTANCE, alone), problems))


if __name__ == "__main__":
    typer.run(main)
