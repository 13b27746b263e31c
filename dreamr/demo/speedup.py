"""`Speedup`: how many times sooner, over paired wall times, with a bootstrap interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Speedup:
    """Geometric mean of per-problem ratios, and the 95 % interval of its bootstrap over problems."""

    mean: float
    low: float | None
    """None with a single problem: there is nothing to resample."""
    high: float | None


def speedup(baseline_s: Sequence[float], method_s: Sequence[float], seed: int = 0) -> Speedup:
    """Ratio baseline / method of wall times that belong to the same problems, in the same order."""
    ratios = [base / own for base, own in zip(baseline_s, method_s, strict=True)]
    mean = statistics.geometric_mean(ratios)
    if len(ratios) < 2:
        return Speedup(mean, None, None)
    rng = random.Random(seed)
    means = [statistics.geometric_mean(rng.choices(ratios, k=len(ratios))) for _ in range(NUM_RESAMPLES)]
    # 40 quantiles: the first and the last cut off 2.5 % each.
    cuts = statistics.quantiles(means, n=40)
    return Speedup(mean, cuts[0], cuts[-1])
