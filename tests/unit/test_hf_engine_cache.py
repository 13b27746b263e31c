"""What the Hugging Face engine caches: logits equal those of a fresh forward, and the bound holds."""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from support.engine_walks import EMBEDDED, GREEDY, roll_back_at_random
from support.reference import Reference
from support.tiny import PROMPTS, save_checkpoint

from dreamr.engines.hf.engine import HFEngine
from dreamr.engines.sampling import TokenChooser
from dreamr.types import ROOT, Sampling, Step


@pytest.fixture(scope="module", params=["tiny", "target", "draft"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return EMBEDDED / request.param if request.param != "tiny" else save_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.mark.parametrize("name", PROMPTS)
async def test_logits_equal_fresh_forwards(
    checkpoint: Path, reference: Reference, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HFEngine.load(str(checkpoint))
    seen: list[torch.Tensor] = []
    choose = TokenChooser.choose
    monkeypatch.setattr(
        TokenChooser, "choose", lambda self, logits: seen.append(logits.clone()) or choose(self, logits)
    )
    prompt = PROMPTS[name]
    first = await engine.next_step("a", prompt, ROOT, GREEDY)
    await engine.score("b", prompt, [first])
    again = await engine.next_step("c", prompt, Step(tokens=first.tokens[:1]), GREEDY)
    prefixes = [first.tokens[:count] for count in range(len(first.tokens))]
    prefixes += [(first.tokens[:1] + again.tokens)[:count] for count in range(1, 1 + len(again.tokens))]
    assert len(seen) == len(prefixes)
    for logits, prefix in zip(seen, prefixes, strict=True):
        torch.testing.assert_close(logits, reference.logits(prompt, prefix), atol=1e-4, rtol=0)
    await engine.close()


async def test_logits_of_interleaved_steps_equal_fresh_forwards(
    checkpoint: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several prompts at once, each going on from a random place in what was written behind it before."""
    engine, rng, sampling = HFEngine.load(str(checkpoint)), random.Random(0), Sampling(max_tokens=5)
    seen: defaultdict[TokenChooser, list[torch.Tensor]] = defaultdict(list)
    order: list[TokenChooser] = []
    choose = TokenChooser.choose

    def watched(self: TokenChooser, logits: torch.Tensor) -> int:
        order.append(self)
        seen[self].append(logits.clone())
        return choose(self, logits)

    monkeypatch.setattr(TokenChooser, "choose", watched)
    written = {name: Step() for name in PROMPTS}
    for number in range(3):
        places = {name: Step(tokens=step.end[: rng.randint(0, len(step.end))]) for name, step in written.items()}
        seen.clear()
        engine.turns.take()  # until all wait in line, so that they take turns token by token
        calls = {
            name: asyncio.create_task(engine.next_step(f"{name} {number}", PROMPTS[name], place, sampling))
            for name, place in places.items()
        }
        async with asyncio.timeout(60):
            while engine.turns.num_waiting < len(calls):  # noqa: ASYNC110 - threads wait there, not tasks
                await asyncio.sleep(0.001)
        engine.turns.give()
        written = {name: await call for name, call in calls.items()}
        rows = list(seen.values())
        for name, step in written.items():
            expected = torch.stack(
                [reference.logits(PROMPTS[name], step.prefix + step.tokens[:n]) for n in range(len(step.tokens))]
            )
            distances = [_distance(row, expected) for row in rows]
            assert min(distances) <= 1e-4, f"{name}, round {number}: {min(distances)}"
            del rows[distances.index(min(distances))]  # each call wrote one step
        assert not rows
    assert any(len({*order[at : at + 3]}) == 3 for at in range(len(order)))
    await engine.close()


def _distance(row: list[torch.Tensor], expected: torch.Tensor) -> float:
    return float((torch.stack(row) - expected).abs().max()) if len(row) == len(expected) else math.inf


async def test_the_cache_keeps_to_its_bound_and_results_do_not_depend_on_it(
    checkpoint: Path, reference: Reference
) -> None:
    engine = HFEngine.load(str(checkpoint), max_cached_tokens=150)
    await roll_back_at_random(engine, reference, 1e-5, seed=150)
    assert engine.cache.num_tokens <= 150
    assert engine.cache.num_leased == 0
    await engine.close()
