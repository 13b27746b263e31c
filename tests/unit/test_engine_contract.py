"""What every engine owes: whatever is cached, forked, stopped or running, results equal one fresh forward."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from support.engine_kinds import KINDS, EngineKind
from support.engine_walks import EMBEDDED, GREEDY, QUESTIONS, assert_fresh, roll_back_at_random, write_chain
from support.qwen import save_qwen
from support.reference import Reference
from support.tiny import save_checkpoint

from dreamr.config import HFEngineConfig
from dreamr.engines.base import Engine
from dreamr.engines.factory import build_engine
from dreamr.errors import TooLong
from dreamr.types import ROOT, Criterion, Prompt, Sampling, Step

pytestmark = pytest.mark.asyncio(loop_scope="module")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen", "target")]


@pytest.fixture(scope="module", params=["tiny", "draft", *SLOW])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`qwen` has the real vocabulary and a chat template that opens a chain of thought."""
    torch.set_num_threads(1)
    match request.param:
        case "tiny":
            return save_checkpoint(tmp_path_factory.mktemp("tiny"))
        case "qwen":
            return save_qwen(tmp_path_factory.mktemp("qwen"))
    return EMBEDDED / str(request.param)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    return Reference(checkpoint)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> EngineKind:
    kind: EngineKind = request.param
    return kind


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(kind: EngineKind, checkpoint: Path) -> AsyncIterator[Any]:
    """One engine for all tests of a checkpoint: what one test leaves in its cache, the next one may find there."""
    engine = await kind.load(checkpoint)
    yield engine
    await engine.close()


async def test_recommended_sampling_is_that_of_the_generation_config(engine: Any, checkpoint: Path) -> None:
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    names = {"temperature", "top_p", "top_k", "min_p"}
    assert engine.recommended == {name: value for name, value in generation.items() if name in names}


@pytest.mark.parametrize("name", QUESTIONS)
async def test_greedy_steps_equal_fresh_forwards(engine: Engine, reference: Reference, name: str) -> None:
    chain = await write_chain(engine, QUESTIONS[name], 4)
    assert chain[0].prefix == ()
    assert all(after.prefix == before.end for before, after in pairwise(chain))
    for step in chain:
        assert_fresh(reference, QUESTIONS[name], step)


@pytest.mark.parametrize("name", QUESTIONS)
async def test_chain_verdicts_equal_fresh_forwards_and_leave_the_cache_right(
    kind: EngineKind, engine: Engine, reference: Reference, name: str
) -> None:
    prompt = QUESTIONS[name]
    chain = await write_chain(engine, prompt, 4)
    verdicts = await engine.score("a", prompt, chain)
    suffix = [verdict.score for verdict in await engine.score("b", prompt, chain[1:])]
    fresh, masses = zip(*(reference.verdict(prompt, step.end) for step in chain), strict=True)
    assert [verdict.score for verdict in verdicts] == pytest.approx(fresh, abs=kind.rho_tolerance)
    assert [verdict.mass for verdict in verdicts] == pytest.approx(masses, rel=0.01)
    assert suffix == pytest.approx(fresh[1:], abs=kind.rho_tolerance)
    if not chain[-1].closed:
        assert_fresh(reference, prompt, await engine.next_step("c", prompt, chain[-1], GREEDY))


async def test_a_cold_engine_judges_as_a_warm_one(kind: EngineKind, engine: Engine, reference: Reference) -> None:
    prompt = QUESTIONS["two images"]
    chain = await write_chain(engine, prompt, 3)
    await kind.forget(engine)
    fresh = [reference.rho(prompt, step.end) for step in chain[1:]]
    assert [v.score for v in await engine.score("a", prompt, chain[1:])] == pytest.approx(fresh, abs=kind.rho_tolerance)


async def test_random_rollbacks_over_interleaved_prompts_equal_fresh_forwards(
    kind: EngineKind, engine: Engine, reference: Reference
) -> None:
    await roll_back_at_random(engine, reference, kind.rho_tolerance, seed=1)


async def test_concurrent_calls_on_shared_prefixes_equal_fresh_forwards(
    kind: EngineKind, engine: Engine, reference: Reference
) -> None:
    prompts = [QUESTIONS["two images"], QUESTIONS["no image"]]
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
        assert [verdict.score for verdict in verdicts] == pytest.approx(fresh, abs=kind.rho_tolerance)


