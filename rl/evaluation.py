"""Evaluation during a run: held-out problems answered by draft and target together, greedily, and FPSR timed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rl.chains import Chain, GroupRequest, RolloutTask
from rl.config import SapoConfig
from rl.data import Example, TaskData
from rl.pool import PoolClient


def evaluate(config: SapoConfig, data: TaskData, pool: PoolClient) -> dict[str, float]:
    """Metrics under `eval/`, of the weights that the pool has now; called by one rank."""
    settings = config.evaluation
    examples = [data[index] for index in range(min(settings.problems, len(data)))]
    requests = [GroupRequest(example.prompt, (0,), temperature=0.0) for example in examples]
    size = max(1, math.ceil(len(requests) / config.rollout.workers))
    groups = pool.roll_out(requests, RolloutTask("in_pipeline", settings.rule), size)
    metrics = summary(examples, [group.chains[0] for group in groups])
    if settings.speedup_problems:
        times = pool.time_pipelines([example.prompt for example in examples[: settings.speedup_problems]])
        ratios = [math.log(plain / fast) for plain, fast in times]
        metrics["eval/fpsr_speedup"] = math.exp(statistics.fmean(ratios))
    return metrics


def summary(examples: Sequence[Example], chains: Sequence[Chain]) -> dict[str, float]:
    """Rates over all problems together; rejected drafted steps count as well."""
    drafted = [step for chain in chains for step in chain.drafted]
    steps = [step for chain in chains for step in chain.steps]
    return {
        "eval/accuracy": statistics.fmean(
            example.is_correct(chain.text) for example, chain in zip(examples, chains, strict=True)
        ),
        "eval/unparsed_rate": statistics.fmean(
            not example.is_parsed(chain.text) for example, chain in zip(examples, chains, strict=True)
        ),
        "eval/truncated_rate": statistics.fmean(chain.end == "budget" for chain in chains),
        "eval/acceptance_rate": statistics.fmean(step.accepted for step in drafted),
        "eval/drafted_step_tokens": statistics.fmean(step.num_tokens for step in drafted),
        "eval/step_tokens": statistics.fmean(len(step.tokens) for step in steps),
        "eval/chain_tokens": statistics.fmean(len(chain.tokens) for chain in chains),
        "eval/chain_steps": statistics.fmean(len(chain.steps) for chain in chains),
    }
