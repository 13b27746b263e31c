"""Counting steps and verdicts that differ from the float32 reference."""

from __future__ import annotations

from dataclasses import replace

import torch

from dreamr.config import HFEngineConfig
from dreamr.engines.factory import build_engine
from dreamr.tasks.ledger import make_problem
from tools.flips import TOGETHER, cases, flips, table
from tools.reports import made_by


async def test_float32_has_no_flips_in_a_batch_and_what_differs_is_counted() -> None:
    torch.set_num_threads(1)
    target, draft = (
        build_engine(HFEngineConfig(model=f"embedded:{name}")).engine for name in ("target", "draft-untrained")
    )
    known = await cases(target, draft, [make_problem("test", 5, 0).prompt])
    assert await flips(target, known, TOGETHER) == (0, 0)
    other = replace(known[0], written=known[1].written, accepted=not known[0].accepted)
    assert await flips(target, [other, *known[1:]], TOGETHER) == (1, 1)


def test_the_table_counts_per_thousand_steps() -> None:
    row = {"engine": "hf", "dtype": "bfloat16", "together": 16, "steps": 1, "verdicts": 3}
    text = table({"steps": 250, "rows": [row]} | made_by("tools.flips"))
    assert "| transformers | bfloat16 | 16 | 4.0 | 12.0 |" in text
