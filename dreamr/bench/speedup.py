"""How many times sooner, over paired wall times, with a bootstrap interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

from dreamr.bench.schema import Speedup

NUM_RESAMPLES = 2000


def speedup(baseline_s: Sequence[float], method_s: Sequence[float], seed: int = 0) -> Speedup:
    """Ratio baseline / method of wall times that belong to the same problems, in the same order."""
    ratios = [base / own for base, own in zip(baseline_s, method_s, strict=True)]
    mean = statistics.geometric_mean(ratios)
    if len(ratios) < 2:
        return Speedup(geomean=mean, low=None, high=None)
    rng = random.Random(seed)
    means = [statistics.geometric_mean(rng.choices(ratios, k=len(ratios))) for _ in range(NUM_RESAMPLES)]
    # 40 quantiles: the first and the last cut off 2.5 % each.
    cuts = statistics.quantiles(means, n=40)
    return Speedup(geomean=mean, low=cuts[0], high=cuts[-1])
