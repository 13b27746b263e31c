"""`Learner`: one rank of the policy's update; TRL's trainer with DeepSpeed inside a Ray actor.

driver ── fit ──────▶ thread: trainer.train() ── blocking calls ─▶ pool
       ── progress ─▶ metrics of each optimizer step, until fit ends

torch, transformers and trl are imported after the environment variables of the rank are set.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from dreamr.config import CheckpointConfig
from dreamr.engines.factory import model_location
from dreamr.errors import ConfigError
from dreamr.tasks.prompts import PromptConfig, load_prompt_config, save_prompt_config
from rl import checkpoints
from rl.config import LearnerSettings, SapoConfig
from rl.data import load_data

if TYPE_CHECKING:
    from torch import Tensor

    from dreamr.tasks.processor import ImageTextProcessor, PromptEncoder


class Learner:
    """Plain Python; the launcher makes a Ray actor of it."""

    def __init__(self, config: SapoConfig, rank: int, pool: Any) -> None:
        self._config, self._rank, self._pool = config, rank, pool
        self._metrics: asyncio.Queue[dict[str, float] | None] = asyncio.Queue()

    async def check_folder(self, written: str) -> None:
        """Raises ConfigError unless this node shares the run's folder, where the command has `written` its config."""
        run = self._config.folder
        if checkpoints.read_config(run) != written:
            raise ConfigError(
                f"run = {run}: node {ray.util.get_node_ip_address()} does not share this folder with the node of the "
                "command; give one that all nodes mount: --run FOLDER, or DREAMR_RUNS=FOLDER for all runs"
            )

    async def address(self) -> tuple[str, int]:
        """Host and free port of rank 0 for the other ranks."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    async def progress(self) -> AsyncIterator[dict[str, float]]:
        """Metrics of each optimizer step as they are logged; only rank 0 has any."""
        while (metrics := await self._metrics.get()) is not None:
            yield metrics

    async def fit(self, address: str, port: int, checkpoint: Path | None) -> Path | None:
        """Train to the last step, from `checkpoint` on where there is one. Rank 0 returns the draft's folder."""
        loop = asyncio.get_running_loop()

        def report(metrics: dict[str, float]) -> None:
            loop.call_soon_threadsafe(self._metrics.put_nowait, metrics)

        try:
            with checkpoints.full_disk_named(self._config.folder):
                return await asyncio.to_thread(self._fit, address, port, checkpoint, report)
        finally:
            self._metrics.put_nowait(None)

    def _fit(
        self, address: str, port: int, checkpoint: Path | None, report: Callable[[dict[str, float]], None]
    ) -> Path | None:
        config = self._config
        join(config.learner, self._rank, address, port)
        from rl.evaluation import Bookkeeper
        from rl.history import History
        from rl.pool_client import PoolClient
        from rl.trainer import SapoTrainer, dataset, training_args

        assert isinstance(config.draft.engine, CheckpointConfig)
        source = model_location(config.draft.engine.model)
        data = load_data(config.data, "train", config.num_batches * config.rollout.prompts_per_step)
        held_out = load_data(config.data, "eval", config.evaluation.problems)
        pool = PoolClient(self._pool, self._rank)
        start = checkpoints.step_of(checkpoint) if checkpoint else 0
        history = None
        if self._rank == 0:
            history = History(config.folder, start, config.log, config.public())
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
        return export(weights, source, prompts, config.folder / "draft") if weights else None


def join(settings: LearnerSettings, rank: int, address: str, port: int) -> None:
    """Make this process rank number `rank` of the group; blocks until all ranks have joined.

    torch, transformers and trl must not have been imported before.
    """
    on_cpu = settings.num_gpus == 0
    os.environ |= {
        "RANK": str(rank),
        # Ray shows each actor its own GPU only, as number 0.
        "LOCAL_RANK": str(rank) if on_cpu else "0",
        "WORLD_SIZE": str(settings.world_size),
        "LOCAL_SIZE": str(settings.world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # DeepSpeed needs ninja, which is installed beside the interpreter.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    import deepspeed
    import torch

    torch.set_num_threads(settings.num_threads)
    if on_cpu:
        # Compiling it takes half a minute, and it helps only ranks that share a machine with many cores.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "gloo" if on_cpu else "nccl",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=settings.collective_timeout_s),
    )


# -- the draft's checkpoint ------------------------------------------------------------------------------------------


def load_policy(
    source: str, prompts: PromptConfig, settings: LearnerSettings
) -> tuple[Any, ImageTextProcessor, PromptEncoder]:
    """Model (float32), processor and encoder of a checkpoint folder or hub id; prompts read as by the engine."""
    import torch
    from transformers import AutoModelForImageTextToText

    from dreamr.engines.hf.loading import load_processor
    from dreamr.tasks.processor import PromptEncoder

    auto: Any = AutoModelForImageTextToText
    model = auto.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa")
    if settings.freeze_vision:
        model.model.visual.requires_grad_(False)
    processor = load_processor(source)
    encoder = PromptEncoder(processor, prompts)
    # TRL renders the prompt once more, for the places of the image tokens: it has to be as long as the engine's.
    suffix = encoder.config.generation_suffix
    processor.chat_template = (
        f"{processor.chat_template}{{%- if add_generation_prompt -%}}{{{{ {suffix!r} }}}}{{%- endif -%}}"
    )
    processor.tokenizer.padding_side = "left"
    return model, processor, encoder


def export(weights: Mapping[str, Tensor], source: str, prompts: PromptConfig, folder: Path) -> Path:
    """Write the trained draft in Hugging Face form, which every command can load; returns `folder`.

    `weights` replace those of the checkpoint `source`, in its number type; `prompts` are those of the training. Call it
    at the end of a run: afterwards this process cannot train with DeepSpeed.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from dreamr.engines.hf.loading import load_processor

    unset_hf_deepspeed_config()  # under ZeRO-3 transformers would load the model split over ranks that do not call
    model = AutoModelForImageTextToText.from_pretrained(source, dtype="auto")
    model.load_state_dict({name: weight.to(model.dtype) for name, weight in weights.items()})
    model.save_pretrained(folder)
    processor = load_processor(source)
    processor.tokenizer.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    save_prompt_config(prompts, folder)
    return folder
