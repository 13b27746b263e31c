"""`VLLMEngine`: one checkpoint run by vLLM (AsyncLLM), on GPUs or a CPU, as an `Engine`.

    event loop     next_step ─▶ task: render ▶ stream of tokens ─▶ Step       stop(id)
                       awaits ◀──────────────────┘      ▲                        │ cancels that call's task, which
                   score ─▶ one request per step ───────┤ token by token         ▼ aborts its request in vLLM
    vLLM process       [ batches all requests; finds cached prefixes; images are encoded once ]

A step ends where `StepEnd` says, as in the other engine: vLLM itself stops at tokens that hold the delimiter, so
it writes nothing after them; a delimiter that is split over two tokens is found here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dreamr.config import VLLMEngineConfig
from dreamr.engines.base import COMPARISONS, EngineDied
from dreamr.engines.steps import check_chain, check_pairs
from dreamr.engines.verdicts import Question, mass, question
from dreamr.engines.vllm.guardian import until_one_ends
from dreamr.engines.vllm.loading import LoadedVLLM, core_pids, start
from dreamr.engines.vllm.requests import Rendered, Requests
from dreamr.engines.vllm.weights import replace_weights
from dreamr.engines.vllm.writing import Writer
from dreamr.engines.weights import checkpoint_weights
from dreamr.errors import TooLong, Unable
from dreamr.types import (
    NO_VERDICT,
    Criterion,
    JudgedStep,
    Prefill,
    Priority,
    Prompt,
    Sampling,
    Step,
    ThoughtEnd,
    Tokens,
    Verdict,
)


class VLLMEngine:
    """One started vLLM. Build it with `load`; all methods belong to one event loop."""

    def __init__(self, loaded: LoadedVLLM) -> None:
        self._llm = loaded.llm
        self._chat = loaded.chat
        self._shapes = loaded.shapes
        self._gives_verdicts = not loaded.speculates
        self._requests = Requests(loaded.llm, loaded.chat)
        self._writer = Writer(loaded, self._requests)
        self._core_pids = core_pids(loaded.llm)
        self.device = loaded.device
        self.num_parameters = loaded.num_parameters
        self.recommended = loaded.recommended

    @classmethod
    def load(cls, config: VLLMEngineConfig, model: str) -> VLLMEngine:
        """Start vLLM on a checkpoint folder or hub id. Raises ValueError in one sentence."""
        return cls(start(config, model))

    @property
    def max_positions(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self._requests.max_positions

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._chat.tokenizer

    @property
    def num_cached_tokens(self) -> int:
        """How many tokens of the request that began last were found in the prefix cache."""
        return self._requests.num_cached_tokens

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        """Write the step that follows `after` (see `Engine`). Raises ValueError for sampling out of range."""
        return await self._writer.write(call_id, prompt, after, sampling, priority)

    async def score(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion = "rho",
        references: Sequence[Step] = (),
    ) -> list[Verdict]:
        """Judge the steps at once, one request each over a shared prefix (see `Engine`); `stop` cannot shorten it.

        Raises ValueError when a step is empty, the steps do not follow each other, references are missing, for
        the criterion "embedding", since vLLM does not give hidden states of a model that generates, and for an engine
        with speculative decoding, which gives no probabilities of chosen words.
        """
        if not self._gives_verdicts:
            raise Unable(
                "vLLM gives no verdict probabilities while it decodes speculatively: give the verifier a separate "
                "actor whose engine has no `speculative`"
            )
        if criterion in COMPARISONS:
            check_pairs(chain, references)
            return await _all(
                self._comparison(call_id, step, other, criterion) for step, other in zip(chain, references, strict=True)
            )
        check_chain(chain)
        asked = question(criterion, self._chat)
        return await _all(self._verdict(call_id, prompt, step, asked) for step in chain)

    async def score_tokens(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], temperature: float = 1.0
    ) -> list[JudgedStep]:
        """See `TokenScoring`. Sends one more request than `score`, which reads the whole chain without cached
        prefixes: vLLM keeps no log-probabilities of these.
        """
        if temperature != 1:
            raise Unable(
                f"vLLM gives the log-probabilities of given tokens at temperature 1 only, not at {temperature:g}: set "
                "the temperature to 1, or use engine 'hf'"
            )
        if not chain:
            return []
        verdicts = await self.score(call_id, prompt, chain)
        logprobs = iter(await self._prompt_logprobs(call_id, prompt, chain))
        return [
            JudgedStep(verdict, tuple(islice(logprobs, len(step.tokens))))
            for step, verdict in zip(chain, verdicts, strict=True)
        ]

    async def prefill(self, prompt: Prompt) -> Prefill:
        """Read the prompt ahead of the first step."""
        from vllm import SamplingParams

        started = time.time()
        params = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        rendered = await self._requests.of(prompt, ())
        async with aclosing(self._requests.outputs(f"prefill {prompt.key}", rendered, params)) as outputs:
            async for _ in outputs:
                pass
        return Prefill(started, time.time())

    async def count_tokens(self, prompt: Prompt) -> int:
        """See `Engine`."""
        return await self._requests.count(prompt)

    async def thought_end(self) -> ThoughtEnd:
        """See `Phases`."""
        return self._chat.thought_end

    async def tokenize(self, text: Prompt | str) -> Tokens:
        """See `Phases`."""
        return self._chat.ids(text) if isinstance(text, str) else await self._requests.prompt_tokens(text)

    async def warm_up(self) -> None:
        """Make vLLM compile before the first step and the first verdict."""
        prompt = Prompt("?")
        step = await self.next_step("warm-up", prompt, Step(), Sampling(max_tokens=1))
        if self._gives_verdicts:
            await self.score("warm-up", prompt, [step])

    async def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights in place and drop all cached results of the old ones; names as in the checkpoint.

        Calls that begin meanwhile wait for the new weights. Raises RuntimeError while requests run, for weights that
        do not fit the checkpoint, and when the old prefix cache cannot be dropped.
        """
        requests = self._requests
        if requests.num_running or not requests.may_begin.is_set():
            running = f"{requests.num_running} requests run" if requests.num_running else "others are loaded"
            raise RuntimeError(f"weights cannot be replaced while {running}: await or stop them first")
        requests.may_begin.clear()
        try:
            await replace_weights(self._llm, self._shapes, state_dict)
        finally:
            requests.may_begin.set()

    def read_weights(self, model: str) -> dict[str, Tensor]:
        """See `Swappable`."""
        return checkpoint_weights(model)

    def idle_s(self) -> float:
        """See `Engine`."""
        return time.monotonic() - self._requests.last_output

    def promote(self, call_id: str, hint: Tokens = ()) -> None:
        """See `Engine`; vLLM ignores the hint."""
        self._writer.promote(call_id)

    def stop(self, call_id: str) -> None:
        """End that call between two tokens; an unknown or ended one is no error."""
        self._writer.stop(call_id)

    async def died(self) -> None:
        """Raises EngineDied when a process of vLLM ends, even while idle; never returns otherwise."""
        await until_one_ends(self._core_pids)
        raise EngineDied("vLLM's own process has died")

    async def close(self) -> None:
        """Stop all calls and end vLLM's processes; the engine cannot be used afterwards."""
        self._writer.stop_all()
        await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(self._llm.shutdown))])

    # -- verdicts --------------------------------------------------------------------------------------------------

    async def _verdict(self, call_id: str, prompt: Prompt, step: Step, asked: Question) -> Verdict:
        started = time.time()
        try:
            rendered = await self._requests.of(prompt, step.end + asked.after(step))
        except TooLong:
            await self._requests.count(prompt)  # raises when the prompt alone is too long
            return NO_VERDICT
        score, mass = await self._asked(call_id, rendered, asked)
        return Verdict(score, started, time.time(), mass=mass)

    async def _comparison(self, call_id: str, step: Step, reference: Step, criterion: Criterion) -> Verdict:
        if criterion != "same":
            raise Unable(f"criterion {criterion!r} needs hidden states, which vLLM does not give: use engine 'hf'")
        started = time.time()
        rendered = await self._requests.of_text(self._chat.same_chat(reference.text, step.text))
        score, mass = await self._asked(call_id, rendered, question("rho", self._chat))
        return Verdict(score, started, time.time(), mass=mass)

    async def _asked(self, call_id: str, rendered: Rendered, asked: Question) -> tuple[float, float]:
        """Score and mass of the verdict that the next token gives, from float32 log-probabilities."""
        from vllm import SamplingParams

        words = list(asked.words)
        params = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=words, detokenize=False)
        async with aclosing(self._requests.outputs(call_id, rendered, params)) as outputs:
            async for output in outputs:
                [token] = output.outputs[0].token_ids
                logprobs = output.outputs[0].logprobs[0]
                values = [float(logprobs[word].logprob) for word in words]
                return asked.read(token, values), mass(values)
        raise RuntimeError(f"vLLM ended the request {call_id!r} without a verdict")

    async def _prompt_logprobs(self, call_id: str, prompt: Prompt, chain: Sequence[Step]) -> list[float]:
        """Log-probability of every token of the chain."""
        from vllm import SamplingParams

        tokens = chain[-1].end[len(chain[0].prefix) :]
        rendered = await self._requests.of(prompt, chain[-1].end)
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        async with aclosing(self._requests.outputs(call_id, rendered, params)) as outputs:
            async for output in outputs:
                read = output.prompt_logprobs[-len(tokens) :]
                return [float(logprobs[token].logprob) for token, logprobs in zip(tokens, read, strict=True)]
        raise RuntimeError(f"vLLM ended the request {call_id!r} without log-probabilities")


async def _all(verdicts: Iterable[Coroutine[Any, Any, Verdict]]) -> list[Verdict]:
    """Await them all at once; the first failure cancels the others."""
    tasks = [asyncio.create_task(verdict) for verdict in verdicts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
