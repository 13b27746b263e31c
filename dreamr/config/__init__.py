"""The typed configuration: one class per component, read from YAML, unknown keys refused.

Imports neither torch nor ray nor transformers: reading a configuration is instant and works without them.
"""

from dreamr.config.base import Strict, StrictT, first_problem, parse_strict
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
from dreamr.config.file import NO_FOLDER, Config, load_config, models_are_here, with_draft
from dreamr.config.group import ActorConfig, GroupConfig, Verifier
from dreamr.config.pipeline import PipelineSettings
from dreamr.config.serve import ImageLimits, ServeSettings

__all__ = [
    "EMBEDDED_PREFIX",
    "NO_FOLDER",
    "ActorConfig",
    "CheckpointConfig",
    "ClusterSettings",
    "Config",
    "EngineConfig",
    "GroupConfig",
    "HFEngineConfig",
    "ImageLimits",
    "ImportedEngineConfig",
    "PipelineSettings",
    "ScriptedEngineConfig",
    "ServeSettings",
    "Strict",
    "StrictT",
    "VLLMEngineConfig",
    "Verifier",
    "first_problem",
    "is_missing_folder",
    "load_config",
    "models_are_here",
    "names_a_path",
    "parse_strict",
    "with_draft",
]
