"""The learner's process group: environment, backend and DeepSpeed's configuration."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rl.config import LearnerSettings


def join(settings: LearnerSettings, rank: int, address: str, port: int) -> None:
    """Make this process rank number `rank`; torch, transformers and trl must not have been imported before.

    Blocks until all ranks are there.
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
        # DeepSpeed looks for ninja beside the interpreter.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    import deepspeed
    import torch

    torch.set_num_threads(settings.num_threads)
    if on_cpu:
        # It would be compiled for half a minute, and helps only where ranks share a machine with many cores.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if on_cpu else "nccl", auto_mpi_discovery=False)


def deepspeed_config(settings: LearnerSettings) -> dict[str, Any]:
    """For transformers' trainer, which fills in what is `auto`. The optimizer stays torch's AdamW."""
    return {
        "zero_optimization": {"stage": settings.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": settings.bf16},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
