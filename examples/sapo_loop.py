"""SAPO in one loop: GRPO on the built-in draft with the paper's three rewards: `python examples/sapo_loop.py [STEPS]`.

Starts from the draft before its training and prints the mean rewards of each step. Minutes on a CPU:
    step 1: correct 0.16 + accepted 0.71 + short 0.34
    ...
    step 40: correct 0.31 + accepted 0.83 + short 0.51

Rollouts on Ray, DeepSpeed, checkpoints, curves and the exact rewards: rl/, docs/training.md.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import torch

from dreamr.engines.factory import model_location
from dreamr.engines.hf.engine import HFEngine
from dreamr.engines.hf.loading import load_model, load_processor
from dreamr.engines.steps import StepEnd
from dreamr.tasks.answers import is_correct
from dreamr.tasks.ledger import Problem, make_problem
from dreamr.tasks.processor import PromptEncoder
from dreamr.tasks.prompts import load_prompt_config
from dreamr.types import ROOT, Sampling, Tokens

GROUP, PROBLEMS, ALPHA, ALLOWANCE = 8, 4, 0.7, 32
FOLDER = model_location("embedded:draft-untrained")


async def rewards(encoder: PromptEncoder, target: HFEngine, problem: Problem, chain: Tokens) -> tuple[float, ...]:
    """R_outcome, R_draft and R_length of one sampled chain."""
    ends = StepEnd(encoder.decode, frozenset({encoder.tokenizer.eos_token_id}))
    steps = [step for step in ends.split(ROOT, chain, Sampling(max_tokens=96)) if not step.is_blank]
    verdicts = await target.score("verdict", problem.prompt, steps) if steps else []
    accepted = [step for step, verdict in zip(steps, verdicts, strict=True) if verdict.score > ALPHA]
    saved = sum(max(0.0, 1 - len(step.tokens) / ALLOWANCE) for step in accepted)
    text, needed = "".join(step.text for step in steps), max(len(steps), len(problem.operations) + 1)
    return is_correct("ledger", str(problem.answer), text), len(accepted) / needed, saved / needed


async def learn(draft: Any, encoder: PromptEncoder, target: HFEngine, problem: Problem) -> torch.Tensor:
    """Sample a group of chains and add the gradient of the GRPO loss; their mean rewards."""
    asked: Any = encoder.encode(problem.prompt)
    eos, start, types = encoder.tokenizer.eos_token_id, len(asked.tokens), asked.token_types.repeat(GROUP, 1)
    image = {"pixel_values": asked.pixel_values.repeat(GROUP, 1), "image_grid_thw": asked.image_grid.repeat(GROUP, 1)}
    ids = torch.tensor([asked.tokens] * GROUP)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **image}
    ids = draft.generate(**inputs, max_new_tokens=160, do_sample=True, top_k=0, pad_token_id=eos, eos_token_id=eos)
    written = ids[:, start:]
    mask = (written == eos).cumsum(1) - (written == eos).long() == 0  # up to the first eos, this one included
    chains = [tuple(row[kept].tolist()) for row, kept in zip(written, mask, strict=True)]
    parts = torch.tensor([await rewards(encoder, target, problem, chain) for chain in chains])
    advantage = (parts.sum(1) - parts.sum(1).mean()) / (parts.sum(1).std() + 1e-4)
    advantage = torch.where(advantage < 0, 0.1 * advantage, advantage)  # else good steps of bad chains are unlearned
    types = torch.nn.functional.pad(types, (0, written.shape[1]))
    logits = draft(input_ids=ids, mm_token_type_ids=types, **image).logits
    logprobs = torch.log_softmax(logits[:, start - 1 : -1], -1).gather(2, written[..., None])[..., 0]
    (-(advantage[:, None] * logprobs * mask).sum() / mask.sum() / PROBLEMS).backward()
    return parts.mean(0)


async def main(num_steps: int) -> None:
    torch.manual_seed(0)
    encoder = PromptEncoder(load_processor(FOLDER), load_prompt_config(Path(FOLDER)))
    draft = load_model(FOLDER, torch.device("cpu"), None).requires_grad_(True)
    target, optimizer = HFEngine.load(model_location("embedded:target")), torch.optim.AdamW(draft.parameters(), lr=1e-4)
    for number in range(num_steps):
        problems = [make_problem("train", seed=1, index=number * PROBLEMS + place) for place in range(PROBLEMS)]
        parts = torch.stack([await learn(draft, encoder, target, problem) for problem in problems]).mean(0)
        optimizer.step()
        optimizer.zero_grad()
        correct, accepted, short = parts.tolist()
        print(f"step {number + 1}: correct {correct:.2f} + accepted {accepted:.2f} + short {short:.2f}", flush=True)
    await target.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
