"""The benchmarks by name."""

from __future__ import annotations

from dreamr.eval.benchmark import Benchmark
from dreamr.eval.mathverse import MATHVERSE
from dreamr.eval.mmbench import MMBENCH
from dreamr.eval.mmmu import MMMU
from dreamr.eval.realworldqa import REALWORLDQA

BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in (MATHVERSE, MMBENCH, REALWORLDQA, MMMU)}
