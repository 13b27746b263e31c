"""Token-level speculation is exact: greedy output is the target's own, sampled output has the target's distribution."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.reference import Reference
from support.tiny import PROMPTS, save_checkpoint

from dreamr.engines.hf.engine import HFEngine
from dreamr.engines.sampling import accept_greedy, accept_sampled
from dreamr.types import ROOT, Prompt, Proposal, Sampling, Step, Tokens

CHI_SQUARE_999 = {3: 16.27, 4: 18.47, 24: 51.18}
"""What a chi-square statistic of so many degrees of freedom exceeds once in a thousand times."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two unlike models with one tokenizer: draft, target."""
    return [save_checkpoint(tmp_path_factory.mktemp("pair") / str(seed), seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def pair(folders: list[Path]) -> tuple[HFEngine, HFEngine]:
    draft, target = (HFEngine.load(str(folder)) for folder in folders)
    return draft, target


def chi_square(counts: Counter[Tokens], expected: dict[Tokens, float]) -> float:
    assert set(counts) <= set(expected)
    return sum((counts[key] - number) ** 2 / number for key, number in expected.items())


@pytest.mark.parametrize("alike", [False, True])
def test_two_sampled_tokens_have_the_targets_joint_distribution(alike: bool) -> None:
    """Vocabulary of 5: the distribution at the second place depends on the first token, as in a model."""
    torch.manual_seed(3)
    target = torch.softmax(torch.randn(6, 5), -1)  # row 0: first token; row 1 + t: second token behind t
    draft = torch.softmax(torch.randn(6, 5) + (3 * target.log() if alike else 0), -1)
    generator, counts, num_draws = torch.Generator().manual_seed(0), Counter[Tokens](), 6000
    number = random.Random(0).random
    for _ in range(num_draws):
        first = int(torch.multinomial(draft[0], 1, generator=generator))
        second = int(torch.multinomial(draft[1 + first], 1, generator=generator))
        p, q = target[[0, 1 + first, 1 + second]], draft[[0, 1 + first]]
        num, own = accept_sampled(p, q, (first, second), number)
        tokens = (*(first, second)[:num], own)[:2]
        if len(tokens) == 1:  # rejected at once: the next round would begin with the second token
            tokens += (int(torch.multinomial(target[1 + own], 1, generator=generator)),)
        counts[tokens] += 1
    expected = {(a, b): float(num_draws * target[0, a] * target[1 + a, b]) for a in range(5) for b in range(5)}
    assert chi_square(counts, expected) < CHI_SQUARE_999[24]


def test_a_proposal_from_the_targets_own_distribution_is_always_accepted() -> None:
    p = torch.softmax(torch.randn(4, 7), -1)
    generator, number = torch.Generator().manual_seed(0), random.Random(0).random
    for _ in range(200):
        tokens = [int(torch.multinomial(row, 1, generator=generator)) for row in p[:3]]
        assert accept_sampled(p, p[:3], tokens, number)[0] == 3


def test_probabilities_that_differ_by_rounding_alone_leave_the_targets_to_draw_from() -> None:
    p = torch.tensor([[0.25, 0.5], [0.5, 0.5]])  # rows that round to less than 1: q is nowhere smaller
    outcomes = {accept_sampled(p, 2 * p[:1], (0,), random.Random(seed).random) for seed in range(20)}
    assert {own for num, own in outcomes if num == 0} <= {0, 1}
    assert any(num == 0 for num, _ in outcomes)


def test_greedy_acceptance_stops_at_the_first_difference() -> None:
    assert accept_greedy([0, 1, 2, 3], (0, 1, 2)) == (3, 3)
    assert accept_greedy([0, 1, 2, 3], (0, 5, 2)) == (1, 1)
    assert accept_greedy([0], ()) == (0, 0)


async def speculate(pair: tuple[HFEngine, HFEngine], prompt: Prompt, num_tokens: int, sampling: Sampling) -> list[Step]:
    """Steps of at least `num_tokens` tokens, in rounds."""
    draft, target = pair
    steps: list[Step] = [ROOT]
    while len(steps[-1].end) < num_tokens and not steps[-1].closed:
        after = steps.pop() if steps[-1].finish == "stopped" else Step(prefix=steps[-1].end)
        proposal = await draft.propose_tokens("p", prompt, after, 4, sampling)
        checked = await target.check_tokens("c", prompt, after, proposal, sampling)
        steps.extend(checked.steps)
    return steps[1:]


@pytest.mark.parametrize("name", ["no image", "one wide image", "two images"])
@pytest.mark.parametrize("own_draft", [False, True])
def test_greedy_rounds_write_what_the_target_writes(
    pair: tuple[HFEngine, HFEngine], name: str, own_draft: bool
) -> None:
    prompt, sampling = PROMPTS[name], Sampling(max_tokens=16)

    async def compare() -> None:
        engines = (pair[1], pair[1]) if own_draft else pair
        for step in await speculate(engines, prompt, 60, sampling):
            if step.finish != "stopped":
                plain = await pair[1].next_step("plain", prompt, Step(prefix=step.prefix), sampling)
                assert (step.tokens, step.text, step.finish) == (plain.tokens, plain.text, plain.finish)

    asyncio.run(compare())


def test_an_empty_proposal_gives_one_token_of_the_target(pair: tuple[HFEngine, HFEngine]) -> None:
    async def one() -> tuple[Tokens, Tokens]:
        prompt, sampling = PROMPTS["one small image"], Sampling()
        checked = await pair[1].check_tokens("a", prompt, ROOT, Proposal(), sampling)
        plain = await pair[1].next_step("b", prompt, ROOT, Sampling(max_tokens=1))
        return checked.steps[0].tokens, plain.tokens

    checked, plain = asyncio.run(one())
    assert checked == plain


def test_sampled_rounds_of_two_models_have_the_targets_distribution(
    pair: tuple[HFEngine, HFEngine], folders: list[Path]
) -> None:
    prompt, num_draws = PROMPTS["no image"], 300
    draft, target = pair

    async def first_tokens() -> Counter[Tokens]:
        counts: Counter[Tokens] = Counter()
        for seed in range(num_draws):
            proposal = await draft.propose_tokens("p", prompt, ROOT, 1, Sampling(temperature=0.7, seed=seed))
            sampling = Sampling(temperature=0.7, seed=10_000 + seed)
            checked = await target.check_tokens("c", prompt, ROOT, proposal, sampling)
            counts[checked.steps[0].tokens[:1]] += 1
        return counts

    counts = asyncio.run(first_tokens())
    p = torch.softmax(Reference(folders[1]).logits(prompt, ()) / 0.7, -1)
    likeliest = p.topk(4).indices.tolist()
    expected = {(token,): float(num_draws * p[token]) for token in likeliest}
    expected[-1,] = num_draws - sum(expected.values())
    merged = Counter({(token,): counts[token,] for token in likeliest})
    merged[-1,] = num_draws - merged.total()
    assert min(expected.values()) > 5
    assert chi_square(merged, expected) < CHI_SQUARE_999[4]


@pytest.mark.parametrize("name", ["no image", "one wide image", "two images"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_batch_of_branches_writes_what_single_calls_write(
    pair: tuple[HFEngine, HFEngine], name: str, temperature: float
) -> None:
    draft, target = pair
    prompt, sampling = PROMPTS[name], Sampling(max_tokens=12)

    async def compare() -> None:
        chain = [ROOT]
        while len(chain) < 4 and not chain[-1].closed:
            chain.append(await draft.next_step("d", prompt, chain[-1], sampling))
        chain = [step for step in chain if not step.closed]
        each = [replace(sampling, temperature=temperature, seed=place) for place in range(len(chain))]
        together = await target.next_steps("b", prompt, chain, each)
        again = await target.next_steps("b", prompt, chain, each)
        alone = [await target.next_step("s", prompt, *one) for one in zip(chain, each, strict=True)]
        for steps in (together, again):
            assert [(s.prefix, s.tokens, s.text, s.finish) for s in steps] == [
                (s.prefix, s.tokens, s.text, s.finish) for s in alone
            ]

    asyncio.run(compare())


def test_a_batch_of_branches_needs_a_chain_without_gaps(pair: tuple[HFEngine, HFEngine]) -> None:
    chains = {"does not follow": [ROOT, Step((5,), (6,))], "it ends the answer": [Step((), (5,), finish="eos")]}
    for problem, chain in chains.items():
        with pytest.raises(ValueError, match=problem):
            asyncio.run(pair[1].next_steps("b", PROMPTS["no image"], chain, [Sampling()] * len(chain)))
