"""The typed configuration: one class per component, read from YAML, unknown keys refused.

Imports neither torch nor ray nor transformers: reading a configuration is instant and works without them.
"""

from dreamr.config.base import ConfigError, Strict, StrictT, first_problem, parse_strict
from dreamr.config.cluster import ClusterSettings
from dreamr.config.engines import (
    EMBEDDED_PREFIX,
    CheckpointConfig,
    EngineConfig,
    HFEngineConfig,
    ImportedEngineConfig,
    ScriptedEngineConfig,
    VLLMEngineConfig,
    is_missing_folder,
    names_a_path,
)
from dreamr.config.file import Config, load_config
from dreamr.config.group import ActorConfig, GroupConfig, Verifier
from dreamr.config.pipeline import NEEDS_OWN_STEPS, Method, PipelineSettings, VerdictKind

__all__ = [
    "EMBEDDED_PREFIX",
    "NEEDS_OWN_STEPS",
    "ActorConfig",
    "CheckpointConfig",
    "ClusterSettings",
    "Config",
    "ConfigError",
    "EngineConfig",
    "GroupConfig",
    "HFEngineConfig",
    "ImportedEngineConfig",
    "Method",
    "PipelineSettings",
    "ScriptedEngineConfig",
    "Strict",
    "StrictT",
    "VLLMEngineConfig",
    "VerdictKind",
    "Verifier",
    "first_problem",
    "is_missing_folder",
    "load_config",
    "names_a_path",
    "parse_strict",
]
