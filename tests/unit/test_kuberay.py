"""The Kubernetes manifests: the structure that KubeRay's v1 API asks for, and nodes that offer what actors ask for.

The operator's own schema is in no package index, so its required fields are written down here.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from dreamr.cli.main import app
from dreamr.config import load_config
from dreamr.config.serve import ServeSettings

ROOT = Path(__file__).parents[2]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Resources(Strict):
    limits: dict[str, str]
    requests: dict[str, str]


class SecretKey(Strict):
    name: str
    key: str


class ValueFrom(Strict):
    secretKeyRef: SecretKey  # noqa: N815


class EnvVar(Strict):
    name: str
    valueFrom: ValueFrom  # noqa: N815


class Container(Strict):
    name: str
    image: str
    env: list[EnvVar] = []
    resources: Resources
    ports: list[dict[str, Any]] = []
    volumeMounts: list[dict[str, str]] = []  # noqa: N815


class PodSecurityContext(Strict):
    fsGroup: int  # noqa: N815


class PodSpec(Strict):
    securityContext: PodSecurityContext | None = None  # noqa: N815
    containers: list[Container] = Field(min_length=1)
    volumes: list[dict[str, Any]] = []


class PodTemplate(Strict):
    spec: PodSpec


class Group(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: PodTemplate


class WorkerGroup(Group):
    groupName: str  # noqa: N815
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815


class ClusterSpec(Strict):
    rayVersion: str  # noqa: N815
    authOptions: dict[str, str]  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    autoscalerOptions: dict[str, int] = {}  # noqa: N815
    headGroupSpec: Group  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


def manifest(name: str, kind: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "deploy/kuberay" / name).read_text())
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", kind)
    assert document["metadata"]["name"]
    spec: dict[str, Any] = document["spec"]
    return spec


def cluster(name: str) -> ClusterSpec:
    if name == "rayservice.yaml":
        return ClusterSpec.model_validate(manifest(name, "RayService")["rayClusterConfig"])
    return ClusterSpec.model_validate(manifest(name, "RayJob")["rayClusterSpec"])


@pytest.mark.parametrize("name", ["rayservice.yaml", "rayjob.yaml"])
def test_the_cluster_is_well_formed_and_each_role_has_one_group(name: str) -> None:
    spec = cluster(name)
    assert spec.rayVersion == ray.__version__
    assert spec.authOptions == {"mode": "token"}
    groups = spec.workerGroupSpecs
    assert all(group.template.spec.containers[0].resources.limits["nvidia.com/gpu"] for group in groups)
    # A shell takes the outer quotes away before `ray start` sees the JSON.
    offered = [json.loads(json.loads(group.rayStartParams["resources"])) for group in groups]
    for path in (ROOT / "configs/embedded-cluster.yaml", *(ROOT / "configs").glob("qwen3-vl-[0-9]*.yaml")):
        for actor in load_config(path).group.actors().values():
            assert sum(actor.custom_resources.items() <= offer.items() for offer in offered) == 1


def test_every_pod_of_the_service_has_the_key_that_clients_must_send() -> None:
    spec = cluster("rayservice.yaml")
    for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
        [variable] = group.template.spec.containers[0].env
        assert variable.name == ServeSettings().api_key_env
        assert variable.valueFrom.secretKeyRef == SecretKey(name="dreamr-api-key", key="key")


def test_the_service_has_a_configuration_that_serve_accepts() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="needs ray[serve]", exc_type=ImportError)
    spec = manifest("rayservice.yaml", "RayService")
    assert set(spec) == {"serveConfigV2", "rayClusterConfig"}
    application = schema.ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"])).applications[0]
    load_config(ROOT / application.args["config"])


def test_the_job_is_a_command_that_exists_and_its_results_are_kept() -> None:
    spec = manifest("rayjob.yaml", "RayJob")
    program, *arguments = shlex.split(spec["entrypoint"])
    assert program == "dreamr"
    assert CliRunner().invoke(app, [*arguments, "--help"]).exit_code == 0
    assert spec["shutdownAfterJobFinishes"] is True
    load_config(ROOT / arguments[arguments.index("--config") + 1])
    head = cluster("rayjob.yaml").headGroupSpec.template.spec
    [user] = re.findall(r"useradd .*--uid (\d+)", (ROOT / "deploy/kuberay/Dockerfile").read_text())
    assert head.securityContext == PodSecurityContext(fsGroup=int(user))  # else only root may write to the volume
    mounts = head.containers[0].volumeMounts
    assert any(arguments[arguments.index("--out") + 1].startswith(mount["mountPath"]) for mount in mounts)
