"""`max_tokens` is a hard cap, in every schedule and wherever a step crosses it."""

from __future__ import annotations

import pytest
from support.scripted import PROMPT, World, check_steps

from dreamr.bench.simulation import virtual
from dreamr.types import Sampling
from pipelines import SCHEDULES

SPECULATIVE = set(SCHEDULES) - {"autoregressive", "token_speculative"}
"""A drafted step that is cut may be accepted where the whole one was rejected."""


@pytest.mark.parametrize("method", list(SCHEDULES))
def test_no_answer_is_longer_than_its_budget(method: str) -> None:
    async def compare(seed: int) -> None:
        whole = await World.make(seed).run(method, PROMPT)
        for max_tokens in {1, 7, 20, len(whole.tokens) - 1} & set(range(1, len(whole.tokens))):
            world = World.make(seed)
            cut = await world.run(method, PROMPT, max_tokens=max_tokens)
            assert (len(cut.tokens), cut.end) == (max_tokens, "budget")
            assert whole.text.startswith(cut.text) or method in SPECULATIVE
            if method in ("sequential", "fpsr"):
                check_steps(world, cut, max_tokens=max_tokens)

    for seed in range(20):
        virtual(compare(seed))


def test_a_step_is_no_longer_than_what_is_left() -> None:
    sampling = Sampling(max_tokens=10, budget=25)
    assert [sampling.within_budget(before).max_tokens for before in (0, 15, 16, 24, 25, 30)] == [10, 10, 9, 1, 1, 1]
    assert Sampling(max_tokens=10).within_budget(99).max_tokens == 10
