"""`SapoTrainer`: TRL's GRPO trainer with rollouts from the pool, SAPO's reward, and credit by steps.

_generate_and_score_completions
    └─ rollout_func ── weights ─▶ pool ── groups ─▶ scored chains
    └─ reward function: the reward of each scored chain; TRL turns rewards into advantages
"""

from __future__ import annotations

import hashlib
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from dreamr.tasks.images import open_images
from dreamr.tasks.prompts import PromptConfig, chat_messages
from rl import checkpoints
from rl.chains import Group, GroupRequest, RolloutTask
from rl.config import LearnerSettings, SapoConfig
from rl.data import TaskData
from rl.evaluation import TOTAL
from rl.pool_client import PoolClient, stop_unless_finite
from rl.rewards import (
    REWARD_PARTS,
    ScoredChain,
    chain_advantage,
    distillation_gaps,
    score_group,
    token_advantages,
)


class SapoTrainer(GRPOTrainer):
    """Every rank asks the pool for the groups of its own prompts."""

    def __init__(self, config: SapoConfig, data: TaskData, pool: PoolClient, **arguments: Any) -> None:
        self._sapo, self._data, self._pool = config, data, pool
        self.scored: list[ScoredChain] = []
        """The chains of this rank's newest batch, in its order."""
        self.examples: list[int] = []
        """Indices of their problems."""
        self.advantages: list[float] = []
        """Advantage of each chain, the mean over its drafted tokens where each token has its own."""
        self._logprobs = torch.zeros(0)
        """(chains, tokens), of the newest forward."""
        self.oldest_version = 0
        """The optimizer step whose weights wrote the oldest chain of the newest batch, of any rank."""
        functions: list[Any] = [_reward]
        super().__init__(reward_funcs=functions, rollout_func=_roll_out, **arguments)

    def sync_weights(self) -> None:
        """Send the current weights to the workers unless they have them. Collective."""
        self._pool.sync(self.model, self.state.global_step)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.examples = [row["example"] for row in inputs]
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        output["advantages"] = self._advantages(output["advantages"], output["completion_ids"])
        self.advantages = [
            chain_advantage(scored.chain, value)
            for scored, value in zip(self.scored, output["advantages"].tolist(), strict=True)
        ]
        return output

    def _advantages(self, of_chains: Tensor, completions: Tensor) -> Tensor:
        """The batch's advantages, from TRL's (chains): of the same shape, or (chains, tokens)."""
        learner, advantages = self._sapo.learner, of_chains
        if learner.credit == "step":
            size = self._sapo.rollout.group_size
            groups = [self.scored[start : start + size] for start in range(0, len(self.scored), size)]
            advantages = _padded(token_advantages(groups, self._sapo.rewards), completions)
        advantages = advantages.clamp(min=0) + learner.negative_weight * advantages.clamp(max=0)
        if learner.distill_beta:
            gaps = _padded([distillation_gaps(scored.chain) for scored in self.scored], completions)
            advantages = (advantages if advantages.dim() == 2 else advantages[:, None]) - learner.distill_beta * gaps
        stop_unless_finite("an advantage", advantages, self.state.global_step)
        return advantages

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **more: Any) -> tuple[Tensor, ...]:
        computed: tuple[Tensor, ...] = super()._get_per_token_logps_and_entropies(*arguments, **more)
        self._logprobs = computed[0].detach()
        return computed

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        stop_unless_finite("the loss", loss, self.state.global_step)
        if self.oldest_version == self.state.global_step:  # the weights are still those of the rollouts
            drafted = inputs["completion_mask"] * inputs["tool_mask"]
            gaps = (self._logprobs - inputs["sampling_per_token_logps"]).abs() * drafted
            gap = self.accelerator.gather(gaps.sum() / drafted.sum().clamp(min=1)).mean()
            self._metrics["train"]["rollout/logprob_gap"].append(gap.item())
        return loss

    def roll_out(self) -> dict[str, list[Any]]:
        """Chains for the current examples, in the form of TRL's rollout functions."""
        self.sync_weights()
        rollout = self._sapo.rollout
        indices = self.examples[:: rollout.group_size]
        examples = [self._data[index] for index in indices]
        asks_target = self._sapo.rewards.needed_from == "target"
        requests = [
            GroupRequest(
                example.prompt, self._seeds(index), rollout.temperature, asks_target and example.needed_steps is None
            )
            for index, example in zip(indices, examples, strict=True)
        ]
        task = RolloutTask(rollout.mode, rollout.rule, target_logprobs=self._sapo.learner.distill_beta > 0)
        began = time.perf_counter()
        groups = self._pool.roll_out(requests, task)
        seconds = time.perf_counter() - began
        self.scored = [
            scored
            for example, group in zip(examples, groups, strict=True)
            for scored in score_group(example, group.chains, self._sapo.rewards, group.target_steps)
        ]
        self._log_rewards()
        self._log_rollouts(seconds, groups)
        chains = [scored.chain for scored in self.scored]
        return {
            "prompt_ids": [list(group.prompt_tokens) for group in groups for _ in group.chains],
            "completion_ids": [list(chain.tokens) for chain in chains],
            "logprobs": [list(chain.logprobs) for chain in chains],
            "env_mask": [list(chain.loss_mask) for chain in chains],
            "reward": [scored.reward for scored in self.scored],
        }

    def _seeds(self, example: int) -> tuple[int, ...]:
        """A seed per chain of a group, made from the run's seed, the step, the problem and the chain's number."""
        name = f"{self._sapo.seed}/{self.state.global_step}/{example}"
        return tuple(
            int.from_bytes(hashlib.sha256(f"{name}/{place}".encode()).digest()[:6], "big")
            for place in range(self._sapo.rollout.group_size)
        )

    def _log_rewards(self) -> None:
        """Log the parts of the reward over all ranks, under TRL's names and the paper's."""
        parts = torch.tensor([[scored.parts[part.name] for part in REWARD_PARTS] for scored in self.scored])
        values = self.accelerator.gather(parts.to(self.accelerator.device))
        for part, mean, std in zip(REWARD_PARTS, values.mean(0).tolist(), values.std(0).tolist(), strict=True):
            self._log_metric(f"rewards/{part.name}/mean", mean)
            self._log_metric(f"rewards/{part.name}/std", std)
            self._log_metric(f"R_{part.name}", mean)
        self._log_metric("rewards/draft_plain/mean", statistics.fmean(scored.draft_plain for scored in self.scored))

    def _log_rollouts(self, seconds: float, groups: Sequence[Group]) -> None:
        chains = [scored.chain for scored in self.scored]
        drafted = [step for chain in chains for step in chain.drafted]
        self._log_metric("acceptance/rate", statistics.fmean(step.accepted for step in drafted))
        if rhos := [score for chain in chains for score in chain.scores]:
            self._log_metric("verifier/rho_mean", statistics.fmean(rhos))
        self._log_metric("rollout/step_tokens", statistics.fmean(step.num_tokens for step in drafted))
        self._log_metric("rollout/steps", statistics.fmean(len(chain.steps) for chain in chains))
        self._log_metric("weight_sync/time_s", self._pool.sync_seconds)
        if self._sapo.learner.distill_beta:
            gaps = [sum(distillation_gaps(chain)) / max(sum(chain.loss_mask), 1) for chain in chains]
            self._log_metric("distill/kl", statistics.fmean(gaps))
        # TRL would take the mean over ranks; these are a maximum, a sum and a minimum.
        oldest_here = min(group.version for group in groups)
        here = torch.tensor([[seconds, sum(len(chain.tokens) for chain in chains), oldest_here]])
        all_seconds, all_tokens, oldest = self.accelerator.gather(here.double().to(self.accelerator.device)).T.tolist()
        self._log_metric("rollout/time_s", max(all_seconds))
        self._log_metric("rollout/tokens_per_s", sum(all_tokens) / max(all_seconds))
        self.oldest_version = int(min(oldest))


