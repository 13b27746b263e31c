"""Between optimizer steps: `Bookkeeper` logs curves and tables, evaluates, and seals checkpoints.

Evaluation: held-out problems answered by draft and target together, greedily, and FPSR timed against the target alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from dreamr.speedups import mean_with_interval
from dreamr.tasks.images import open_image
from rl import checkpoints
from rl.chains import Chain, GroupRequest, RolloutTask
from rl.config import SapoConfig
from rl.data import Example, TaskData
from rl.history import History
from rl.pool_client import PoolClient, stop_unless_finite
from rl.rewards import REWARD_PARTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from rl.trainer import SapoTrainer

TOTAL = "total"
"""TRL's name of its only reward function: that of the weighted sum."""
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
        stop_unless_finite("the norm of the gradient", torch.tensor(values.get("grad_norm", 0.0)), step)
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
        """Evaluate on rank 0, while the others wait."""
        self.trainer.sync_weights()
        metrics: dict[str, float] = {}
        if self._history is not None:
            began = time.perf_counter()
            metrics = evaluate(self._config, self._held_out, self._pool)
            metrics["eval/time_s"] = time.perf_counter() - began
        self._pool.wait_for_rank_0("evaluation", step)
        return metrics

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


def evaluate(config: SapoConfig, data: TaskData, pool: PoolClient) -> dict[str, float]:
    """Metrics under `eval/` of the pool's current weights; called by one rank."""
    settings = config.evaluation
    examples = [data[index] for index in range(min(settings.problems, len(data)))]
    requests = [GroupRequest(example.prompt, (0,), temperature=0.0) for example in examples]
    groups = pool.roll_out(requests, RolloutTask("in_pipeline", settings.rule), settings.problems_per_call)
    metrics = summary(examples, [group.chains[0] for group in groups])
    if settings.speedup_problems:
        metrics |= speedup(pool.time_pipelines([example.prompt for example in examples[: settings.speedup_problems]]))
    return metrics


def speedup(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Geometric mean of the speedups over the problems, with its 95 % interval by bootstrap from two problems on.

    `times`: seconds of the target alone and of FPSR, per problem.
    """
    ratios = [alone / fpsr for alone, fpsr in times]
    mean, interval = mean_with_interval(ratios)
    metrics = {"eval/fpsr_speedup": mean, "eval/fpsr_speedup_problems": len(ratios)}
    if interval is not None:
        metrics["eval/fpsr_speedup_low"], metrics["eval/fpsr_speedup_high"] = interval
    return metrics


def summary(examples: Sequence[Example], chains: Sequence[Chain]) -> dict[str, float]:
    """Rates over all problems together; rejected drafted steps count as well."""
    drafted = [step for chain in chains for step in chain.drafted]
    steps = [step for chain in chains for step in chain.steps]
    return {
        "eval/accuracy": statistics.fmean(
            example.is_correct(chain.reply) for example, chain in zip(examples, chains, strict=True)
        ),
        "eval/unparsed_rate": statistics.fmean(
            not example.is_parsed(chain.reply) for example, chain in zip(examples, chains, strict=True)
        ),
        "eval/truncated_rate": statistics.fmean(chain.truncated for chain in chains),
        "eval/acceptance_rate": statistics.fmean(step.accepted for step in drafted),
        "eval/drafted_step_tokens": statistics.fmean(step.num_tokens for step in drafted),
        "eval/step_tokens": statistics.fmean(len(step.tokens) for step in steps),
        "eval/chain_tokens": statistics.fmean(len(chain.tokens) for chain in chains),
        "eval/chain_steps": statistics.fmean(len(chain.steps) for chain in chains),
    }
