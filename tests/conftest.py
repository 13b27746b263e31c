"""Fixtures shared by all tests. Nothing here starts Ray unless a test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small local Ray for the whole test session; it ends with it."""
    from dreamr.actors.cluster import connected
    from dreamr.config import ClusterSettings

    with pytest.MonkeyPatch.context() as patch:
        # The engines that tests define live beside them; the workers must find them as well.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(ClusterSettings(num_cpus=4)):
            yield
