"""cluster.yaml through `ray up` as far as instances: AWS by moto, ssh by a recorder, everything between is Ray's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")

ROOT = Path(__file__).parents[2]
REGION = "us-east-1"
ROLE = "ray-autoscaler-v1"


class Recorder:
    """Takes the place of `subprocess`: every ssh and rsync succeeds and is written down."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def check_call(self, command: list[str], *_: object, **__: object) -> int:
        self.commands.append(" ".join(command))
        return 0

    def check_output(self, command: list[str], *_: object, **__: object) -> bytes:
        self.check_call(command)
        return b""


@pytest.fixture
def ec2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An account that has had a cluster before: for a new role, Ray would wait 15 s."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.chdir(ROOT)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("token")
    with moto.mock_aws():
        iam = boto3.client("iam")
        iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=ROLE)
        iam.add_role_to_instance_profile(InstanceProfileName=ROLE, RoleName=ROLE)
        yield boto3.client("ec2", region_name=REGION)


def instances(ec2: Any) -> dict[str, dict[str, Any]]:
    found = [one for reservation in ec2.describe_instances()["Reservations"] for one in reservation["Instances"]]
    return {tag["Value"]: one for one in found for tag in one["Tags"] if tag["Key"] == "ray-user-node-type"}


@pytest.mark.slow
def test_the_aws_file_leads_to_instances_that_are_set_up(ec2: Any) -> None:
    from ray.autoscaler._private import commands
    from ray.autoscaler._private.providers import _get_node_provider

    image = ec2.describe_images()["Images"][0]["ImageId"]
    text = (ROOT / "cluster.yaml").read_text().replace("FILL-IN", image)
    config = commands._bootstrap_config(yaml.safe_load(text), no_config_cache=True)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 8}
    assert types["target"]["resources"].items() >= {"CPU": 48, "GPU": 4, "target": 1}.items()

    ssh = Recorder()
    commands.get_or_create_head_node(config, "cluster.yaml", False, False, True, None, _runner=ssh)
    done = "\n".join(ssh.commands)
    steps = (
        "/.ray/auth_token",
        "install -qy build-essential python3-dev",
        "[eval,serve,train,vllm]",
        "pip install --quiet boto3",
        "ray start --head",
    )
    assert [done.index(step) for step in steps] == sorted(done.index(step) for step in steps)

    # What the autoscaler on the head does when an actor asks for a role:
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    for name in ("target", "draft_and_verifier", "learner"):
        tags = {"ray-node-kind": "worker", "ray-user-node-type": name}
        provider.create_node(types[name]["node_config"], tags, 1)
    made = instances(ec2)
    assert set(made) == set(types)
    for name, instance in made.items():
        assert instance["InstanceType"] == ("m7i.2xlarge" if name == "head" else "g6e.12xlarge")
        assert instance["ImageId"] == image
        assert instance["KeyName"] == f"ray-autoscaler_{REGION}"
        assert instance["SecurityGroups"]
        assert instance["BlockDeviceMappings"]
    assert made["head"]["IamInstanceProfile"]["Arn"].endswith(ROLE)

    provider.terminate_nodes([instance["InstanceId"] for instance in made.values()])
    assert {one["State"]["Name"] for one in instances(ec2).values()} <= {"terminated", "shutting-down"}
