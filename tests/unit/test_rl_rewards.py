"""The parts of the reward, that none of them can be raised by writing less or nothing, and the credit of tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamr.types import Prompt
from rl.chains import Chain, ChainStep, DraftedStep
from rl.config import RewardSettings
from rl.data import Example
from rl.rewards import (
    REWARD_PARTS,
    Judged,
    chain_advantage,
    distillation_gaps,
    draft_reward,
    length_reward,
    outcome_reward,
    score_group,
    step_reward,
    token_advantages,
    weighted_sum,
)

STEPS = st.lists(st.builds(DraftedStep, st.integers(1, 60), st.booleans()), min_size=1, max_size=12)
NEEDED = st.integers(1, 9)
ALLOWANCE = 32
EMPTY = DraftedStep(num_tokens=1, accepted=False)


def parts(steps: list[DraftedStep], needed: int) -> tuple[float, float]:
    settings = RewardSettings(step_allowance=ALLOWANCE)
    judged = Judged(steps, correct=True, needed=needed)
    return draft_reward(judged, settings), length_reward(judged, settings)


def length(steps: list[DraftedStep], needed: int) -> float:
    return parts(steps, needed)[1]


def test_what_the_parts_are_on_a_chain_of_the_needed_length() -> None:
    steps = [DraftedStep(16, True), DraftedStep(16, False), DraftedStep(8, True), DraftedStep(40, True)]
    assert outcome_reward(Judged(steps, correct=True, needed=4), RewardSettings()) == 1.0
    assert outcome_reward(Judged(steps, correct=False, needed=4), RewardSettings()) == 0.0
    assert parts(steps, needed=4) == (3 / 4, pytest.approx((1 / 2 + 3 / 4 + 0) / 4))


def test_without_a_needed_number_of_steps_the_accepted_share_is_the_papers() -> None:
    assert parts([DraftedStep(9, True), DraftedStep(9, False)], needed=0)[0] == 1 / 2
    assert parts([], needed=0) == (0.0, 0.0)


def test_each_part_has_a_weight_and_the_reward_is_their_weighted_sum() -> None:
    settings = RewardSettings(outcome=3, draft=2, length=5)
    assert {part.name: part.weight(settings) for part in REWARD_PARTS} == {"outcome": 3, "draft": 2, "length": 5}
    assert weighted_sum({"outcome": 1.0, "draft": 0.5, "length": 0.1}, settings) == pytest.approx(3 + 1 + 0.5)


@given(STEPS, NEEDED)
def test_both_parts_are_shares(steps: list[DraftedStep], needed: int) -> None:
    assert all(0 <= part <= 1 for part in parts(steps, needed))


@given(STEPS, NEEDED, st.data())
def test_an_empty_step_raises_nothing(steps: list[DraftedStep], needed: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(steps)))
    padded = [*steps[:place], EMPTY, *steps[place:]]
    assert all(after <= before for before, after in zip(parts(steps, needed), parts(padded, needed), strict=True))


@given(STEPS, st.data())
def test_leaving_out_a_needed_step_raises_nothing(steps: list[DraftedStep], data: st.DataObject) -> None:
    needed = data.draw(st.integers(len(steps), 12))
    place = data.draw(st.integers(0, len(steps) - 1))
    shorter = [*steps[:place], *steps[place + 1 :]]
    whole = parts(steps, needed)
    assert all(after <= before + 1e-12 for before, after in zip(whole, parts(shorter, needed), strict=True))


@given(STEPS, NEEDED)
def test_a_guess_without_a_chain_earns_at_most_one_needed_step(steps: list[DraftedStep], needed: int) -> None:
    guess = [steps[-1]]
    assert max(parts(guess, needed)) <= 1 / needed


@given(STEPS, st.integers(1, 60), st.integers(1, 60), st.data())
def test_splitting_a_step_and_accepted_filler_save_no_tokens(
    steps: list[DraftedStep], first: int, second: int, data: st.DataObject
) -> None:
    needed = data.draw(st.integers(1, len(steps)))
    split = [DraftedStep(first, True), DraftedStep(second, True)]
    joined = DraftedStep(first + second, True)
    assert length([*steps, *split], needed) <= length([*steps, joined], needed) + 1e-12
    filler = DraftedStep(first, True)
    assert length([*steps, filler], needed) <= length(steps, needed) + 1e-12


@given(STEPS, NEEDED)
def test_shorter_accepted_steps_earn_more_and_shorter_rejected_ones_nothing(
    steps: list[DraftedStep], needed: int
) -> None:
    shorter = [DraftedStep(max(1, step.num_tokens - 1), step.accepted) for step in steps]
    assert length(shorter, needed) >= length(steps, needed) - 1e-12
    rejected = [DraftedStep(step.num_tokens, False) for step in steps]
    assert parts(rejected, needed) == (0.0, 0.0)


# -- credit ------------------------------------------------------------------------------------------------------

SETTINGS = RewardSettings(outcome=1.0, draft=1.0, length=1.0, step_allowance=20)


def step(num_tokens: int, accepted: bool, text: str = "a step\n\n", target_tokens: int = 0) -> ChainStep:
    """A drafted step; with `target_tokens` it was rejected, and the target's step stands in its place."""
    drafted = DraftedStep(num_tokens, accepted)
    count = target_tokens or num_tokens
    source = "target" if target_tokens else "draft"
    return ChainStep(source, (7,) * count, text, (-0.5,) * count, 0.9 if accepted else 0.1, drafted)


