"""`Bookkeeper`: between optimizer steps it logs curves and tables, evaluates, and seals checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from dreamr.tasks.images import open_image
from rl import checkpoints
from rl.config import SapoConfig
from rl.data import TaskData
from rl.evaluation import evaluate
from rl.history import History
from rl.pool import PoolClient
from rl.rewards import REWARD_PARTS
from rl.trainer import TOTAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from rl.trainer import SapoTrainer

COLUMNS: list[str | int] = [
    *("step", "image", "question", "completion", "answer"),
    *(part.name for part in REWARD_PARTS),
    *("draft_plain", "reward", "advantage", "scores", "end"),
]


class Bookkeeper(TrainerCallback):
    """On every rank; only rank 0 writes. `history` is None on the others."""

    trainer: SapoTrainer

    def __init__(
        self,
        config: SapoConfig,
        data: TaskData,
        held_out: TaskData,
        pool: PoolClient,
        history: History | None,
        report: Callable[[dict[str, float]], None],
    ) -> None:
        self._config, self._data, self._held_out, self._pool = config, data, held_out, pool
        self._history, self._report = history, report

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._evaluate(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        if step % self._config.log.completions_every == 0 or step == 1:
            self._log_completions(step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        step = state.global_step
        # TRL's curves of the only reward function are those of the reward itself.
        values = {name: value for name, value in logs.items() if not name.startswith(f"rewards/{TOTAL}/")}
        # How many optimizer steps older than the newest weights the rollouts of this step were.
        values["staleness/max"] = float(step - 1 - self.trainer.oldest_version)
        if step % self._config.evaluation.every == 0 or step == state.max_steps:
            values |= self._metrics(step)
        if self._history is not None:
            self._history.log(step, values)
            self._report({"step": step, **values})

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has written its shards
        if self._history is not None:
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def _evaluate(self, step: int) -> None:
        metrics = self._metrics(step)
        if self._history is not None:
            self._history.log(step, metrics)
            self._report({"step": step, **metrics})

    def _metrics(self, step: int) -> dict[str, float]:
        self.trainer.sync_weights()
        if self._history is None:
            return {}
        began = time.perf_counter()
        metrics = evaluate(self._config, self._held_out, self._pool)
        return metrics | {"eval/time_s": time.perf_counter() - began}

    def _log_completions(self, step: int) -> None:
        """The first group as it was rolled out, with its image and the parts of every reward."""
        if self._history is None:
            return
        trainer = self.trainer
        example = self._data[trainer.examples[0]]
        images = example.prompt.images
        rows = [
            [
                step,
                open_image(images[0], 1) if images else None,
                example.prompt.question,
                scored.chain.text,
                example.answer,
                *(scored.parts[part.name] for part in REWARD_PARTS),
                scored.draft_plain,
                scored.reward,
                advantage,
                " ".join(f"{score:.2f}" for score in scored.chain.scores),
                scored.chain.end,
            ]
            for scored, advantage in zip(trainer.scored, trainer.advantages, strict=True)
        ]
        self._history.log_table(step, "completions", COLUMNS, rows[: self._config.rollout.group_size])
