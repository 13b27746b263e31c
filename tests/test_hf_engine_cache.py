"""What the Hugging Face engine caches: logits equal those of a fresh forward, and the bound holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_walks import EMBEDDED, GREEDY, roll_back_at_random
from reference import Reference
from tiny import PROMPTS, save_checkpoint

from dreamr.actors.types import ROOT, Step
from dreamr.engines.hf import HFEngine
from dreamr.engines.sampling import TokenChooser


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


async def test_the_cache_keeps_to_its_bound_and_results_do_not_depend_on_it(
    checkpoint: Path, reference: Reference
) -> None:
    engine = HFEngine.load(str(checkpoint), max_cached_tokens=150)
    await roll_back_at_random(engine, reference, 1e-5, seed=150)
    assert engine.cache.num_tokens <= 150
    assert engine.cache.num_leased == 0
    await engine.close()
