"""A chain with what its reward is made of, and the credit that each of its tokens gets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rl.chains import Chain
from rl.config import RewardSettings
from rl.data import Example
from rl.rewards import draft_reward, length_reward, outcome_reward


@dataclass(frozen=True, slots=True)
class Scored:
    """The raw parts of one chain's reward."""

    chain: Chain
    needed: int
    """Steps that the problem needs."""
    outcome: float
    draft: float
    length: float

    @property
    def draft_plain(self) -> float:
        """The paper's N_accepted / N_draft, which does not count needed steps that are missing."""
        return draft_reward(self.chain.drafted, needed=0)

    def total(self, weights: RewardSettings) -> float:
        return weights.outcome * self.outcome + weights.draft * self.draft + weights.length * self.length


def score_group(example: Example, chains: Sequence[Chain], settings: RewardSettings) -> list[Scored]:
    """Rewards of all chains of one prompt."""
    right = [example.is_right(chain.text) for chain in chains]
    needed = example.needed_steps or _needed_steps(chains, right)
    return [
        Scored(
            chain,
            needed,
            outcome_reward(good),
            draft_reward(chain.drafted, needed),
            length_reward(chain.drafted, needed, settings.step_allowance),
        )
        for chain, good in zip(chains, right, strict=True)
    ]


def _needed_steps(chains: Sequence[Chain], right: Sequence[bool]) -> int:
    """Where the task does not say how many steps an answer needs: the median of the group's right answers, or of all
    when none is right. One lucky short chain does not move it."""
    lengths = [len(chain.steps) for chain, good in zip(chains, right, strict=True) if good]
    return round(statistics.median(lengths or [len(chain.steps) for chain in chains]))


def token_advantages(groups: Sequence[Sequence[Scored]], settings: RewardSettings) -> list[list[float]]:
    """Per chain of all groups, in order, and token its advantage under `credit: step`; zeros where the target wrote.

    GRPO credits every token of a chain with its whole reward. R_draft and R_length are sums over steps of what each
    verdict says, and what the other steps earn is mostly noise to this one; so a token gets the outcome, which every
    step may have decided, and of the two sums its own step's part. With N drafted steps where n are needed,

        s = w1 * R_outcome + w2 * accepted / max(N, n) + w3 * (accepted * (1 - tokens / allowance) - surplus) / n
        surplus = max(0, N - n) / N

    It counts against the mean of s over the group's steps at the same place in their chains, in units of the standard
    deviation of these differences over this rank's batch: a group whose chains are all as good teaches little, and is
    not blown up.
    """
    differences = [values for group in groups for values in _against_the_group(group, settings)]
    spread = statistics.pstdev(value for values in differences for value in values) + 1e-4
    chains = [scored.chain for group in groups for scored in group]
    return [
        [
            value / spread if step.source == "draft" else 0.0
            for step, value in zip(chain.steps, values, strict=True)
            for _ in step.tokens
        ]
        for chain, values in zip(chains, differences, strict=True)
    ]


def chain_advantage(chain: Chain, trained: float | Sequence[float]) -> float:
    """What a chain was trained with as one number: its advantage, or the mean of those of the tokens that the draft
    wrote; `trained` may go on behind the last token."""
    if isinstance(trained, float):
        return trained
    own = [value for value, counts in zip(trained, chain.written_by_draft, strict=False) if counts]
    return statistics.fmean(own) if own else 0.0


def _against_the_group(group: Sequence[Scored], settings: RewardSettings) -> list[list[float]]:
    """Per chain and step, what it has earned less the mean at that place; the group's mean where it is alone there."""
    earned = [[earned_by_step(scored, place, settings) for place in range(len(scored.chain.steps))] for scored in group]
    mean = statistics.fmean(value for values in earned for value in values)
    baselines = []
    for place in range(max(map(len, earned))):
        here = [values[place] for values in earned if place < len(values)]
        baselines.append(statistics.fmean(here) if len(here) > 1 else mean)
    return [[value - baselines[place] for place, value in enumerate(values)] for values in earned]


def earned_by_step(scored: Scored, place: int, settings: RewardSettings) -> float:
    """s of `token_advantages` for one step of a chain."""
    num_steps, needed = len(scored.chain.steps), max(scored.needed, 1)
    drafted = scored.chain.steps[place].drafted
    saved = 1 - min(drafted.num_tokens / settings.step_allowance, 1.0)
    surplus = max(0, num_steps - needed) / num_steps
    return (
        settings.outcome * scored.outcome
        + settings.draft * drafted.accepted / max(num_steps, needed)
        + settings.length * (drafted.accepted * saved - surplus) / needed
    )
