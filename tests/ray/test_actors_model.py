"""A real, tiny Qwen3-VL checkpoint behind the actors: same results as in-process, also after a kill -9."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.tiny import picture, save_checkpoint
from support.toy_group import toy_group

from actors.group import ActorGroup
from dreamr.engines.hf.engine import HFEngine
from dreamr.errors import ActorLost
from dreamr.types import ROOT, Prompt, Sampling

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(300)]
PROMPT = Prompt("how many squares?", (picture(96, 64),))
SAMPLING = Sampling(max_tokens=12)


async def test_actors_give_what_the_engine_gives_and_a_killed_target_gives_it_again(tmp_path: Path) -> None:
    folder = str(save_checkpoint(tmp_path / "model"))
    engine = HFEngine.load(folder)
    step = await engine.next_step("1", PROMPT, ROOT, SAMPLING)
    (verdict,) = await engine.score("2", PROMPT, [step])
    await engine.close()
    assert step.tokens

    actor = {"engine": {"kind": "hf", "model": folder}, "num_cpus": 0.1}
    config = toy_group(draft=actor, target=actor, verifier="shared", ready_deadline_s=120, health_deadline_s=10)
    async with ActorGroup(config) as group:
        assert group.infos["target"].num_parameters > 0
        drafted = group.handles.draft.next_step("1", PROMPT, ROOT, SAMPLING)
        judged = group.handles.verifier.score("2", PROMPT, drafted)
        assert (await drafted).tokens == step.tokens
        assert (await judged).score == pytest.approx(verdict.score, abs=1e-5)

        long = group.handles.target.next_step("3", PROMPT, ROOT, Sampling(max_tokens=100_000, temperature=1.0))
        os.kill(group.infos["target"].pid, signal.SIGKILL)
        with pytest.raises(ActorLost, match="the target actor"):
            await long
        await group.transport("target").recovered()
        assert (await group.handles.target.next_step("4", PROMPT, await drafted, SAMPLING)).prefix == step.tokens
        assert (await group.handles.verifier.score("5", PROMPT, drafted)).score == pytest.approx(
            verdict.score, abs=1e-5
        )
