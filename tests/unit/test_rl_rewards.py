"""The three parts of the reward: what they are, and that none of them can be raised by writing less or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.rewards import DraftedStep, draft_reward, is_accepted, length_reward, outcome_reward

STEPS = st.lists(st.builds(DraftedStep, st.integers(1, 60), st.booleans()), min_size=1, max_size=12)
NEEDED = st.integers(1, 9)
ALLOWANCE = 32
EMPTY = DraftedStep(num_tokens=1, accepted=is_accepted("\n\n", 0.99, alpha=0.7))


def parts(steps: list[DraftedStep], needed: int) -> tuple[float, float]:
    return draft_reward(steps, needed), length_reward(steps, needed, ALLOWANCE)


def test_what_the_parts_are_on_a_chain_of_the_needed_length() -> None:
    steps = [DraftedStep(16, True), DraftedStep(16, False), DraftedStep(8, True), DraftedStep(40, True)]
    assert outcome_reward(True) == 1.0
    assert outcome_reward(False) == 0.0
    assert draft_reward(steps, needed=4) == 3 / 4
    assert length_reward(steps, needed=4, allowance=32) == pytest.approx((1 / 2 + 3 / 4 + 0) / 4)


def test_without_a_known_number_of_steps_the_accepted_share_is_the_papers() -> None:
    assert draft_reward([DraftedStep(9, True), DraftedStep(9, False)], needed=0) == 1 / 2
    assert draft_reward([], needed=0) == 0.0


def test_acceptance_follows_the_pipelines_rule_and_refuses_empty_steps() -> None:
    assert is_accepted("red star 1: 12 + 1 = 13\n\n", 0.71, alpha=0.7)
    assert not is_accepted("red star 1: 12 + 1 = 13\n\n", 0.7, alpha=0.7)
    assert not is_accepted("red star 1: 12 + 1 = 13\n\n", None, alpha=0.7)
    assert not is_accepted(" \n\n", 1.0, alpha=0.7)


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
    before = length_reward([*steps, joined], needed, ALLOWANCE)
    assert length_reward([*steps, *split], needed, ALLOWANCE) <= before + 1e-12
    filler = DraftedStep(first, True)
    assert length_reward([*steps, filler], needed, ALLOWANCE) <= length_reward(steps, needed, ALLOWANCE) + 1e-12


@given(STEPS, NEEDED)
def test_shorter_accepted_steps_earn_more_and_shorter_rejected_ones_nothing(
    steps: list[DraftedStep], needed: int
) -> None:
    shorter = [DraftedStep(max(1, step.num_tokens - 1), step.accepted) for step in steps]
    assert length_reward(shorter, needed, ALLOWANCE) >= length_reward(steps, needed, ALLOWANCE) - 1e-12
    rejected = [DraftedStep(step.num_tokens, False) for step in steps]
    assert parts(rejected, needed) == (0.0, 0.0)
