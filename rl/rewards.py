"""The three parts of SAPO's reward (paper, section on SAPO). Pure: what happened goes in, numbers come out.

    R = w1 * R_outcome + w2 * R_draft + w3 * R_length

With N drafted steps, A of them accepted (rho > alpha), and n steps that the problem needs:

    R_outcome = 1 when the final answer is right, else 0
    R_draft   = A / max(N, n)
    R_length  = max(0, A - max(0, N - n) - sum over accepted steps of min(tokens / allowance, 1)) / n

R_draft is the paper's N_accepted / N_draft; a needed step that was never written counts as drafted and not accepted,
so that writing one safe step and guessing the rest does not pay. The paper gives no formula for R_length. Ours is the
saved share of a token allowance: every needed step has one, an accepted step spends its tokens of it, and what is not
spent is the reward. A rejected or missing step saves nothing, and each step beyond the needed ones takes an allowance
back. With N = n it is the mean over needed steps of `accepted * (1 - tokens / allowance)`.

So no part grows (tests/unit/test_rl_rewards.py, on random chains) by adding an empty step, which is never accepted; by
leaving out a step that was needed; by skipping the chain; or, for R_length, by splitting steps or adding accepted
filler where the needed steps are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DraftedStep:
    """One step that the draft wrote, and what became of it."""

    num_tokens: int
    """The delimiter included."""
    accepted: bool


def is_accepted(text: str, rho: float | None, alpha: float) -> bool:
    """The rule of the pipelines, rho > alpha, except that a step which says nothing is never accepted."""
    return bool(text.strip()) and rho is not None and rho > alpha


def outcome_reward(right: bool) -> float:
    """1 for a right final answer."""
    return float(right)


def draft_reward(steps: Sequence[DraftedStep], needed: int) -> float:
    """Accepted share of the drafted steps, at least `needed` of them; within 0..1."""
    return sum(step.accepted for step in steps) / max(len(steps), needed, 1)


def length_reward(steps: Sequence[DraftedStep], needed: int, allowance: int) -> float:
    """Saved share of `allowance` tokens per needed step; within 0..1."""
    needed = max(needed, 1)
    accepted = [step for step in steps if step.accepted]
    spent = sum(min(step.num_tokens / allowance, 1.0) for step in accepted)
    superfluous = max(0, len(steps) - needed)
    return max(0.0, len(accepted) - superfluous - spent) / needed
