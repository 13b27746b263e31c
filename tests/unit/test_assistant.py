"""A target with an assistant writes what it writes alone, in fewer forwards."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from support.engine_walks import EMBEDDED, roll_back_at_random
from support.reference import Reference
from support.tiny import PROMPTS, save_checkpoint

from dreamr.engines.hf.assistant import PLAIN_ROUNDS, Controller, LinearCost
from dreamr.engines.hf.engine import HFEngine
from dreamr.tasks.ledger import make_problem
from dreamr.types import ROOT, Prompt, Sampling, Step

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    torch.set_num_threads(1)
    return [save_checkpoint(tmp_path_factory.mktemp("pair") / str(seed), seed) for seed in (1, 2)]


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["unlike", "equal", pytest.param("embedded", marks=pytest.mark.slow)]
)
async def engine(request: pytest.FixtureRequest, folders: list[Path]) -> AsyncIterator[tuple[HFEngine, Path]]:
    """A target whose assistant is another model, the target itself, or the embedded draft."""
    target, assistant = folders[1], folders[0 if request.param == "unlike" else 1]
    if request.param == "embedded":
        target, assistant = EMBEDDED / "target", EMBEDDED / "draft-untrained"
    loaded = HFEngine.load(str(target), assistant=str(assistant), proposed_tokens=5)
    yield loaded, target
    await loaded.close()


async def answer(engine: HFEngine, prompt: Prompt, sampling: Sampling, most: int = 4) -> list[Step]:
    steps = [ROOT]
    while len(steps) <= most and not steps[-1].closed:
        steps.append(await engine.next_step(f"{len(steps)}", prompt, steps[-1], sampling))
    return steps[1:]


@pytest.mark.parametrize("name", ["no image", "one wide image", "two images"])
async def test_greedy_steps_are_the_targets_own(engine: tuple[HFEngine, Path], name: str) -> None:
    prompt = PROMPTS[name]
    assisted = await answer(engine[0], prompt, Sampling(max_tokens=30))
    plain = await answer(engine[0], prompt, Sampling(max_tokens=30, assisted=False))
    assert [(s.tokens, s.text, s.finish) for s in assisted] == [(s.tokens, s.text, s.finish) for s in plain]
    assert all(accepted <= proposed <= 5 for step in assisted for proposed, accepted in step.rounds)
    assert not any(step.rounds for step in plain)
    engine[0].check_integrity()


@pytest.mark.slow
async def test_rollbacks_and_batches_with_an_assistant_equal_fresh_forwards(engine: tuple[HFEngine, Path]) -> None:
    loaded, folder = engine
    await roll_back_at_random(loaded, Reference(folder), 1e-5, seed=7)
    prompts = list(PROMPTS.values())[:4]
    together = await asyncio.gather(*(answer(loaded, prompt, Sampling(max_tokens=12)) for prompt in prompts))
    for prompt, steps in zip(prompts, together, strict=True):
        alone = await answer(loaded, prompt, Sampling(max_tokens=12, assisted=False))
        assert [step.tokens for step in steps] == [step.tokens for step in alone]
    loaded.check_integrity()


async def test_a_sampled_step_depends_on_its_seed_alone(engine: tuple[HFEngine, Path]) -> None:
    prompt = PROMPTS["one wide image"]
    settings = [Sampling(temperature=0.8, max_tokens=12, seed=seed) for seed in range(3)]
    alone = [await engine[0].next_step("a", prompt, ROOT, one) for one in settings]
    together = await asyncio.gather(*(engine[0].next_step(f"{one.seed}", prompt, ROOT, one) for one in settings))
    assert [step.tokens for step in together] == [step.tokens for step in alone]


@pytest.mark.slow
async def test_sampled_tokens_keep_the_targets_distribution(folders: list[Path]) -> None:
    engine = HFEngine.load(str(folders[1]), assistant=str(folders[0]), proposed_tokens=2)
    prompt, draws = PROMPTS["no image"], 400
    second: dict[int, Counter[int]] = {}
    for seed in range(draws):
        step = await engine.next_step("a", prompt, ROOT, Sampling(temperature=0.6, max_tokens=2, seed=seed))
        second.setdefault(step.tokens[0], Counter())[step.tokens[-1]] += 1
    await engine.close()
    reference = Reference(folders[1])
    first = torch.softmax(reference.logits(prompt, ()) / 0.6, -1)
    counts = torch.zeros_like(first)
    for token, tokens in second.items():
        counts[token] = tokens.total()
    likely = first.topk(4).indices
    spread = (first * (1 - first) / draws).sqrt()
    assert ((counts / draws - first)[likely].abs() < 4 * spread[likely]).all()


async def test_a_good_assistant_saves_forwards() -> None:
    engine = HFEngine.load(str(EMBEDDED / "target"), assistant=str(EMBEDDED / "draft-untrained"), proposed_tokens=8)
    steps = await answer(engine, make_problem("test", 3, 0).prompt, Sampling(max_tokens=96), most=8)
    rounds = [one for step in steps for one in step.rounds]
    assert sum(accepted for _, accepted in rounds) > sum(len(step.tokens) for step in steps) / 2
    await engine.close()


async def test_an_assistant_with_other_token_ids_is_refused(folders: list[Path]) -> None:
    with pytest.raises(ValueError, match="other token ids"):
        HFEngine.load(str(folders[0]), assistant=str(EMBEDDED / "draft"))


async def test_the_number_of_proposed_tokens_follows_acceptance_and_costs() -> None:
    def chosen(acceptance: float, assistant_s: float) -> int:
        controller = Controller(most=16)
        for count in range(1, 30):
            controller.target.measured(count, 0.004 + 0.0002 * count)
            controller.assistant.measured(1, assistant_s)
        controller.accepted, controller.rejected = 100 * acceptance, 100 * (1 - acceptance)
        return controller.choose(1)

    assert chosen(0.95, 0.0005) > chosen(0.7, 0.0005) > chosen(0.2, 0.0005)
    assert chosen(0.2, 0.004) == 0
    assert chosen(0.95, 0.0001) == 16


async def test_proposals_are_tried_again_after_many_rounds_without_one() -> None:
    controller = Controller(most=16, accepted=0.0, rejected=10.0)
    controller.target.measured(1, 0.004)
    controller.assistant.measured(1, 0.004)
    counts = [controller.choose(1) for _ in range(2 * PLAIN_ROUNDS)]
    assert [place for place, count in enumerate(counts, 1) if count] == [PLAIN_ROUNDS, 2 * PLAIN_ROUNDS]


async def test_only_rounds_with_a_proposal_count_for_its_number(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[tuple[int, int]] = []
    monkeypatch.setattr(Controller, "observe", lambda _, *counts: observed.append(counts))
    engine = HFEngine.load(str(folders[1]), assistant=str(folders[1]), proposed_tokens=3)
    hint = await engine.next_step("a", PROMPTS["no image"], ROOT, Sampling(max_tokens=12, assisted=False))
    step = await engine.next_step("b", PROMPTS["no image"], ROOT, Sampling(max_tokens=24, hint=hint.tokens))
    await engine.close()
    assert observed == list(step.rounds)


async def test_a_linear_cost_is_learnt_and_forgets_old_measurements() -> None:
    cost = LinearCost()
    assert cost.of(3) == 0.0
    for base in (1.0, 3.0):
        for count in [*range(1, 40)] * 10:
            cost.measured(count, base + 0.1 * count)
    assert cost.of(10) == pytest.approx(4.0, abs=0.1)
