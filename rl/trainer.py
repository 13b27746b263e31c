"""`SapoTrainer`: TRL's GRPO trainer with rollouts from the pool, the three rewards, and credit by steps.

_generate_and_score_completions
    └─ rollout_func ── weights ─▶ pool ── groups ─▶ scored chains
    └─ reward functions read the parts off the scored chains; TRL weighs, compares and logs them
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from rl.chains import GroupRequest, RolloutTask
from rl.config import SapoConfig
from rl.data import TaskData
from rl.pool_client import PoolClient
from rl.scoring import Scored, chain_advantage, score_group, token_advantages


class SapoTrainer(GRPOTrainer):
    """Every rank asks the pool for the groups of its own prompts."""

    def __init__(self, config: SapoConfig, data: TaskData, pool: PoolClient, **arguments: Any) -> None:
        self._sapo, self._data, self._pool = config, data, pool
        self.scored: list[Scored] = []
        """The chains of this rank's newest batch, in its order."""
        self.examples: list[int] = []
        """Indices of their problems."""
        self.advantages: list[float] = []
        """What they were trained on: the advantage of each, the mean over its drafted tokens with credit by steps."""
        self._logprobs = torch.zeros(0)
        """(chains, tokens), of the newest forward."""
        self.oldest_version = 0
        """The optimizer step whose weights wrote the oldest chain of the newest batch, of any rank."""
        rewards: list[Any] = [_outcome, _draft, _length]
        super().__init__(reward_funcs=rewards, rollout_func=_roll_out, **arguments)

    def sync_weights(self) -> None:
        """Send the present weights to the workers unless they have them. Collective."""
        self._pool.sync(self.model, self.state.global_step)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.examples = [row["example"] for row in inputs]
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._sapo.learner.credit == "step":
            output["advantages"] = self._token_advantages(output["completion_ids"])
        advantages = output["advantages"]
        output["advantages"] = advantages.clamp(min=0) + self._sapo.learner.negative_weight * advantages.clamp(max=0)
        self.advantages = [
            chain_advantage(scored.chain, value)
            for scored, value in zip(self.scored, output["advantages"].tolist(), strict=True)
        ]
        return output

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **more: Any) -> tuple[Tensor, ...]:
        computed: tuple[Tensor, ...] = super()._get_per_token_logps_and_entropies(*arguments, **more)
        self._logprobs = computed[0].detach()
        return computed

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        if self.oldest_version == self.state.global_step:  # the learner has not moved since the rollouts
            ours = inputs["completion_mask"] * inputs["tool_mask"]
            gaps = (self._logprobs - inputs["sampling_per_token_logps"]).abs() * ours
            gap = self.accelerator.gather(gaps.sum() / ours.sum().clamp(min=1)).mean()
            self._metrics["train"]["rollout/logprob_gap"].append(gap.item())
        return loss

    def roll_out(self) -> dict[str, list[Any]]:
        """Chains for the present examples, in the form of TRL's rollout functions."""
        self.sync_weights()
        size = self._sapo.rollout.group_size
        examples = [self._data[index] for index in self.examples[::size]]
        requests = [
            GroupRequest(example.prompt, self._seeds(index), self._sapo.rollout.temperature)
            for index, example in zip(self.examples[::size], examples, strict=True)
        ]
        began = time.perf_counter()
        groups = self._pool.roll_out(requests, RolloutTask(self._sapo.rollout.mode, self._sapo.rollout.alpha))
        seconds = time.perf_counter() - began
        self.scored = [
            scored
            for example, group in zip(examples, groups, strict=True)
            for scored in score_group(example, group.chains, self._sapo.rewards)
        ]
        self._log_rollouts(seconds, [group.version for group in groups])
        chains = [scored.chain for scored in self.scored]
        return {
            "prompt_ids": [list(group.prompt_tokens) for group in groups for _ in group.chains],
            "completion_ids": [list(chain.tokens) for chain in chains],
            "logprobs": [list(chain.logprobs) for chain in chains],
            "env_mask": [list(chain.written_by_draft) for chain in chains],
            "scored": list(self.scored),
        }

    def _seeds(self, example: int) -> tuple[int, ...]:
        """A seed per chain of a group: made from the run's seed, the step and the problem, whoever serves it."""
        name = f"{self._sapo.seed}/{self.state.global_step}/{example}"
        return tuple(
            int.from_bytes(hashlib.sha256(f"{name}/{place}".encode()).digest()[:6], "big")
            for place in range(self._sapo.rollout.group_size)
        )

    def _token_advantages(self, completions: Tensor) -> Tensor:
        """(chains, tokens), zero behind the end of a chain."""
        size = self._sapo.rollout.group_size
        groups = [self.scored[start : start + size] for start in range(0, len(self.scored), size)]
        advantages = torch.zeros(completions.shape, dtype=torch.float32)
        for place, values in enumerate(token_advantages(groups, self._sapo.rewards)):
            advantages[place, : len(values)] = torch.tensor(values)
        return advantages.to(completions.device)

    def _log_rollouts(self, seconds: float, versions: Sequence[int]) -> None:
        chains = [scored.chain for scored in self.scored]
        drafted = [step for chain in chains for step in chain.drafted]
        rhos = [rho for chain in chains for rho in chain.rhos]
        self._log_metric("acceptance/rate", statistics.fmean(step.accepted for step in drafted))
        if rhos:
            self._log_metric("verifier/rho_mean", statistics.fmean(rhos))
        self._log_metric("rollout/step_tokens", statistics.fmean(step.num_tokens for step in drafted))
        self._log_metric("rollout/steps", statistics.fmean(len(chain.steps) for chain in chains))
        self._log_metric("rewards/draft_plain/mean", statistics.fmean(scored.draft_plain for scored in self.scored))
        self._log_metric("weight_sync/time_s", self._pool.sync_seconds)
        # TRL takes the mean over ranks, which is not what these are.
        mine = torch.tensor([[seconds, sum(len(chain.tokens) for chain in chains), min(versions)]])
        all_seconds, all_tokens, oldest = self.accelerator.gather(mine.double().to(self.accelerator.device)).T.tolist()
        self._log_metric("rollout/time_s", max(all_seconds))
        self._log_metric("rollout/tokens_per_s", sum(all_tokens) / max(all_seconds))
        self.oldest_version = int(min(oldest))


def _roll_out(prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
    """TRL's rollout function. The trainer knows which examples the prompts belong to."""
    rolled_out: dict[str, list[Any]] = trainer.roll_out()
    return rolled_out


def _outcome(scored: list[Scored], **_: Any) -> list[float]:
    return [one.outcome for one in scored]


def _draft(scored: list[Scored], **_: Any) -> list[float]:
    return [one.draft for one in scored]


def _length(scored: list[Scored], **_: Any) -> list[float]:
    return [one.length for one in scored]


for _reward, _name in ((_outcome, "outcome"), (_draft, "draft"), (_length, "length")):
    _reward.__name__ = _name  # TRL names the curves after its functions
