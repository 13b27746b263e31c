"""The actors, and the resources of each."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, field_validator, model_validator

from dreamr.config.base import Strict
from dreamr.config.engines import CheckpointConfig, EngineConfig, VLLMEngineConfig

_OWN_FIELDS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory_mb"}


class ActorConfig(Strict):
    """One actor: its engine and its resources."""

    engine: EngineConfig
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    accelerator_type: str | None = None
    """Ray's name of an accelerator, such as `L40S` or `H100`; None takes any."""
    memory_mb: float = Field(default=0.0, ge=0)
    """Memory that the scheduler sets aside, MiB; 0 sets none aside."""
    custom_resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Resources that only some nodes offer, such as `{target: 1}`."""
    num_threads: PositiveInt = 1
    """Torch threads. More than one only helps models that are much larger than the built-in ones."""
    max_restarts: int = Field(default=-1, ge=-1)
    """How often Ray restarts the actor when its process dies; -1: no limit."""
    standby: int = Field(default=0, ge=0, le=1)
    """1: a second actor is kept loaded, with resources like this one's, and takes over when this one is lost."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the actor's process."""

    @model_validator(mode="after")
    def _has_the_gpus_of_its_engine(self) -> Self:
        shards = self.engine.tensor_parallel_size if isinstance(self.engine, VLLMEngineConfig) else 1
        if shards > 1 and self.num_gpus not in (0, shards):  # none: vLLM on CPUs
            raise ValueError(
                f"num_gpus = {self.num_gpus:g}, but engine.tensor_parallel_size = {shards}: set num_gpus: {shards}."
            )
        return self

    @field_validator("custom_resources")
    @classmethod
    def _has_no_field_of_its_own(cls, custom: dict[str, float]) -> dict[str, float]:
        for name in custom:
            if name in _OWN_FIELDS:
                raise ValueError(f"'{name}' is not a custom resource: set {_OWN_FIELDS[name]} instead.")
        return custom

    def resources(self) -> dict[str, float]:
        """What Ray reserves for the actor, by Ray's names; memory in bytes."""
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory_mb * 2**20, **self.custom_resources}
        if self.accelerator_type:
            # Ray offers 1.0 of this marker per node of that type: a sliver pins the node without using it up.
            asked[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return {name: amount for name, amount in asked.items() if amount > 0}


def _verifier_tag(value: object) -> str:
    return "shared" if isinstance(value, str) else "own"


Verifier = Annotated[
    Annotated[Literal["shared"], Tag("shared")] | Annotated[ActorConfig, Tag("own")], Discriminator(_verifier_tag)
]


class GroupConfig(Strict):
    """The actors that serve one pair of models."""

    draft: ActorConfig
    target: ActorConfig
    verifier: Verifier = "shared"
    """An actor, or `shared`: the target's actor also gives the verdicts."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's placement group strategy."""
    name: str | None = None
    """Names the Ray actors `<name>-draft`, ...; None leaves them without a name."""
    namespace: str | None = None
    wait_for_resources_s: float = Field(default=0.0, ge=0)
    """How long to wait for a busy or growing cluster; 0 refuses at once what does not fit now. What a local cluster can
    never hold is always refused at once."""
    ready_deadline_s: PositiveFloat = 300.0
    """Longest start or restart of one actor, model loading included."""
    health_deadline_s: PositiveFloat = 10.0
    """An actor that does not answer a health call for so long counts as hanging."""

    @model_validator(mode="after")
    def _verdicts_do_not_wait_in_the_background(self) -> Self:
        if getattr(self.target.engine, "background", False) and self.verifier == "shared":
            raise ValueError(
                "target.engine.background = true needs a verifier with a separate actor, since verdicts of a shared "
                "one would wait for steps in the background: remove it, or give the verifier an actor."
            )
        return self

    @model_validator(mode="after")
    def _verdicts_come_from_an_engine_that_does_not_speculate(self) -> Self:
        role: Literal["target", "verifier"] = "target" if self.verifier == "shared" else "verifier"
        engine = self.actors()[role].engine
        if isinstance(engine, VLLMEngineConfig) and engine.speculative is not None:
            way_out = (
                "give the verifier a separate actor, whose engine has no `speculative`"
                if role == "target"
                else "remove it"
            )
            raise ValueError(
                f"{role}.engine.speculative is set, but vLLM gives no verdict probabilities while it decodes "
                f"speculatively: {way_out}."
            )
        return self

    def actors(self) -> dict[Literal["draft", "target", "verifier"], ActorConfig]:
        """The actors to create, by role."""
        roles: dict[Literal["draft", "target", "verifier"], ActorConfig] = {"draft": self.draft, "target": self.target}
        if not isinstance(self.verifier, str):
            roles["verifier"] = self.verifier
        return roles

    def spares(self) -> list[Literal["draft", "target", "verifier"]]:
        """Roles that have a spare actor."""
        return [role for role, actor in self.actors().items() if actor.standby]

    def ids_of(self, role: Literal["draft", "target", "verifier"]) -> str | None:
        """The target's model, if `role` runs another one, whose token ids may differ from those in steps."""
        own, target = self.actors()[role].engine, self.target.engine
        if not isinstance(own, CheckpointConfig) or not isinstance(target, CheckpointConfig):
            return None
        return target.model if own.model != target.model else None