def _roll_out(prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
    """TRL's rollout function. The trainer has noted which examples the prompts belong to."""
    rolled_out: dict[str, list[Any]] = trainer.roll_out()
    return rolled_out


def _reward(reward: list[float], **_: Any) -> list[float]:
    """TRL's reward function: the weighted sum is in `reward` already (`rl.rewards.weighted_sum`)."""
    return reward


_reward.__name__ = TOTAL  # TRL names its curves `rewards/<name>/...`


def _padded(values: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """(chains, tokens) float32 on the device of `like`, which has that shape; 0 after the end of a row."""
    padded = torch.zeros(like.shape, dtype=torch.float32)
    for row, numbers in enumerate(values):
        padded[row, : len(numbers)] = torch.tensor(numbers)
    return padded.to(like.device)


# -- TRL's arguments -------------------------------------------------------------------------------------------------


def training_args(config: SapoConfig) -> GRPOConfig:
    """One optimizer step per batch of rollouts and iteration, for any micro batch."""
    learner, rollout = config.learner, config.rollout
    accumulation = config.chains_per_learner // learner.micro_batch
    return GRPOConfig(
        output_dir=str(checkpoints.folder(config.folder)),
        use_cpu=learner.num_gpus == 0,
        bf16=learner.bf16,
        fp16=False,
        seed=config.seed,
        max_steps=learner.steps,
        learning_rate=learner.learning_rate,
        lr_scheduler_type=learner.schedule,
        warmup_steps=learner.warmup_steps,
        weight_decay=learner.weight_decay,
        max_grad_norm=learner.max_grad_norm,
        optim="adamw_torch",
        per_device_train_batch_size=learner.micro_batch,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation,
        gradient_checkpointing=learner.gradient_checkpointing,
        num_iterations=learner.iterations,
        num_generations=rollout.group_size,
        max_completion_length=rollout.max_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        beta=learner.kl_beta,
        epsilon=learner.clip_low,
        epsilon_high=learner.clip_high,
        loss_type="dapo",
        shuffle_dataset=False,  # see `order`
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=config.checkpoints.every,
        save_total_limit=config.checkpoints.keep,
        logging_strategy="steps",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        deepspeed=deepspeed_config(learner),
    )


def deepspeed_config(settings: LearnerSettings) -> dict[str, Any]:
    """For transformers' trainer, which sets the `auto` values. The optimizer stays torch's AdamW."""
    return {
        "zero_optimization": {"stage": settings.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": settings.bf16},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def dataset(config: SapoConfig, data: TaskData, prompts: PromptConfig) -> Dataset:
    """Rows of chat messages and images in the order of training, made on access."""

    def rows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        examples = [data[index] for index in batch["example"]]
        return {
            "example": batch["example"],
            "prompt": [chat_messages(example.prompt, prompts) for example in examples],
            "images": [open_images(example.prompt) for example in examples],
        }

    return Dataset.from_dict({"example": order(config, len(data))}).with_transform(rows)


def order(config: SapoConfig, size: int) -> list[int]:
    """The problem of every group of the whole run; each epoch has another order, made from `data.seed`.

    TRL's sampler would shuffle by a generator that no checkpoint holds. The rest of an epoch that does not fill a batch
    is dropped, so that no batch has a problem twice.
    """
    batch = config.rollout.prompts_per_step
    epochs = -(-config.num_batches // (size // batch))
    indices: list[int] = []
    for epoch in range(epochs):
        one = list(range(size))
        if config.data.name != "ledger":  # its problems are random already
            random.Random(f"{config.data.seed}/{epoch}").shuffle(one)
        indices += one[: size // batch * batch]
    return indices[: config.num_batches * batch]
