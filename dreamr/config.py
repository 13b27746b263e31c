"""The typed configuration: one class per component, read from YAML, unknown keys refused.

Imports neither torch nor ray nor transformers: reading a configuration is instant and works without them.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from dreamr.serve.settings import ServeSettings

EMBEDDED_PREFIX = "embedded:"
_EMBEDDED_NAMES = ("target", "draft", "draft-untrained")
_OWN_FIELDS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory_mb"}
_UNION_TAGS = frozenset({"hf", "vllm", "import", "scripted", "own", "shared"})


class ConfigError(ValueError):
    """One sentence: which file, which key, which value, and the way out."""


class _Strict(BaseModel):
    """Base of all settings: unknown keys are errors, with the nearest known one as a way out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: object) -> object:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(_unknown_key(str(key), list(cls.model_fields)))
        return values


Strict = _Strict
"""The base, for settings that live elsewhere."""
StrictT = TypeVar("StrictT", bound=_Strict)


def _unknown_key(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    way_out = f"did you mean '{close[0]}'?" if close else f"the keys are: {', '.join(known)}."
    return f"unknown key '{key}': {way_out}"


class _CheckpointConfig(_Strict):
    """What every engine that loads a checkpoint needs to know."""

    model: str
    """Checkpoint folder, hub id, or a built-in model: `embedded:target`, `embedded:draft`, or
    `embedded:draft-untrained`, the draft before reinforcement learning."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`auto`: float32 on CPU, the checkpoint's own type on a GPU."""

    @field_validator("model")
    @classmethod
    def _embedded_name_exists(cls, model: str) -> str:
        if model.startswith(EMBEDDED_PREFIX) and model.removeprefix(EMBEDDED_PREFIX) not in _EMBEDDED_NAMES:
            known = ", ".join(f"'{EMBEDDED_PREFIX}{name}'" for name in _EMBEDDED_NAMES)
            raise ValueError(f"the built-in models are {known}, not '{model}'.")
        if not model.strip():
            raise ValueError("name a checkpoint folder, a hub id or a built-in model.")
        return model


class HFEngineConfig(_CheckpointConfig):
    """A Qwen3-VL checkpoint run by transformers."""

    kind: Literal["hf"] = "hf"
    device: str = "cpu"
    max_cached_tokens: PositiveInt = 65_536
    """Bound of the prefix KV cache, over all sequences together."""


class VLLMEngineConfig(_CheckpointConfig):
    """A checkpoint run by vLLM: Qwen3-VL, or any other vision-language model that vLLM knows and that speaks ChatML."""

    kind: Literal["vllm"]
    tensor_parallel_size: PositiveInt = 1
    """GPUs that share the model; the actor needs as many (`num_gpus`)."""
    quantization: Literal["awq", "awq_marlin", "gptq", "gptq_marlin", "compressed-tensors", "fp8"] | None = None
    """None: whatever the checkpoint says about itself."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU that weights and KV cache may take together."""
    kv_cache_mb: PositiveInt | None = None
    """KV cache, MiB, in place of what `gpu_memory_utilization` leaves; on a CPU better given."""
    max_model_len: PositiveInt | None = None
    """Longest prompt with its answer, in tokens; None: as long as the checkpoint allows, if the KV cache holds it."""
    max_images: PositiveInt = 8
    """Most images in one prompt."""
    enforce_eager: bool = False
    """No compilation and no CUDA graphs: a start within seconds, slower tokens."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint; some architectures (R-4B, say) need it."""


class ImportedEngineConfig(_Strict):
    """Any class or function that returns an `Engine`, by import path."""

    kind: Literal["import"]
    factory: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """`package.module:name`, called with `settings` as keyword arguments."""
    settings: dict[str, Any] = {}


class ScriptedEngineConfig(_Strict):
    """An engine without a model: made-up steps that depend on their whole prefix, and latencies as given."""

    kind: Literal["scripted"]
    seed: int = 0
    num_steps: tuple[PositiveInt, PositiveInt] = (3, 7)
    """Fewest and most steps of an answer."""
    step_tokens: tuple[PositiveInt, PositiveInt] = (8, 24)
    """Fewest and most tokens of a step."""
    acceptance: float = Field(default=0.7, ge=0, le=1)
    """Share of steps that get a rho of 0.95; the others get 0.05."""
    imitates: int | None = None
    """Seed of the scripted engine, with the same lengths of steps, whose tokens this one proposes to be checked."""
    token_acceptance: float = Field(default=0.8, ge=0, le=1)
    """Share of proposed tokens that are the imitated engine's own."""
    first_token_s: float = Field(default=0.0, ge=0)
    """Time to read the prefix before the first token of a step."""
    token_s: float = Field(default=0.0, ge=0)
    verdict_s: float = Field(default=0.0, ge=0)
    """Time of one verdict forward, whatever the number of steps in it."""
    prompt_s: float = Field(default=0.0, ge=0)
    """Time to read a prompt that was not read before."""
    call_s: float = Field(default=0.0, ge=0)
    """What a call costs beside the model's work."""
    max_batch: PositiveInt = 1
    """Calls that are computed at the same time without slowing each other down."""
    jitter: float = Field(default=0.0, ge=0, lt=1)
    """Every latency is multiplied by a random factor within 1 - jitter .. 1 + jitter."""


EngineConfig = Annotated[
    HFEngineConfig | VLLMEngineConfig | ImportedEngineConfig | ScriptedEngineConfig, Field(discriminator="kind")
]


class ActorConfig(_Strict):
    """One actor: its engine and what it needs from the cluster."""

    engine: EngineConfig
    num_cpus: float = Field(default=1.0, ge=0)
    num_gpus: float = Field(default=0.0, ge=0)
    accelerator_type: str | None = None
    """Ray's name of an accelerator, such as `L40S` or `H100`; None takes any."""
    memory_mb: float = Field(default=0.0, ge=0)
    """Memory that the scheduler sets aside, MiB; 0 sets none aside."""
    custom_resources: dict[str, PositiveFloat] = {}
    """Resources with names of your own, which nodes offer to show what they are for, such as `{target: 1}`."""
    num_threads: PositiveInt = 1
    """Torch threads. More than one only pays for models that are much larger than the built-in ones."""
    background: bool = False
    """Steps that may not be needed get only the core time that others leave (Linux). For a target that shares its
    cores with draft and verifier: its own step is only needed when the draft's is rejected, and then those two have
    nothing to do. Not for cores that are busy with other things as well."""
    max_restarts: int = Field(default=-1, ge=-1)
    """How often Ray restarts the actor when its process dies; -1 is without end."""
    env: dict[str, str] = {}
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
        """What the actor takes, in Ray's resource names; memory in bytes."""
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


class GroupConfig(_Strict):
    """The actors that serve one pair of models."""

    draft: ActorConfig
    target: ActorConfig
    verifier: Verifier = "shared"
    """An actor of its own, or `shared`: the target's actor gives the verdicts as well."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's placement group strategy."""
    name: str | None = None
    """Names the Ray actors `<name>-draft`, ...; None leaves them without a name."""
    namespace: str | None = None
    wait_for_resources_s: float = Field(default=0.0, ge=0)
    """How long to wait for a busy or growing cluster; 0 refuses at once what does not fit now."""
    ready_deadline_s: PositiveFloat = 300.0
    """Longest start or restart of one actor, model loading included."""
    health_deadline_s: PositiveFloat = 10.0
    """An actor that does not answer a health call for so long hangs."""

    def actors(self) -> dict[Literal["draft", "target", "verifier"], ActorConfig]:
        """The actors to create, by role."""
        roles: dict[Literal["draft", "target", "verifier"], ActorConfig] = {"draft": self.draft, "target": self.target}
        if not isinstance(self.verifier, str):
            roles["verifier"] = self.verifier
        return roles

    def ids_of(self, role: Literal["draft", "target", "verifier"]) -> str | None:
        """The target's model, if `role` runs another one, whose token ids may differ from those that steps carry."""
        own, target = self.actors()[role].engine, self.target.engine
        if not isinstance(own, _CheckpointConfig) or not isinstance(target, _CheckpointConfig):
            return None
        return target.model if own.model != target.model else None


Method = Literal[
    "autoregressive",
    "sequential",
    "fpsr",
    "specreason",
    "lookahead",
    "lookahead_batch",
    "parallel_prefix",
    "token_speculative",
]
"""The schedules, by name."""

VerdictKind = Literal["rho", "digit", "mean_digit", "same", "embedding", "random"]
"""How drafted steps are judged: see `dreamr.actors.types.Criterion`; random is a coin, for comparison."""

NEEDS_OWN_STEPS: frozenset[str] = frozenset({"same", "embedding"})
"""These compare a drafted step with the target's own, which only some methods have for every drafted step."""


class PipelineSettings(_Strict):
    """How one request is answered; the command line may change each of them."""

    method: Method = "fpsr"
    alpha: float = Field(default=0.7, ge=0, lt=1)
    """A drafted step is accepted when rho > alpha."""
    window: PositiveInt = 4
    """How many steps the draft may be ahead of the frontier."""
    verdict: VerdictKind | None = None
    """How drafted steps are judged; None: digit for specreason, same for lookahead(_batch), else rho."""
    threshold: float | None = None
    """Of verdicts other than rho, which has alpha; None: 7 for digits, 0.5 for same and random, 0.95 for embedding."""
    first_target_steps: int | None = Field(default=None, ge=0)
    """So many steps at the beginning are the target's; None: 1 for lookahead(_batch), as published, else 0."""
    stop_at_marker: bool = False
    """End at the first step that says `boxed` or `Answer:`, even within the reasoning: published SpecReason does."""
    proposed_tokens: PositiveInt = 5
    """Tokens that the draft proposes at a time in token_speculative."""
    max_tokens: PositiveInt = 8192
    """Budget of one request: the step that reaches it is the last one, and is kept whole."""
    max_step_tokens: PositiveInt = 512
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    draft_deadline_s: PositiveFloat = 60.0
    """A drafted step that takes longer counts as lost."""
    verifier_deadline_s: PositiveFloat = 60.0
    target_deadline_s: PositiveFloat = 600.0
    stop_deadline_s: PositiveFloat = 30.0
    """A stopped call that takes longer to end counts as lost."""

    @model_validator(mode="after")
    def _verdict_fits_the_method(self) -> Self:
        if self.verdict in NEEDS_OWN_STEPS and self.method in ("fpsr", "parallel_prefix"):
            raise ValueError(
                f"verdict '{self.verdict}' compares with the target's own step, which method '{self.method}' does not "
                "have for every drafted step: use it with lookahead, sequential or specreason."
            )
        return self


class ClusterSettings(_Strict):
    """Which Ray to use."""

    address: str | None = None
    """Address of a running cluster; None takes RAY_ADDRESS, else starts a local one."""
    num_cpus: PositiveInt | None = None
    """Cores that a local cluster offers; None offers all of the machine."""
    object_store_mb: int = Field(default=128, ge=80)
    """Object store of a local cluster, MiB."""


class Config(_Strict):
    """Everything that a run needs."""

    group: GroupConfig
    pipeline: PipelineSettings = PipelineSettings()
    cluster: ClusterSettings = ClusterSettings()
    serve: ServeSettings = ServeSettings()

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Read YAML text; `source` names it in errors. Raises ConfigError."""
        return parse_strict(cls, text, source)


def parse_strict(kind: type[StrictT], text: str, source: str) -> StrictT:
    """Read YAML text as settings of one kind; `source` names it in errors. Raises ConfigError."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        keys = " and ".join(f"'{key}'" for key in list(kind.model_fields)[:2])
        raise ConfigError(f"{source}: expected keys such as {keys}, found {values!r}.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error)}") from error


def load_config(path: str | Path | None = None) -> Config:
    """Read a configuration file; without a path, the built-in pair on this machine's CPU.

    Raises:
        ConfigError: no such file, not YAML, or a value or key that does not fit, in one sentence.
    """
    if path is None:
        text = resources.files("dreamr").joinpath("configs", "embedded.yaml").read_text(encoding="utf-8")
        return Config.parse(text, "embedded.yaml")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; leave it out to use the built-in models.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration file: {error}") from error
    return Config.parse(text, str(path))


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"] if part not in _UNION_TAGS)
    match problem["type"]:
        case "missing":
            return f"{where}: this key is missing."
        case "union_tag_not_found":
            return f"{where}: the key 'kind' is missing; it says which engine it is."
        case "union_tag_invalid":
            context = problem["ctx"]
            return f"{where}.kind = '{context['tag']}': choose one of {context['expected_tags']}."
        case "value_error":
            message = problem["msg"].removeprefix("Value error, ")
            return f"{where}: {message}" if where else message
        case _:
            return f"{where} = {problem['input']!r}: {problem['msg'][:1].lower()}{problem['msg'][1:]}."
