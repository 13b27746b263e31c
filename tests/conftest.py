"""Fixtures shared by all tests. Nothing here starts Ray unless a test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests run side by side, and tiny models gain nothing from more threads: torch reads this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in tests/ray and tests/e2e are marked by their folder."""
    for item in items:
        for folder in ("ray", "e2e"):
            if Path(__file__).with_name(folder) in item.path.parents:
                item.add_marker(folder)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small local Ray for the whole test session; it ends with it."""
    from support.serving import ADMIN_KEY, ADMIN_KEY_ENV

    from actors.cluster import connected
    from dreamr.config import ClusterSettings

    with pytest.MonkeyPatch.context() as patch:
        # Workers must find the engines that tests define, and this checkout, wherever a program that joins is started.
        tests = Path(__file__).parent
        patch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")
        patch.setenv(ADMIN_KEY_ENV, ADMIN_KEY)
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(ClusterSettings(num_cpus=4)):
            yield
