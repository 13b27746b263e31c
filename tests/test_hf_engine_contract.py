"""What every engine owes: whatever is cached, forked, evicted or running, results equal one fresh forward."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from reference import Reference
from tiny import PROMPTS, save_checkpoint

from dreamr.actors.types import ROOT, Prompt, Sampling, Step
from dreamr.engines.hf import HFEngine
from dreamr.engines.sampling import TokenChooser

EMBEDDED = Path(__file__).parents[1] / "dreamr" / "models" / "embedded"
GREEDY = Sampling(max_tokens=24)


@pytest.fixture(
    scope="module",
    params=["tiny", *(name for name in ("target", "draft") if (EMBEDDED / name / "config.json").exists())],
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    if request.param != "tiny":
        return EMBEDDED / request.param
    return save_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[HFEngine]:
    engine = HFEngine.load(str(checkpoint))
    yield engine
    await engine.close()


async def write_chain(engine: HFEngine, prompt: Prompt, num_steps: int, sampling: Sampling = GREEDY) -> list[Step]:
    chain: list[Step] = []
    while len(chain) < num_steps and not (chain and chain[-1].closed):
        chain.append(await engine.next_step(f"step {len(chain)}", prompt, chain[-1] if chain else ROOT, sampling))
    return chain


def assert_fresh(reference: Reference, prompt: Prompt, step: Step, sampling: Sampling = GREEDY) -> None:
    assert (step.tokens, step.finish) == reference.step(prompt, step.prefix, sampling.max_tokens)


@pytest.mark.parametrize("name", PROMPTS)
async def test_greedy_steps_equal_fresh_forwards(engine: HFEngine, reference: Reference, name: str) -> None:
    chain = await write_chain(engine, PROMPTS[name], 4)
    assert chain[0].prefix == ()
    assert all(after.prefix == before.end for before, after in pairwise(chain))
    for step in chain:
        assert_fresh(reference, PROMPTS[name], step)


@pytest.mark.parametrize("name", PROMPTS)
async def test_logits_equal_fresh_forwards(
    engine: HFEngine, reference: Reference, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("name", PROMPTS)
async def test_chain_verdicts_equal_fresh_forwards_and_leave_the_cache_right(
    engine: HFEngine, reference: Reference, name: str
) -> None:
    prompt = PROMPTS[name]
    chain = await write_chain(engine, prompt, 4)
    judge_first = [verdict.rho for verdict in await engine.score("a", prompt, chain)]
    suffix = [verdict.rho for verdict in await engine.score("b", prompt, chain[1:])]
    fresh = [reference.rho(prompt, step.end) for step in chain]
    assert judge_first == pytest.approx(fresh, abs=1e-5)
    assert suffix == pytest.approx(fresh[1:], abs=1e-5)
    if not chain[-1].closed:
        assert_fresh(reference, prompt, await engine.next_step("c", prompt, chain[-1], GREEDY))


async def test_a_cold_engine_judges_as_a_warm_one(engine: HFEngine, reference: Reference, checkpoint: Path) -> None:
    prompt = PROMPTS["two images"]
    chain = await write_chain(engine, prompt, 3)
    cold = HFEngine.load(str(checkpoint))
    verdicts = await cold.score("a", prompt, chain[1:])
    await cold.close()
    assert [v.rho for v in verdicts] == pytest.approx([reference.rho(prompt, s.end) for s in chain[1:]], abs=1e-5)


@pytest.mark.parametrize("max_cached_tokens", [16384, 150], ids=["roomy", "evicting"])
async def test_random_rollbacks_over_interleaved_prompts_equal_fresh_forwards(
    checkpoint: Path, reference: Reference, max_cached_tokens: int
) -> None:
    engine = HFEngine.load(str(checkpoint), max_cached_tokens=max_cached_tokens)
    rng = random.Random(max_cached_tokens)
    known: list[tuple[Prompt, Step]] = [(prompt, ROOT) for prompt in PROMPTS.values()]
    did: Counter[str] = Counter()
    for number in range(60):
        prompt, after = rng.choice(known)
        cut = Step(tokens=after.end[: rng.randint(0, len(after.end))])
        did[kind := rng.choice(["step", "step", "cut", "score"])] += 1
        if kind == "score" and after.tokens:
            [verdict] = await engine.score(f"{number}", prompt, [after])
            assert verdict.rho == pytest.approx(reference.rho(prompt, after.end), abs=1e-5)
        elif not after.closed:
            start = cut if kind == "cut" else after
            step = await engine.next_step(f"{number}", prompt, start, GREEDY)
            assert_fresh(reference, prompt, step)
            known.append((prompt, step))
        assert engine.cache.num_tokens <= max_cached_tokens
    assert min(did.values()) > 5
    assert engine.cache.num_leased == 0
    await engine.close()


async def test_concurrent_calls_on_shared_prefixes_equal_fresh_forwards(engine: HFEngine, reference: Reference) -> None:
    prompts = [PROMPTS["two images"], PROMPTS["no image"]]
    chains = [await write_chain(engine, prompt, 2) for prompt in prompts]
    starts = [(prompt, step) for prompt, chain in zip(prompts, chains, strict=True) for step in (ROOT, *chain)]
    starts = [(prompt, step) for prompt, step in starts if not step.closed] * 2
    steps, scores = await asyncio.gather(
        asyncio.gather(*(engine.next_step(f"{i}", prompt, step, GREEDY) for i, (prompt, step) in enumerate(starts))),
        asyncio.gather(
            *(engine.score(f"s{i}", p, chain) for i, (p, chain) in enumerate(zip(prompts, chains, strict=True)))
        ),
    )
    for (prompt, _), step in zip(starts, steps, strict=True):
        assert_fresh(reference, prompt, step)
    for prompt, chain, verdicts in zip(prompts, chains, scores, strict=True):
        fresh = [reference.rho(prompt, step.end) for step in chain]
        assert [verdict.rho for verdict in verdicts] == pytest.approx(fresh, abs=1e-5)


async def test_a_sampled_step_depends_on_its_seed_alone(engine: HFEngine, checkpoint: Path) -> None:
    prompt = PROMPTS["one wide image"]
    samplings = [Sampling(temperature=1.0, top_p=0.9, max_tokens=24, seed=seed) for seed in range(8)]
    together = await asyncio.gather(*(engine.next_step(f"{s.seed}", prompt, ROOT, s) for s in samplings))
    cold = HFEngine.load(str(checkpoint))
    alone = [await cold.next_step("a", prompt, ROOT, sampling) for sampling in reversed(samplings)]
    await cold.close()
    assert [step.tokens for step in together] == [step.tokens for step in reversed(alone)]
    assert len({step.tokens for step in together}) > 1


async def test_a_step_longer_than_max_tokens_is_cut_there(engine: HFEngine, reference: Reference) -> None:
    prompt = PROMPTS["one tall image"]
    step = await engine.next_step("a", prompt, ROOT, Sampling(max_tokens=2))
    assert_fresh(reference, prompt, step, Sampling(max_tokens=2))
    assert len(step.tokens) <= 2


async def test_step_text_is_the_decoded_tokens_without_eos(engine: HFEngine, reference: Reference) -> None:
    for prompt in PROMPTS.values():
        for step in await write_chain(engine, prompt, 6):
            shown = step.tokens[:-1] if step.closed else step.tokens
            assert step.text == reference.tokenizer.decode(shown, skip_special_tokens=True)
            assert (step.finish == "delimiter") == ("\n\n" in step.text)
            assert 0 < step.started <= step.ended


async def test_nothing_follows_a_closed_step(engine: HFEngine) -> None:
    step = await engine.next_step("a", PROMPTS["no image"], Step(tokens=(1, 2), finish="eos"), GREEDY)
    assert (step.prefix, step.tokens, step.finish) == ((1, 2), (), "eos")


async def test_an_empty_chain_has_no_verdicts(engine: HFEngine) -> None:
    assert await engine.score("a", PROMPTS["no image"], []) == []


async def test_steps_that_do_not_follow_each_other_are_refused(engine: HFEngine) -> None:
    with pytest.raises(ValueError, match="step 1 of the chain does not follow step 0"):
        await engine.score("a", PROMPTS["no image"], [Step(tokens=(9,)), Step(tokens=(10,))])


async def test_an_empty_step_is_not_judged(engine: HFEngine) -> None:
    with pytest.raises(ValueError, match="step 0 of the chain is empty"):
        await engine.score("a", PROMPTS["no image"], [Step(prefix=(9,), finish="eos")])
