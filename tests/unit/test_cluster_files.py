"""The files for clusters: valid for Ray's own schema, complete, and their nodes offer what actors ask for."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamr.config import load_config

ROOT = Path(__file__).parents[2]
FILES = ["cluster.yaml", "cluster.local.yaml"]
CONFIGURATIONS = [ROOT / "configs/embedded-cluster.yaml", *sorted((ROOT / "configs").glob("qwen3-vl-[0-9]*.yaml"))]
GPUS_PER_NODE = 4
"""Of a g6e.12xlarge."""


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
    assert {"actors", "dreamr", "pipelines", "rl", "serve_app.py", "pyproject.toml", "requirements-gpu.lock"} <= set(
        local
    )
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", FILES)
def test_every_node_starts_with_the_token_asked_for(name: str) -> None:
    config = read(name)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert sum("RAY_AUTH_MODE=token" in command and "ray start" in command for command in commands) == 1


@pytest.mark.parametrize("installing", [*FILES, "deploy/kuberay/Dockerfile"])
def test_every_node_installs_the_engine_of_the_ready_configurations(installing: str) -> None:
    [command] = [line for line in (ROOT / installing).read_text().splitlines() if "--constraint" in line]
    assert re.search(r"--constraint \S*requirements-gpu\.lock \S*\[[\w,]*\bvllm\]", command)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_each_role_has_one_kind_of_aws_node_with_enough_gpus(path: Path) -> None:
    offered = [kind["resources"] for kind in read("cluster.yaml")["available_node_types"].values()]
    taken = [0.0] * len(offered)
    for actor in load_config(path).group.actors().values():
        assert actor.custom_resources
        [place] = [place for place, offer in enumerate(offered) if actor.custom_resources.items() <= offer.items()]
        taken[place] += actor.num_gpus
    assert max(taken) <= GPUS_PER_NODE


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_a_ray_of_ones_own_offers_what_the_actors_ask_for(path: Path) -> None:
    config = load_config(path)
    asked = Counter[str]()
    for actor in config.group.actors().values():
        asked.update(actor.custom_resources)
    assert config.cluster.custom_resources == asked


def test_the_aws_cluster_costs_nothing_but_its_head_until_something_is_asked_for() -> None:
    config = read("cluster.yaml")
    workers = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    assert all(kind["min_workers"] == 0 for kind in workers)
    assert config["max_workers"] <= sum(kind["max_workers"] for kind in workers)
