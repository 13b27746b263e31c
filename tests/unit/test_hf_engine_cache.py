"""What the Hugging Face engine caches and batches: logits equal those of a fresh forward, and the bound holds."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from support.engine_walks import EMBEDDED, GREEDY, roll_back_at_random
from support.reference import Reference
from support.tiny import PROMPTS, save_checkpoint

from dreamr.engines.hf.cache import GRANULARITY
from dreamr.engines.hf.engine import HFEngine
from dreamr.engines.hf.jobs import Output, WriteJob
from dreamr.types import ROOT, Sampling, Step


@pytest.fixture(scope="module", params=["tiny", "draft", pytest.param("target", marks=pytest.mark.slow)])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return EMBEDDED / request.param if request.param != "tiny" else save_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> defaultdict[str, list[torch.Tensor]]:
    """Logits that each call has chosen its tokens from, by call id."""
    seen: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    take = WriteJob.take

    def watched(self: WriteJob, output: Output) -> None:
        assert output.logits is not None
        seen[self.call_id].extend(output.logits.clone())
        take(self, output)

    monkeypatch.setattr(WriteJob, "take", watched)
    return seen


@pytest.mark.parametrize("name", PROMPTS)
async def test_logits_equal_fresh_forwards(
    checkpoint: Path, reference: Reference, name: str, seen: defaultdict[str, list[torch.Tensor]]
) -> None:
    engine = HFEngine.load(str(checkpoint))
    prompt = PROMPTS[name]
    first = await engine.next_step("a", prompt, ROOT, GREEDY)
    await engine.score("b", prompt, [first])
    again = await engine.next_step("c", prompt, Step(tokens=first.tokens[:1]), GREEDY)
    for call, step in (("a", first), ("c", again)):
        expected = reference.logits_at_each(prompt, step.prefix, step.tokens)[:-1]
        torch.testing.assert_close(torch.stack(seen[call]), expected, atol=1e-4, rtol=0)
    await engine.close()


async def test_logits_of_a_batch_equal_fresh_forwards(
    checkpoint: Path, reference: Reference, seen: defaultdict[str, list[torch.Tensor]]
) -> None:
    """Several prompts at once, each continued from a random place in what was written after it before."""
    engine, rng = HFEngine.load(str(checkpoint)), random.Random(0)
    written = {name: Step() for name in PROMPTS}
    for number in range(3):
        places = {name: Step(tokens=step.end[: rng.randint(0, len(step.end))]) for name, step in written.items()}
        seen.clear()
        steps = await asyncio.gather(
            *(engine.next_step(name, PROMPTS[name], place, Sampling(max_tokens=5)) for name, place in places.items())
        )
        written = dict(zip(places, steps, strict=True))
        for name, step in written.items():
            expected = reference.logits_at_each(PROMPTS[name], step.prefix, step.tokens)[:-1]
            distance = float((torch.stack(seen[name]) - expected).abs().max())
            assert distance <= 1e-4, f"{name}, round {number}: {distance}"
    engine.check_integrity()
    await engine.close()


async def test_the_cache_keeps_to_its_bound_and_results_do_not_depend_on_it(
    checkpoint: Path, reference: Reference
) -> None:
    engine = HFEngine.load(str(checkpoint), max_cached_tokens=4 * GRANULARITY)
    await roll_back_at_random(engine, reference, 1e-5, seed=150)
    assert engine.cache.capacity <= 4 * GRANULARITY
    engine.check_integrity()
    await engine.close()
