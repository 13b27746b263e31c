"""`Writer`: steps written by vLLM, each in a task that `stop` cancels.

write ──▶ task: render ▶ stream of tokens ──▶ Step         stop     cancels the task: the step keeps what it has
             ▲                                             promote  starts a waiting request again as a needed one
             └──────────── again, if it has no token yet ─────────────┘
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dreamr.engines.sampling import check_sampling
from dreamr.engines.steps import EarlyStops, StepEnd
from dreamr.engines.vllm.loading import LoadedVLLM
from dreamr.engines.vllm.requests import Requests
from dreamr.errors import Unable
from dreamr.types import DELIMITER, Finish, Priority, Prompt, Sampling, Step, Tokens

if TYPE_CHECKING:
    from vllm.sampling_params import StructuredOutputsParams

NEVER = -100.0
"""Added to the logits of tokens that must not be chosen; vLLM accepts no larger bias."""


@dataclass(slots=True, eq=False)
class _Writing:
    """A step in progress."""

    call_id: str
    priority: Priority
    task: asyncio.Task[Finish] | None = None
    is_stopped: bool = False
    is_promoted: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Writer:
    """Writes, stops and promotes steps. All methods belong to one event loop."""

    def __init__(self, loaded: LoadedVLLM, requests: Requests) -> None:
        self._requests = requests
        self._step_end = StepEnd(loaded.chat.decode, loaded.eos_tokens)
        self._last_tokens = sorted(loaded.eos_tokens | _delimiter_tokens(loaded))
        self._barred = dict.fromkeys(loaded.image_tokens, NEVER)
        self._writing: set[_Writing] = set()
        self._early_stops = EarlyStops()

    async def write(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        """The step that follows `after`. Raises ValueError for sampling out of range, TooLong and Unable."""
        _check(sampling)
        started = time.time()
        if after.closed:
            return Step(after.end, finish="eos", started=started, ended=started)
        writing = _Writing(call_id, priority)
        finish = await self._stoppable(writing, prompt, after.end, sampling)
        text = self._step_end.text(writing.tokens)
        return Step(
            after.end,
            tuple(writing.tokens),
            text,
            finish,
            started,
            time.time(),
            logprobs=tuple(writing.logprobs),
            token_texts=self._step_end.token_texts(writing.tokens) if sampling.logprobs else (),
        )

    def stop(self, call_id: str) -> None:
        """End that call between two tokens; an unknown or ended one is no error."""
        running = [writing for writing in self._writing if writing.call_id == call_id]
        for writing in running:
            writing.is_stopped = True
            writing.cancel()
        if not running:
            self._early_stops.stop(call_id)

    def stop_all(self) -> None:
        for call_id in {writing.call_id for writing in self._writing}:
            self.stop(call_id)

    def promote(self, call_id: str) -> None:
        """A speculative step is needed now.

        vLLM cannot change the priority of a request. One without a token may be waiting, and is sent again; one with
        tokens is running, and continues.
        """
        for writing in self._writing:
            if writing.call_id == call_id and writing.priority == "speculative":
                writing.priority = "needed"
                if not writing.tokens:
                    writing.is_promoted = True
                    writing.cancel()

    async def _stoppable(self, writing: _Writing, prompt: Prompt, prefix: Tokens, sampling: Sampling) -> Finish:
        """Write in a task; the tokens up to a stop stay in `writing`."""
        if self._early_stops.begin(writing.call_id):
            self._early_stops.end(writing.call_id)
            return "stopped"
        self._writing.add(writing)
        try:
            while True:
                writing.task = asyncio.create_task(self._write(writing, prompt, prefix, sampling))
                try:
                    return await writing.task
                except asyncio.CancelledError:
                    this = asyncio.current_task()
                    if this is not None and this.cancelling():
                        raise
                    if writing.is_stopped:
                        return "stopped"
                    if not writing.is_promoted:
                        raise
                    writing.is_promoted = False
        finally:
            self._writing.remove(writing)
            self._early_stops.end(writing.call_id)

    async def _write(self, writing: _Writing, prompt: Prompt, prefix: Tokens, sampling: Sampling) -> Finish:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        rendered = await self._requests.of(prompt, prefix)
        most = min(sampling.max_tokens, self._requests.max_positions - rendered.num_tokens)
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed % 2**63,
            max_tokens=most,
            stop_token_ids=self._last_tokens,
            structured_outputs=_followed(sampling.grammar),
            logprobs=0 if sampling.logprobs else None,
            logit_bias=self._barred if sampling.logprobs else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        async with aclosing(self._requests.outputs(writing.call_id, rendered, params, writing.priority)) as outputs:
            async for output in outputs:
                written = output.outputs[0]
                for place, token in enumerate(written.token_ids):
                    writing.tokens.append(token)
                    if sampling.logprobs:
                        writing.logprobs.append(float(written.logprobs[place][token].logprob))
                    if finish := self._step_end.finish(writing.tokens, most):
                        return finish
        num_tokens = len(writing.tokens)
        raise RuntimeError(f"vLLM ended the request {writing.call_id!r} after {num_tokens} tokens without a reason")


def _followed(schema: str | None) -> StructuredOutputsParams | None:
    """The JSON schema as vLLM's constraint of a request."""
    from vllm.sampling_params import StructuredOutputsParams

    return None if schema is None else StructuredOutputsParams(json=schema, disable_any_whitespace=True)


def _check(sampling: Sampling) -> None:
    check_sampling(sampling)
    if sampling.logprobs and sampling.top_p < 1:
        raise Unable(
            f"engine 'vllm' gives the log-probabilities of tokens that are sampled from all tokens, but top_p is "
            f"{sampling.top_p:g}: set top_p: 1, or use engine 'hf'"
        )


def _delimiter_tokens(loaded: LoadedVLLM) -> frozenset[int]:
    """All tokens that hold a whole delimiter, such as ".\\n\\n"."""
    tokens = range(len(loaded.chat.tokenizer))
    return frozenset(token for token in tokens if DELIMITER in loaded.chat.decode((token,)))
