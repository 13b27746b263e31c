"""SAPO's reward (paper, section on SAPO): its parts, their weighted sum, and the credit of each token.

    R = w1 * R_outcome + w2 * R_draft + w3 * R_length                     `REWARD_PARTS`, `weighted_sum`

With N drafted steps, A of them accepted, and n steps that the problem needs:

    R_outcome = 1 when the final answer is correct, else 0
    R_draft   = A / max(N, n)
    R_length  = max(0, A - max(0, N - n) - sum over accepted steps of min(tokens / allowance, 1)) / n

R_draft is the paper's N_accepted / N_draft, except that a needed step that was never written counts as drafted and not
accepted, so that writing one safe step and guessing the rest does not pay; `rewards.form: paper` leaves that out.

The paper gives no formula for R_length. Ours is the saved share of a token allowance: every needed step has one, an
accepted step uses its tokens of it, and the rest is the reward. A rejected or missing step saves nothing, and each step
beyond the needed ones costs an allowance. With N = n it is the mean over needed steps of
`accepted * (1 - tokens / allowance)`.

So no part grows (tests/unit/test_rl_rewards.py, on random chains) by adding an empty step, which is never accepted; by
leaving out a step that was needed; by skipping the chain; or, for R_length, by splitting steps or adding accepted
filler to a chain that has all needed steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rl.chains import Chain, DraftedStep
from rl.config import RewardSettings
from rl.data import Example


@dataclass(frozen=True, slots=True)
class Judged:
    """The inputs of one chain's reward."""

    steps: Sequence[DraftedStep]
    correct: bool
    """Whether the final answer is."""
    needed: int
    """Steps that the problem needs; 0: any number."""


def outcome_reward(judged: Judged, settings: RewardSettings) -> float:
    """1 for a correct final answer."""
    return float(judged.correct)


def draft_reward(judged: Judged, settings: RewardSettings) -> float:
    """Accepted share of the drafted steps, of at least `needed` ones in the form `needed`; within 0..1."""
    return sum(step.accepted for step in judged.steps) / _num_drafted(judged, settings)


def length_reward(judged: Judged, settings: RewardSettings) -> float:
    """Saved share of the token allowance of the needed steps; within 0..1."""
    return max(0.0, sum(_saved_share(judged, place, settings) for place in range(len(judged.steps))))


def _accepted_share(judged: Judged, place: int, settings: RewardSettings) -> float:
    """The contribution of one step to R_draft."""
    return judged.steps[place].accepted / _num_drafted(judged, settings)


def _num_drafted(judged: Judged, settings: RewardSettings) -> int:
    """The denominator of R_draft."""
    return max(len(judged.steps), judged.needed if settings.form == "needed" else 0, 1)


def _saved_share(judged: Judged, place: int, settings: RewardSettings) -> float:
    """The contribution of one step to R_length, before the cut at 0."""
    step, num_steps, needed = judged.steps[place], len(judged.steps), max(judged.needed, 1)
    saved = 1 - min(step.num_tokens / settings.step_allowance, 1.0)
    surplus = max(0, num_steps - needed) / num_steps
    return (step.accepted * saved - surplus) / needed


@dataclass(frozen=True, slots=True)
class RewardPart:
    """One part of the reward; its curves are `rewards/<name>/mean` and `std`, and `R_<name>`, the paper's name."""

    name: str
    weight: Callable[[RewardSettings], float]
    of_chain: Callable[[Judged, RewardSettings], float]
    of_step: Callable[[Judged, int, RewardSettings], float] | None = None
    """The contribution of the step at a place to `of_chain`; None: any step may have decided it and gets all of it."""


REWARD_PARTS: tuple[RewardPart, ...] = (
    RewardPart("outcome", lambda settings: settings.outcome, outcome_reward),
    RewardPart("draft", lambda settings: settings.draft, draft_reward, _accepted_share),
    RewardPart("length", lambda settings: settings.length, length_reward, _saved_share),
)
"""Another part takes its function and a row here, and its weight in `RewardSettings`."""


def weighted_sum(values: Mapping[str, float], settings: RewardSettings) -> float:
    """The reward of a chain, or of a step, from its parts by name."""
    return sum(part.weight(settings) * values[part.name] for part in REWARD_PARTS)


@dataclass(frozen=True, slots=True)
class ScoredChain:
    """A chain with its reward."""

    chain: Chain
    judged: Judged
    parts: Mapping[str, float]
    """The parts by name, without their weights."""
    reward: float

    @property
    def draft_plain(self) -> float:
        """The paper's N_accepted / N_draft, without missing steps."""
        return statistics.fmean(step.accepted for step in self.judged.steps)


