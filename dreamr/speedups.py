"""Speedups over the same questions: the geometric mean of their ratios, with a bootstrap interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

NUM_RESAMPLES = 2000


def mean_with_interval(ratios: Sequence[float], seed: int = 0) -> tuple[float, tuple[float, float] | None]:
    """The geometric mean, and the ends of its 95 % interval; None for a single ratio."""
    mean = statistics.geometric_mean(ratios)
    if len(ratios) < 2:
        return mean, None
    rng = random.Random(seed)
    means = [statistics.geometric_mean(rng.choices(ratios, k=len(ratios))) for _ in range(NUM_RESAMPLES)]
    # 40 quantiles: the first and the last cut off 2.5 % each.
    cuts = statistics.quantiles(means, n=40)
    return mean, (cuts[0], cuts[-1])
