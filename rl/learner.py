"""`Learner`: one rank of the policy's update; TRL's trainer with DeepSpeed inside a Ray actor.

driver ── fit ──────▶ thread: trainer.train() ── blocking calls ─▶ pool
       ── progress ─▶ lines of metrics as they come, to the end of fit
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray

from dreamr.config import HFEngineConfig
from dreamr.engines.factory import model_location
from dreamr.tasks.prompts import load_prompt_config
from rl import checkpoints, distributed
from rl.config import SapoConfig
from rl.data import TaskData, load_data


class Learner:
    """Plain Python; the launcher makes a Ray actor of it."""

    def __init__(self, config: SapoConfig, rank: int, pool: Any) -> None:
        self._config, self._rank, self._pool = config, rank, pool
        self._lines: asyncio.Queue[dict[str, float] | None] = asyncio.Queue()

    async def address(self) -> tuple[str, int]:
        """Where the other ranks find this one, if it is the first: host and a free port."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    async def progress(self) -> AsyncIterator[dict[str, float]]:
        """Metrics of each optimizer step, as they come; rank 0 has them."""
        while (line := await self._lines.get()) is not None:
            yield line

    async def fit(self, address: str, port: int, checkpoint: Path | None) -> Path | None:
        """Train to the last step, from `checkpoint` on where there is one. Rank 0 returns the draft's folder."""
        loop = asyncio.get_running_loop()

        def report(line: dict[str, float]) -> None:
            loop.call_soon_threadsafe(self._lines.put_nowait, line)

        try:
            return await asyncio.to_thread(self._fit, address, port, checkpoint, report)
        finally:
            self._lines.put_nowait(None)

    def _fit(self, address: str, port: int, checkpoint: Path | None, report: Any) -> Path | None:
        config = self._config
        distributed.join(config.learner, self._rank, address, port)
        # Slow imports, and only after the environment says which rank this is.
        from rl.callbacks import Bookkeeper
        from rl.export import export
        from rl.history import History
        from rl.policy import load_policy
        from rl.pool_client import PoolClient
        from rl.trainer import SapoTrainer
        from rl.training_args import dataset, training_args

        assert isinstance(config.draft.engine, HFEngineConfig)
        source = model_location(config.draft.engine.model)
        data: TaskData = load_data(config.data, "train", config.num_batches * config.rollout.prompts_per_step)
        held_out: TaskData = load_data(config.data, "eval", config.evaluation.problems)
        pool = PoolClient(self._pool, self._rank)
        start = checkpoints.step_of(checkpoint) if checkpoint else 0
        history = None
        if self._rank == 0:
            history = History(config.run, start, config.log, config.public())
        prompts = load_prompt_config(Path(source), config.draft.engine.prompts)
        model, processor, encoder = load_policy(source, prompts, config.learner)
        bookkeeper = Bookkeeper(config, data, held_out, pool, history, report)
        trainer = SapoTrainer(
            config,
            data,
            pool,
            model=model,
            processing_class=processor,
            args=training_args(config),
            train_dataset=dataset(config, data, encoder.config),
            callbacks=[bookkeeper],
        )
        bookkeeper.trainer = trainer
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        weights = pool.gather(trainer.model)
        if history is not None:
            history.close()
        return export(weights, source, prompts, config.run / "draft") if weights else None
