"""The typed configuration of a training run, read from YAML; unknown keys are refused. Imports no torch, Ray or trl."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from dreamr.config import (
    ActorConfig,
    CheckpointConfig,
    ClusterSettings,
    PipelineSettings,
    Strict,
    VLLMEngineConfig,
    parse_strict,
)
from dreamr.errors import ConfigError
from pipelines import rule_of
from pipelines.verification import Rule
from rl.chains import RolloutMode

CONFIG_VARIABLE = "DREAMR_SAPO_CONFIG"
"""Environment variable with the configuration file of a run that names none."""
DEFAULT_CONFIG = "embedded-sapo.yaml"
"""In dreamr/configs, which is part of the package: what trains when no file is named at all."""


class Settings(Strict):
    """Base of the settings of a run: no number may be infinite or NaN."""

    model_config = ConfigDict(allow_inf_nan=False)


class DataSettings(Settings):
    """The data that the draft is trained and evaluated on."""

    name: Literal["ledger", "geometry3k", "scienceqa", "ocr_vqa"] = "ledger"
    source: str | None = None
    """Hub id, or a folder or file of local parquet; None is the set's own hub id. The ledger task needs none."""
    train_split: str = "train"
    eval_split: str = "validation"
    seed: int = 0
    """Seed of the ledger problems, and of the order of the other sets."""


class RolloutSettings(Settings):
    """How the draft is sampled, and which of its steps are accepted."""

    workers: PositiveInt = 2
    """Actors that sample chains from the current draft."""
    verifiers: PositiveInt = 2
    """Actors that judge them; each holds the target."""
    mode: RolloutMode = "free"
    """`free`: the draft writes the whole chain, each step judged on the prefix that the draft wrote. `in_pipeline`: a
    rejected step is replaced by the target's and masked from the loss, as in deployment."""
    prompts_per_step: PositiveInt = 8
    group_size: int = Field(default=8, ge=2)
    """Chains per prompt; the advantage of a chain is relative to its group."""
    groups_per_call: PositiveInt = 4
    """Groups that a worker samples in one batch."""
    temperature: PositiveFloat = 1.0
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: PositiveInt = 512
    max_step_tokens: PositiveInt = 96
    alpha: float = Field(default=0.7, ge=0, lt=1)
    """A drafted step is rewarded as accepted when rho > alpha; `evaluation.alpha` is the threshold in use."""
    deadline_s: PositiveFloat = 600.0
    """A worker that writes no token and receives no verdict for so long is restarted."""

    @property
    def rule(self) -> Rule:
        """Which verdicts accept a drafted step of a rollout."""
        return _rule(self.alpha)


class RewardSettings(Settings):
    """Weights of the parts of the reward (`rl.rewards.REWARD_PARTS`), and their definitions."""

    outcome: float = Field(default=1.0, ge=0)
    draft: float = Field(default=1.0, ge=0)
    length: float = Field(default=1.0, ge=0)
    step_allowance: PositiveInt = 32
    """Token allowance of a needed step; the share that is not used is rewarded."""
    form: Literal["needed", "paper"] = "needed"
    """R_draft: `paper` is N_accepted / N_draft; `needed` also counts missing steps as drafted."""
    needed_from: Literal["target", "group"] = "target"
    """Number of needed steps if the task gives none (`rl.rewards.needed_steps`): `target` lets the target answer each
    problem once; `group` uses the group's chains alone, so accepted filler may count as needed steps."""


class LearnerSettings(Settings):
    """The update of the policy."""

    world_size: PositiveInt = 1
    """Learner actors, one per GPU."""
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    """Per actor; 0 trains on the CPU."""
    num_threads: PositiveInt = 1
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's ZeRO stage."""
    bf16: bool = False
    steps: PositiveInt = 100
    """Optimizer steps."""
    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    micro_batch: PositiveInt = 16
    """Chains per forward and backward pass."""
    iterations: PositiveInt = 1
    """Optimizer steps per batch of rollouts."""
    kl_beta: float = Field(default=0.0, ge=0)
    """Weight of the KL term to the first draft; 0 loads no reference model."""
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.28
    distill_beta: float = Field(default=0.0, ge=0)
    """Weight of on-policy distillation from the target (`rl.rewards.distillation_gaps`); 0: none."""
    credit: Literal["chain", "step"] = "chain"
    """`chain`: every token of a chain has the chain's advantage (GRPO). `step`: a verdict on a step counts for the
    tokens of that step alone (`rl.rewards.token_advantages`)."""
    negative_weight: float = Field(default=1.0, ge=0, le=1)
    """Factor on negative advantages. That a step was bad says little about what would have been good: for a small model
    it is mostly noise, and a factor near 0 allows higher learning rates."""
    freeze_vision: bool = True
    gradient_checkpointing: bool = False
    """Less memory for a third more time."""
    collective_timeout_s: PositiveFloat = 4 * 3600.0
    """A rank that waits longer for the others in a collective ends the run. Rollouts of one rank may take far longer
    than those of another, so minutes are too short."""


