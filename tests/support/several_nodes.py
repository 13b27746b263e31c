"""A cluster of four simulated nodes in this process; prints as JSON what became of a group on them.

    head: nothing     left: draft, verifier     right: target     spare: target        `right` dies during a request

Not a test itself: it needs a Ray of its own, and a process has only one. `test_several_nodes.py` runs it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.group import ActorGroup
from dreamr.config import GroupConfig, PipelineSettings
from dreamr.types import Prompt
from pipelines import Request, run
from pipelines.trace import CommittedStep

SETTINGS = PipelineSettings(method="fpsr", draft_deadline_s=30, verifier_deadline_s=30, target_deadline_s=30)
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""A dead node is found out after 1.5 s instead of after 15."""


def group_config(**changes: object) -> GroupConfig:
    """Scripted engines; most drafted steps are rejected, so that the target is needed after its loss."""
    engine = {"kind": "scripted", "num_steps": [12, 12], "acceptance": 0.4, "token_s": 0.005}
    actors = {
        role: {"engine": engine, "num_cpus": 0.1, "custom_resources": {role: 1}}
        for role in ("draft", "target", "verifier")
    }
    return GroupConfig.model_validate(actors | {"ready_deadline_s": 60} | changes)


async def scenario(cluster: Cluster, nodes: dict[str, Any]) -> dict[str, object]:
    names = {node.node_id: name for name, node in nodes.items()}
    async with ActorGroup(group_config()) as group:
        placed = {role: names[info.node] for role, info in group.infos.items()}
        killed: list[str] = []

        def kill_the_targets_node(step: CommittedStep) -> None:
            if step.index == 3 and not killed:
                killed.append(group.infos["target"].node)
                cluster.remove_node(nodes[names[killed[0]]], allow_graceful=False)

        whole = await run(Request(Prompt("whole?"), SETTINGS), group.handles)
        hurt = await run(Request(Prompt("whole?"), SETTINGS), group.handles, kill_the_targets_node)
        await group.transport("target").recovered()
        return {
            "placed": placed,
            "killed": names[killed[0]],
            "placed_after": {role: names[info.node] for role, info in group.infos.items()},
            "same_text": whole.text == hurt.text,
            "healthy": await group.check(),
        }


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": QUICK})
    try:
        offers = {"left": {"draft": 1, "verifier": 1}, "right": {"target": 1}, "spare": {"target": 1}}
        nodes = {name: cluster.add_node(num_cpus=1, resources=offer) for name, offer in offers.items()}
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        print(json.dumps(asyncio.run(scenario(cluster, nodes))))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
