"""Which Ray cluster the actors run in."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from dreamr.config.base import Strict


class ClusterSettings(Strict):
    """Which Ray to use."""

    address: str | None = None
    """Address of a running cluster; None takes RAY_ADDRESS, else starts a local one, as `local` does."""
    num_cpus: PositiveInt | None = None
    """Cores that a local cluster offers; None offers all of the machine."""
    object_store_mb: int = Field(default=128, ge=80)
    """Object store of a local cluster, MiB."""
    custom_resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """What a local cluster offers to actors with `custom_resources`; on other clusters the nodes offer theirs."""