def chain(*steps: ChainStep) -> Chain:
    return Chain(steps, "answered")


CORRECT = chain(step(10, True), step(10, True), step(4, True, "</think>Answer: 12"))
WRONG = chain(step(10, True), step(20, False), step(4, True, "</think>Answer: 13"))


def example(needed: int | None) -> Example:
    return Example(Prompt("what?"), "12", "ledger", needed)


def test_a_group_is_scored_part_by_part() -> None:
    correct, wrong = score_group(example(needed=3), [CORRECT, WRONG], SETTINGS)
    assert correct.parts == {"outcome": 1.0, "draft": 1.0, "length": pytest.approx((0.5 + 0.5 + 0.8) / 3)}
    assert wrong.parts == {"outcome": 0.0, "draft": 2 / 3, "length": pytest.approx((0.5 + 0.8) / 3)}
    heavy = RewardSettings(outcome=3, draft=2, length=1, step_allowance=20)
    heavily, _ = score_group(example(needed=3), [CORRECT, WRONG], heavy)
    assert heavily.reward == pytest.approx(3 + 2 + correct.parts["length"])


def test_without_a_number_from_the_task_the_correct_answers_of_the_group_give_it() -> None:
    lucky = chain(step(4, False, "</think>Answer: 12"))
    scored = score_group(example(needed=None), [CORRECT, WRONG, CORRECT, lucky], SETTINGS)
    assert scored[-1].parts["draft"] == 0.0
    short = score_group(example(needed=4), [chain(step(4, True, "</think>Answer: 12"))], SETTINGS)[0]
    assert (short.parts["draft"], short.draft_plain) == (0.25, 1.0)
    assert scored[0].parts["draft"] == 1.0
    assert scored[0].parts["length"] == pytest.approx((0.5 + 0.5 + 0.8) / 3)


@pytest.mark.parametrize("opening", ["<think>", ""])
def test_reasoning_that_was_opened_and_never_closed_earns_no_outcome(opening: str) -> None:
    texts = {"Answer: 12": not opening, "so</think>Answer: 12": True, "so</think>but<think>Answer: 12": False}
    chains = [Chain((step(4, True, text),), "budget", opening) for text in texts]
    scored = score_group(example(needed=1), chains, SETTINGS)
    assert [bool(one.parts["outcome"]) for one in scored] == list(texts.values())


def test_a_loop_within_the_reasoning_is_truncated_and_one_after_it_is_not() -> None:
    within = Chain((step(4, True, "so\n\n"),), "loop", "<think>")
    after = Chain((step(4, True, "so</think>12\n\n"),), "loop", "<think>")
    budget = Chain((step(4, True, "so</think>12\n\n"),), "budget", "<think>")
    answered = Chain((step(4, True, "so"),), "answered", "<think>")
    assert [one.truncated for one in (within, after, budget, answered)] == [True, False, True, False]


@pytest.mark.parametrize("target_steps", [None, 4, 7])
def test_where_the_task_gives_no_number_of_steps_bare_guesses_earn_less_than_whole_chains(
    target_steps: int | None,
) -> None:
    """Even when most of the correct answers are guesses."""
    guess = chain(step(6, True, "</think>Answer: 12"))
    whole = chain(step(10, True), step(10, True), step(10, True), step(6, True, "</think>Answer: 12"))
    wrong = chain(step(10, True), step(10, False), step(6, False, "</think>Answer: 13"))
    scored = score_group(example(needed=None), [guess] * 4 + [whole] * 3 + [wrong], SETTINGS, target_steps)
    assert all(guessed.reward < 2.0 < one.reward for guessed in scored[:4] for one in scored[4:7])


def test_filler_beyond_the_number_of_steps_of_the_target_pays_nothing() -> None:
    whole = chain(step(10, True), step(10, True), step(6, True, "</think>Answer: 12"))
    filler = [step(2, True, "so\n\n") for _ in range(6)]
    padded = chain(step(10, True), *filler, step(10, True), step(6, True, "</think>Answer: 12"))
    first, *_, last = score_group(example(needed=None), [whole, whole, padded], SETTINGS, 3)
    assert last.reward < first.reward


def test_step_credit_blames_the_rejected_step_and_no_other() -> None:
    group = score_group(example(needed=3), [CORRECT, WRONG], RewardSettings(outcome=0.0, step_allowance=20))
    correct, wrong = token_advantages([group], RewardSettings(outcome=0.0, step_allowance=20))
    assert correct[:10] == pytest.approx([0.0] * 10)
    assert wrong[:10] == pytest.approx([0.0] * 10)
    assert all(value > 0 for value in correct[10:20])
    assert wrong[10:30] == pytest.approx([-correct[10]] * 20)
    assert [len(correct), len(wrong)] == [24, 34]