async def test_a_sampled_step_depends_on_its_seed_alone(kind: EngineKind, engine: Engine) -> None:
    prompt = QUESTIONS["one wide image"]
    samplings = [Sampling(temperature=1.0, top_p=0.9, max_tokens=24, seed=seed) for seed in range(8)]
    together = await asyncio.gather(*(engine.next_step(f"{s.seed}", prompt, ROOT, s) for s in samplings))
    await kind.forget(engine)
    alone = [await engine.next_step("a", prompt, ROOT, sampling) for sampling in reversed(samplings)]
    assert [step.tokens for step in together] == [step.tokens for step in reversed(alone)]
    assert len({step.tokens for step in together}) > 1


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
async def test_log_probabilities_are_those_of_a_fresh_forward_at_the_sampling_temperature(
    kind: EngineKind, engine: Engine, reference: Reference, temperature: float
) -> None:
    prompt = QUESTIONS["one small image"]
    step = await engine.next_step("a", prompt, ROOT, Sampling(temperature, max_tokens=12, seed=3, logprobs=True))
    fresh = reference.logprobs(prompt, step, temperature or 1.0)
    assert list(step.logprobs) == pytest.approx(fresh, abs=kind.logprob_tolerance)
    assert len(step.token_texts) == len(step.tokens)
    assert step.text.startswith(step.token_texts[0])


async def test_a_step_longer_than_max_tokens_is_cut_there(engine: Engine, reference: Reference) -> None:
    prompt = QUESTIONS["one tall image"]
    step = await engine.next_step("a", prompt, ROOT, Sampling(max_tokens=2))
    assert_fresh(reference, prompt, step, Sampling(max_tokens=2))
    assert len(step.tokens) <= 2


async def test_step_text_is_the_decoded_tokens_without_eos(engine: Engine, reference: Reference) -> None:
    for prompt in QUESTIONS.values():
        for step in await write_chain(engine, prompt, 6):
            shown = step.tokens[:-1] if step.closed else step.tokens
            assert step.text == reference.tokenizer.decode(shown, skip_special_tokens=True)
            assert (step.finish == "delimiter") == ("\n\n" in step.text)
            assert 0 < step.started <= step.ended


@pytest.mark.parametrize("criterion", ["digit", "mean_digit", "same"])
async def test_both_engines_give_the_same_verdicts_by_other_criteria(
    kind: EngineKind, engine: Engine, checkpoint: Path, criterion: Criterion
) -> None:
    if not checkpoint.name.startswith(("target", "qwen")):
        pytest.skip("this tokenizer lacks words of the questions")
    prompt = QUESTIONS["ledger"]
    chain = await write_chain(engine, prompt, 3)
    references = chain[1:] + chain[:1] if criterion == "same" else []
    verdicts = await engine.score("a", prompt, chain, criterion, references)
    hf = build_engine(HFEngineConfig(model=str(checkpoint))).engine
    expected = await hf.score("a", prompt, chain, criterion, references)
    assert [v.score for v in verdicts] == pytest.approx([v.score for v in expected], abs=10 * kind.rho_tolerance)


async def test_the_length_of_a_prompt_includes_its_images(engine: Engine, reference: Reference) -> None:
    for prompt in QUESTIONS.values():
        assert await engine.count_tokens(prompt) == reference.inputs(prompt)["input_ids"].shape[1]


async def test_an_engine_knows_its_size(engine: Any, reference: Reference) -> None:
    assert engine.num_parameters == sum(parameter.numel() for parameter in reference.model.parameters())


async def test_nothing_follows_a_closed_step(engine: Engine) -> None:
    step = await engine.next_step("a", QUESTIONS["no image"], Step(tokens=(1, 2), finish="eos"), GREEDY)
    assert (step.prefix, step.tokens, step.finish) == ((1, 2), (), "eos")


async def test_an_empty_chain_has_no_verdicts(engine: Engine) -> None:
    assert await engine.score("a", QUESTIONS["no image"], []) == []


async def test_steps_that_do_not_follow_each_other_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="step 1 of the chain does not follow step 0"):
        await engine.score("a", QUESTIONS["no image"], [Step(tokens=(9,)), Step(tokens=(10,))])


async def test_an_empty_step_is_not_judged(engine: Engine) -> None:
    with pytest.raises(ValueError, match="step 0 of the chain is empty"):
        await engine.score("a", QUESTIONS["no image"], [Step(prefix=(9,), finish="eos")])


async def test_a_stopped_step_keeps_what_it_has_and_the_rest_is_as_if_it_had_not_been(
    engine: Engine, reference: Reference
) -> None:
    prompt = QUESTIONS["ledger"]
    whole, finish = reference.step(prompt, (), GREEDY.max_tokens)
    step = asyncio.create_task(engine.next_step("stopped", prompt, ROOT, GREEDY))
    others = [asyncio.create_task(engine.next_step(f"other {n}", prompt, ROOT, GREEDY)) for n in range(2)]
    await asyncio.sleep(0.001)
    engine.stop("stopped")
    stopped = await step
    assert stopped.tokens == whole[: len(stopped.tokens)]
    assert stopped.finish == ("stopped" if len(stopped.tokens) < len(whole) else finish)
    assert [(other.tokens, other.finish) for other in await asyncio.gather(*others)] == [(whole, finish)] * 2


