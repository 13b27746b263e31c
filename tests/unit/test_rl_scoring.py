"""Chains become rewards, and rewards become credit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamr.types import Prompt
from rl.chains import Chain, ChainStep
from rl.config import RewardSettings
from rl.data import Example
from rl.rewards import DraftedStep
from rl.scoring import chain_advantage, earned_by_step, score_group, token_advantages

SETTINGS = RewardSettings(outcome=1.0, draft=1.0, length=1.0, step_allowance=20)


def step(num_tokens: int, accepted: bool, text: str = "a step\n\n", target_tokens: int = 0) -> ChainStep:
    """A drafted step; with `target_tokens` it was rejected, and the target's step stands in its place."""
    drafted = DraftedStep(num_tokens, accepted)
    count = target_tokens or num_tokens
    source = "target" if target_tokens else "draft"
    return ChainStep(source, (7,) * count, text, (-0.5,) * count, 0.9 if accepted else 0.1, drafted)


def chain(*steps: ChainStep) -> Chain:
    return Chain(steps, "answered")


RIGHT = chain(step(10, True), step(10, True), step(4, True, "</think>Answer: 12"))
WRONG = chain(step(10, True), step(20, False), step(4, True, "</think>Answer: 13"))


def example(needed: int | None) -> Example:
    return Example(Prompt("what?"), "12", "ledger", needed)


def test_a_group_is_scored_part_by_part() -> None:
    right, wrong = score_group(example(needed=3), [RIGHT, WRONG], SETTINGS)
    assert (right.outcome, right.draft, right.length) == (1.0, 1.0, pytest.approx((0.5 + 0.5 + 0.8) / 3))
    assert (wrong.outcome, wrong.draft, wrong.length) == (0.0, 2 / 3, pytest.approx((0.5 + 0.8) / 3))
    heavy = RewardSettings(outcome=3, draft=2, length=1, step_allowance=20)
    assert right.total(heavy) == pytest.approx(3 + 2 + right.length)


def test_where_nobody_knows_how_many_steps_are_needed_right_answers_of_the_group_tell() -> None:
    lucky = chain(step(4, False, "</think>Answer: 12"))
    scored = score_group(example(needed=None), [RIGHT, WRONG, RIGHT, lucky], SETTINGS)
    assert scored[-1].draft == 0.0
    short = score_group(example(needed=4), [chain(step(4, True, "</think>Answer: 12"))], SETTINGS)[0]
    assert (short.draft, short.draft_plain) == (0.25, 1.0)
    assert scored[0].draft == 1.0
    assert scored[0].length == pytest.approx((0.5 + 0.5 + 0.8) / 3)


def test_step_credit_blames_the_rejected_step_and_no_other() -> None:
    group = score_group(example(needed=3), [RIGHT, WRONG], RewardSettings(outcome=0.0, step_allowance=20))
    right, wrong = token_advantages([group], RewardSettings(outcome=0.0, step_allowance=20))
    assert right[:10] == pytest.approx([0.0] * 10)
    assert wrong[:10] == pytest.approx([0.0] * 10)
    assert all(value > 0 for value in right[10:20])
    assert wrong[10:30] == pytest.approx([-right[10]] * 20)
    assert [len(right), len(wrong)] == [24, 34]


def test_step_credit_leaves_the_targets_tokens_alone() -> None:
    mixed = chain(step(10, True), step(20, False, target_tokens=15), step(4, True, "</think>Answer: 12"))
    group = score_group(example(needed=3), [RIGHT, mixed], SETTINGS)
    _, advantages = token_advantages([group], SETTINGS)
    assert mixed.written_by_draft == (1,) * 10 + (0,) * 15 + (1,) * 4
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
    group = score_group(example(needed=3), [RIGHT, filled], weights)
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
    earned = sum(earned_by_step(scored, place, weights) for place in range(len(steps)))
    unbounded = sum(one.drafted.accepted * (1 - one.drafted.num_tokens / 20) for one in steps)
    length = (unbounded - max(0, len(steps) - needed)) / needed
    assert earned == pytest.approx(len(steps) * scored.outcome + scored.draft + length)
    assert max(0.0, length) == pytest.approx(scored.length)


def test_step_credit_does_not_blow_up_groups_that_agree() -> None:
    shorter = chain(step(9, True), step(10, True), step(4, True, "</think>Answer: 12"))
    agreeing = score_group(example(needed=3), [RIGHT, shorter], SETTINGS)
    differing = score_group(example(needed=3), [RIGHT, WRONG], SETTINGS)
    first, second, _, wrong = token_advantages([agreeing, differing], SETTINGS)
    assert 0 < second[0] < -wrong[10] / 10
    assert first[0] == pytest.approx(-second[0])
