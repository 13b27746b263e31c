"""The files for clusters: valid for Ray's own schema, complete, and their nodes offer what actors ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamr.config import load_config

ROOT = Path(__file__).parents[1]
FILES = ["cluster.yaml", "cluster.local.yaml"]


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return config


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_valid_for_rays_schema_and_its_checks(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_to_the_nodes_exists_and_can_be_installed(name: str) -> None:
    mounts = read(name)["file_mounts"]
    local = [source for source in mounts.values() if not source.startswith("~")]
    assert all((ROOT / source).exists() for source in local)
    assert {"dreamr", "pyproject.toml", "README.md", "requirements.lock"} <= set(local)
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", FILES)
def test_every_node_starts_with_the_token_asked_for(name: str) -> None:
    config = read(name)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert sum("RAY_AUTH_MODE=token" in command and "ray start" in command for command in commands) == 1


def test_each_role_has_one_kind_of_aws_node() -> None:
    offered = [kind["resources"] for kind in read("cluster.yaml")["available_node_types"].values()]
    actors = load_config(ROOT / "configs/embedded-cluster.yaml").group.actors()
    for actor in actors.values():
        assert sum(actor.custom_resources.items() <= kind.items() for kind in offered) == 1


def test_the_aws_cluster_costs_nothing_but_its_head_until_something_is_asked_for() -> None:
    config = read("cluster.yaml")
    workers = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    assert all(kind["min_workers"] == 0 for kind in workers)
    assert config["max_workers"] <= sum(kind["max_workers"] for kind in workers)
