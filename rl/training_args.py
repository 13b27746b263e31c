"""What TRL's trainer is given: its arguments, and the data set in its form."""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig

from dreamr.tasks.images import open_images
from dreamr.tasks.prompts import PromptConfig, chat_messages
from rl import checkpoints
from rl.config import SapoConfig
from rl.data import TaskData
from rl.distributed import deepspeed_config


def training_args(config: SapoConfig) -> GRPOConfig:
    """One optimizer step per batch of rollouts and iteration, whatever the micro batch is."""
    learner, rollout, rewards = config.learner, config.rollout, config.rewards
    accumulation = config.chains_per_learner // learner.micro_batch
    return GRPOConfig(
        output_dir=str(checkpoints.folder(config.run)),
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
        reward_weights=[rewards.outcome, rewards.draft, rewards.length],
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


def dataset(config: SapoConfig, data: TaskData, prompts: PromptConfig) -> Dataset:
    """Rows of chat messages and images, in the order of training; made when they are read."""

    def rows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        examples = [data[index] for index in batch["example"]]
        return {
            "example": batch["example"],
            "prompt": [chat_messages(example.prompt, prompts) for example in examples],
            "images": [open_images(example.prompt) for example in examples],
        }

    return Dataset.from_dict({"example": order(config, len(data))}).with_transform(rows)


def order(config: SapoConfig, size: int) -> list[int]:
    """The problem of every group of the whole run: each epoch in an order of its own, which `data.seed` decides.

    TRL's sampler would shuffle by a generator that no checkpoint holds. What is left of an epoch and fills no batch is
    left out, so that no batch has a problem twice.
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