def score_group(
    example: Example, chains: Sequence[Chain], settings: RewardSettings, target_steps: int | None = None
) -> list[ScoredChain]:
    """Rewards of all chains of one prompt; `target_steps` as in `Group`."""
    correct = [example.is_correct(chain.reply) for chain in chains]
    needed = example.needed_steps or needed_steps(chains, correct, target_steps)
    scored = []
    for chain, is_correct in zip(chains, correct, strict=True):
        judged = Judged(chain.drafted, is_correct, needed)
        parts = {part.name: part.of_chain(judged, settings) for part in REWARD_PARTS}
        scored.append(ScoredChain(chain, judged, parts, weighted_sum(parts, settings)))
    return scored


def needed_steps(chains: Sequence[Chain], correct: Sequence[bool], target_steps: int | None) -> int:
    """Steps that a problem needs, if the task does not say.

    The median over the group's correct answers, or over all when none is correct: one lucky short chain does not move
    it. When most correct answers are guesses without a chain, the median alone would reward these and take whole chains
    for too long. So the result is at least the largest number of accepted steps in a correct answer, up to the length
    of the target's answer: padding a chain beyond that raises nothing.
    """
    right = [chain for chain, is_correct in zip(chains, correct, strict=True) if is_correct]
    median = round(statistics.median(len(chain.steps) for chain in right or chains))
    most = max((sum(step.accepted for step in chain.drafted) for chain in right), default=0)
    return max(median, most if target_steps is None else min(most, target_steps))


def token_advantages(groups: Sequence[Sequence[ScoredChain]], settings: RewardSettings) -> list[list[float]]:
    """Advantages under `credit: step`, per chain of all groups, in order, and per token; 0 where the target wrote.

    GRPO credits every token of a chain with its whole reward. R_draft and R_length are sums over steps, and the shares
    of the other steps are mostly noise for this one. So the tokens of a step get its own share of these two, and the
    whole of R_outcome (`step_reward`).

    The baseline is the mean over the group's steps at the same place in their chains, in units of the standard
    deviation of these differences over this rank's batch: a group whose chains are equally good teaches little, and is
    not scaled up.
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


def chain_advantage(chain: Chain, advantage: float | Sequence[float]) -> float:
    """The advantage of a chain as one number: the mean over the draft's tokens where it is given by token.

    A row of advantages may be padded at its end.
    """
    if isinstance(advantage, float):
        return advantage
    drafted = [value for value, counts in zip(advantage, chain.loss_mask, strict=False) if counts]
    return statistics.fmean(drafted) if drafted else 0.0


def distillation_gaps(chain: Chain) -> list[float]:
    """log p_draft - log p_target per token of the draft, 0 where the target wrote; for `learner.distill_beta`.

    On-policy distillation: the draft is trained on its own samples, by the reverse KL divergence to the target
    (Gu et al. 2023, MiniLLM, arXiv 2306.08543; Agarwal et al. 2023, GKD, arXiv 2306.13649). With the token x sampled
    from p_draft after a prefix s, the gap is an unbiased estimate of KL(p_draft(. | s) || p_target(. | s)), and

        E[ grad log p_draft(x | s) * (log p_draft(x | s) - log p_target(x | s)) ] = grad KL,

    since grad log p_draft has the mean 0. So `-beta * gap` is added to the advantage of the token; one number per token
    is stored, and no distribution of the target. Each token is credited with its own gap alone (a discount of 0),
    which ignores its effect on later prefixes and has far less variance.
    """
    return [
        draft - target if drafted else 0.0
        for draft, target, drafted in zip(chain.logprobs, chain.target_logprobs, chain.loss_mask, strict=True)
    ]


def _against_the_group(group: Sequence[ScoredChain], settings: RewardSettings) -> list[list[float]]:
    """Per chain and step its reward less the mean at that place; less the group's mean where it is alone there."""
    earned = [
        [step_reward(scored.judged, place, settings) for place in range(len(scored.chain.steps))] for scored in group
    ]
    mean = statistics.fmean(value for values in earned for value in values)
    baselines = []
    for place in range(max(map(len, earned))):
        here = [values[place] for values in earned if place < len(values)]
        baselines.append(statistics.fmean(here) if len(here) > 1 else mean)
    return [[value - baselines[place] for place, value in enumerate(values)] for values in earned]


def step_reward(judged: Judged, place: int, settings: RewardSettings) -> float:
    """The weighted sum of the contributions of the step at `place` to each part."""
    parts = {
        part.name: part.of_step(judged, place, settings) if part.of_step else part.of_chain(judged, settings)
        for part in REWARD_PARTS
    }
    return weighted_sum(parts, settings)