def test_step_credit_leaves_the_targets_tokens_alone() -> None:
    mixed = chain(step(10, True), step(20, False, target_tokens=15), step(4, True, "</think>Answer: 12"))
    group = score_group(example(needed=3), [CORRECT, mixed], SETTINGS)
    _, advantages = token_advantages([group], SETTINGS)
    assert mixed.loss_mask == (1,) * 10 + (0,) * 15 + (1,) * 4
    assert advantages[10:25] == [0.0] * 15
    assert len(advantages) == len(mixed.tokens) == len(mixed.logprobs)


def test_a_chain_is_shown_with_the_advantage_that_it_was_trained_with() -> None:
    mixed = chain(step(2, True), step(9, False, target_tokens=3), step(1, True, "</think>Answer: 12"))
    padded = [0.5, 0.5, 0.0, 0.0, 0.0, -0.4, 0.0, 0.0]
    assert chain_advantage(mixed, padded) == pytest.approx(0.2)
    assert chain_advantage(mixed, -0.3) == -0.3


def test_step_credit_pays_nothing_for_filler() -> None:
    weights = RewardSettings(outcome=0.0, step_allowance=20)
    filled = chain(step(10, True), step(1, True, "so\n\n"), step(10, True), step(4, True, "</think>Answer: 12"))
    group = score_group(example(needed=3), [CORRECT, filled], weights)
    assert all(value < 0 for value in token_advantages([group], weights)[1][10:11])


@given(
    tokens=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    accepted=st.lists(st.booleans(), min_size=8, max_size=8),
    needed=st.integers(1, 8),
)
def test_a_step_earns_the_outcome_and_its_own_part_of_the_other_rewards(
    tokens: list[int], accepted: list[bool], needed: int
) -> None:
    weights = RewardSettings(outcome=1.0, draft=1.0, length=1.0, step_allowance=20)
    steps = [step(count, good) for count, good in zip(tokens, accepted, strict=False)]
    [scored] = score_group(example(needed), [chain(*steps)], weights)
    earned = sum(step_reward(scored.judged, place, weights) for place in range(len(steps)))
    unbounded = sum(one.drafted.accepted * (1 - one.drafted.num_tokens / 20) for one in steps)
    length = (unbounded - max(0, len(steps) - needed)) / needed
    assert earned == pytest.approx(len(steps) * scored.parts["outcome"] + scored.parts["draft"] + length)
    assert max(0.0, length) == pytest.approx(scored.parts["length"])


def test_step_credit_does_not_blow_up_groups_that_agree() -> None:
    shorter = chain(step(9, True), step(10, True), step(4, True, "</think>Answer: 12"))
    agreeing = score_group(example(needed=3), [CORRECT, shorter], SETTINGS)
    differing = score_group(example(needed=3), [CORRECT, WRONG], SETTINGS)
    first, second, _, wrong = token_advantages([agreeing, differing], SETTINGS)
    assert 0 < second[0] < -wrong[10] / 10
    assert first[0] == pytest.approx(-second[0])


# -- distillation ------------------------------------------------------------------------------------------------


def test_the_gaps_of_a_chain_are_those_of_the_drafts_own_tokens() -> None:
    first = ChainStep("draft", (1, 2), "a", (-1.0, -2.0), 0.9, DraftedStep(2, True), (-0.5, -4.0))
    second = ChainStep("target", (3,), "b", (0.0,), 0.1, DraftedStep(4, False), (0.0,))
    assert distillation_gaps(Chain((first, second), "answered")) == [-0.5, 2.0, 0.0]


def test_gaps_as_penalties_on_sampled_tokens_give_the_gradient_of_the_reverse_kl_divergence() -> None:
    """In expectation over the tokens that the draft samples, by the chains that they make."""
    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    draft, target = logits.log_softmax(-1), torch.randn(7, dtype=torch.float64).log_softmax(-1)
    kl = (draft.exp() * (draft - target)).sum()
    [wanted] = torch.autograd.grad(kl, logits, retain_graph=True)
    loss = torch.zeros((), dtype=torch.float64)
    for token, (ours, theirs) in enumerate(zip(draft, target, strict=True)):
        written = ChainStep("draft", (token,), "x", (ours.item(),), 0.9, DraftedStep(1, True), (theirs.item(),))
        [gap] = distillation_gaps(Chain((written,), "answered"))
        loss = loss - ours.exp().detach() * -gap * ours  # the policy gradient's loss: minus advantage times log p
    [found] = torch.autograd.grad(loss, logits)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_the_papers_draft_reward_counts_no_needed_steps() -> None:
    short = chain(step(4, True, "</think>Answer: 12"))
    [needed] = score_group(example(needed=4), [short], SETTINGS)
    [paper] = score_group(example(needed=4), [short], RewardSettings(step_allowance=20, form="paper"))
    assert (needed.parts["draft"], paper.parts["draft"]) == (0.25, 1.0)
    assert paper.parts["length"] == needed.parts["length"]
    assert step_reward(paper.judged, 0, RewardSettings(outcome=0, length=0, form="paper")) == 1.0