class EvaluationSettings(Settings):
    """Held-out problems, answered by draft and target together, greedily."""

    every: PositiveInt = 25
    """Optimizer steps between two evaluations; there is one before the first step and one after the last."""
    problems: PositiveInt = 32
    problems_per_call: PositiveInt = 16
    """Problems that a worker answers in one batch, which is repeated when the worker is lost."""
    alpha: float = Field(default=0.7, ge=0, lt=1)
    """A drafted step is committed when rho > alpha."""
    speedup_problems: int = Field(default=0, ge=0)
    """Problems on which FPSR with the current draft is timed against the target alone; 0 skips it."""

    @property
    def rule(self) -> Rule:
        """Which verdicts commit a drafted step of an evaluation."""
        return _rule(self.alpha)


class CheckpointSettings(Settings):
    """How often a checkpoint is written, and how many are kept."""

    every: PositiveInt = 25
    keep: int = Field(default=2, ge=2)
    """At least 2: one is complete while the newest is written."""


class LogSettings(Settings):
    """Where curves and completions are written, besides the folder of the run."""

    wandb: Literal["auto", "offline", "off"] = "auto"
    """`auto`: online when there is an API key, else offline."""
    project: str = "dreamr-sapo"
    entity: str | None = None
    completions_every: PositiveInt = 10
    """Optimizer steps between two tables of completions."""


class SapoConfig(Settings):
    """One training run."""

    run: Path | None = None
    """Folder of the run: history, checkpoints, the trained draft. None: a new folder (`rl.checkpoints.run_folder`)."""
    draft: ActorConfig
    """The rollout workers' actor; its engine names the draft that is trained."""
    target: ActorConfig
    """The verifiers' actor."""
    data: DataSettings = DataSettings()
    rollout: RolloutSettings = RolloutSettings()
    rewards: RewardSettings = RewardSettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
    cluster: ClusterSettings = ClusterSettings()
    seed: int = 0
    wait_for_resources_s: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        learner, rollout = self.learner, self.rollout
        if rollout.prompts_per_step % learner.world_size:
            raise ValueError(
                f"rollout.prompts_per_step = {rollout.prompts_per_step} has to be a multiple of learner.world_size = "
                f"{learner.world_size}: each learner takes whole groups."
            )
        if self.chains_per_learner % learner.micro_batch:
            raise ValueError(
                f"learner.micro_batch = {learner.micro_batch} has to divide the {self.chains_per_learner} chains of "
                "each learner (rollout.prompts_per_step * rollout.group_size / learner.world_size)."
            )
        if self.checkpoints.every % learner.iterations:
            raise ValueError(
                f"checkpoints.every = {self.checkpoints.every} has to be a multiple of learner.iterations = "
                f"{learner.iterations}: a run resumes with fresh rollouts."
            )
        for role, actor in (("draft", self.draft), ("target", self.target)):
            if not isinstance(actor.engine, CheckpointConfig):
                raise ValueError(f"{role}.engine.kind = '{actor.engine.kind}': training needs kind 'hf' or 'vllm'.")
            if isinstance(actor.engine, VLLMEngineConfig):
                self._check_vllm(role, actor.engine)
        return self

    def _check_vllm(self, role: str, engine: VLLMEngineConfig) -> None:
        """vLLM gives fewer log-probabilities than the HF engine does."""
        if engine.speculative is not None:
            raise ValueError(
                f"{role}.engine.speculative: vLLM gives no log-probabilities while it decodes speculatively; leave it "
                "out for training."
            )
        if self.rollout.top_p < 1:
            raise ValueError(
                f"rollout.top_p = {self.rollout.top_p:g}: the {role}'s engine 'vllm' gives the log-probabilities of "
                "tokens that are sampled from all tokens; set it to 1."
            )
        if role == "target" and self.learner.distill_beta > 0 and self.rollout.temperature != 1:
            raise ValueError(
                f"rollout.temperature = {self.rollout.temperature:g}: for learner.distill_beta the target's engine "
                "'vllm' gives log-probabilities at temperature 1 only; set it to 1."
            )

    def public(self) -> dict[str, Any]:
        """As JSON data for files and trackers, without environment variables, which may hold secrets."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude={"draft": {"env"}, "target": {"env"}})
        return plain

    @property
    def folder(self) -> Path:
        """`run`, which is set before the run begins."""
        assert self.run is not None
        return self.run

    @property
    def chains_per_learner(self) -> int:
        """Chains of one optimizer step on one learner."""
        return self.rollout.prompts_per_step * self.rollout.group_size // self.learner.world_size

    @property
    def num_batches(self) -> int:
        """Batches of rollouts in the whole run."""
        return -(-self.learner.steps // self.learner.iterations)


def load_sapo_config(path: Path) -> SapoConfig:
    """Raises ConfigError in one sentence: no such file, not YAML, or a key or value that does not fit."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such configuration file; without one the built-in draft is trained, and configs/ has others."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration file: {error}") from error
    return parse_strict(SapoConfig, text, str(path))


def default_config() -> Path:
    """The file that DREAMR_SAPO_CONFIG names, else the recipe of the built-in draft."""
    named = os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else Path(str(resources.files("dreamr") / "configs" / DEFAULT_CONFIG))


def _rule(alpha: float) -> Rule:
    return rule_of(PipelineSettings(method="sequential", alpha=alpha))