async def test_a_stop_that_overtakes_its_call_ends_it_at_once(engine: Engine) -> None:
    engine.stop("overtaken")
    step = await engine.next_step("overtaken", QUESTIONS["no image"], ROOT, GREEDY)
    assert (step.tokens, step.finish) == ((), "stopped")
    engine.stop("overtaken")  # late: the call has ended
    assert (await engine.next_step("overtaken", QUESTIONS["no image"], ROOT, GREEDY)).finish != "stopped"


async def test_a_cancelled_step_leaves_the_engine_as_it_was(engine: Engine, reference: Reference) -> None:
    prompt = QUESTIONS["ledger"]
    step = asyncio.create_task(engine.next_step("cancelled", prompt, ROOT, GREEDY))
    await asyncio.sleep(0.001)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert_fresh(reference, prompt, await engine.next_step("cancelled", prompt, ROOT, GREEDY))


async def test_new_weights_replace_all_that_the_old_ones_computed(engine: Any, reference: Reference) -> None:
    prompt = QUESTIONS["ledger"]
    old = await engine.next_step("a", prompt, ROOT, GREEDY)
    weights = reference.model.state_dict()
    turned = {name: -tensor if "layers.0.mlp.down_proj" in name else tensor for name, tensor in weights.items()}
    try:
        await engine.update_weights(turned)
        new = await engine.next_step("a", prompt, ROOT, GREEDY)
        [verdict] = await engine.score("a", prompt, [old])
    finally:
        await engine.update_weights(weights)
    assert new.tokens != old.tokens
    assert verdict.score != pytest.approx(reference.rho(prompt, old.end), abs=1e-3)
    assert_fresh(reference, prompt, await engine.next_step("a", prompt, ROOT, GREEDY))


async def test_weights_that_do_not_fit_are_refused(engine: Any, reference: Reference) -> None:
    with pytest.raises(RuntimeError, match="weight"):
        await engine.update_weights({})
    prompt = QUESTIONS["no image"]
    assert_fresh(reference, prompt, await engine.next_step("a", prompt, ROOT, GREEDY))


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(temperature=-1.0), "temperature must be 0"),
        (Sampling(temperature=1.0, top_p=0.0), "top_p must be above 0"),
        (Sampling(max_tokens=0), "max_tokens must be at least 1"),
    ],
)
async def test_sampling_out_of_range_is_refused(engine: Engine, sampling: Sampling, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await engine.next_step("a", QUESTIONS["no image"], ROOT, sampling)


async def test_a_prefix_beyond_the_models_positions_is_refused(engine: Engine) -> None:
    with pytest.raises(TooLong, match="but the model takes fewer than"):
        await engine.next_step("a", QUESTIONS["no image"], Step(tokens=(9,) * 4096), GREEDY)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("what is <|image_pad|>?"), r"contains '<\|image_pad\|>'"),
        (Prompt("what?", (b"no image",)), r"image 1 of the prompt cannot be read \(8 bytes\)"),
    ],
)
async def test_a_prompt_that_cannot_be_encoded_is_one_sentence(engine: Engine, prompt: Prompt, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await engine.next_step("a", prompt, ROOT, GREEDY)


async def test_a_prompt_beyond_the_models_positions_is_refused_by_every_call(engine: Any) -> None:
    prompt = Prompt("how many? " * engine.max_positions)
    assert await engine.count_tokens(prompt) > engine.max_positions
    for work in (
        engine.prefill(prompt),
        engine.next_step("a", prompt, ROOT, GREEDY),
        engine.score("b", prompt, [Step(tokens=(9,), text="red")]),
    ):
        with pytest.raises(TooLong):
            await work


async def test_a_step_that_leaves_no_space_for_its_verdict_has_none(engine: Any, reference: Reference) -> None:
    prompt = QUESTIONS["no image"]
    num_free = engine.max_positions - await engine.count_tokens(prompt)
    first = await engine.next_step("a", prompt, ROOT, GREEDY)
    filling = Step(first.end, (9,) * (num_free - len(first.end) - 2), "red")
    [verdict, none] = await engine.score("b", prompt, [first, filling])
    assert verdict.score == pytest.approx(reference.rho(prompt, first.end), abs=1e-3)
    assert not none.judged
