"""`VLLMEngine`: one checkpoint run by vLLM (AsyncLLM), on GPUs or a CPU, behind the `Engine` protocol.

    event loop     next_step ─▶ task: render ▶ stream of tokens ─▶ Step       stop(id)
                       awaits ◀──────────────────┘      ▲                        │ cancels that call's task, which
                   score ─▶ one request per step ───────┤ token by token         ▼ aborts its request in vLLM
    vLLM process       [ batches all requests; finds cached prefixes; images are encoded once ]

A step ends where `StepEnd` says, as in the other engine: vLLM itself stops at the tokens that hold the delimiter, so
that it writes nothing behind them, and a delimiter that is split over two tokens is found here.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dreamr.config import VLLMEngineConfig
from dreamr.engines.base import COMPARISONS, EngineDied
from dreamr.engines.early_stops import EarlyStops
from dreamr.engines.pairs import check_pairs
from dreamr.engines.sampling import check_sampling
from dreamr.engines.step_end import StepEnd
from dreamr.engines.verdicts import check_chain, verdict_branch
from dreamr.engines.vllm_input import VLLMInput
from dreamr.engines.vllm_loading import LoadedVLLM, start
from dreamr.engines.vllm_questions import Question, questions
from dreamr.engines.vllm_weights import replace_weights
from dreamr.errors import TooLong, Unable
from dreamr.types import (
    DELIMITER,
    NO_VERDICT,
    Criterion,
    Finish,
    Prefill,
    Priority,
    Prompt,
    Sampling,
    Step,
    ThoughtEnd,
    Tokens,
    Verdict,
)

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams


@dataclass(slots=True, eq=False)
class _Writing:
    """A step that is being written."""

    task: asyncio.Task[Finish]
    is_stopped: bool = False


class VLLMEngine:
    """One started vLLM. Build it with `load`; all methods belong to one event loop."""

    def __init__(self, loaded: LoadedVLLM) -> None:
        self._llm = loaded.llm
        self._chat = loaded.chat
        self._shapes = loaded.shapes
        self._step_end = StepEnd(loaded.chat.decode, loaded.eos_tokens)
        self._questions = questions(loaded.chat)
        self._last_tokens = sorted(loaded.eos_tokens | _delimiter_tokens(loaded))
        self._input = VLLMInput(loaded.llm, loaded.chat)
        self._writing: dict[_Writing, str] = {}
        self._early_stops = EarlyStops()
        self._numbers = itertools.count()
        self._num_running = 0
        self._weights_in_place = asyncio.Event()  # no request begins while weights are replaced
        self._weights_in_place.set()
        self.device = loaded.device
        self.num_parameters = loaded.num_parameters
        self.num_cached_tokens = 0
        """How many tokens of the request that began last were found in the prefix cache."""

    @classmethod
    def load(cls, config: VLLMEngineConfig, model: str) -> VLLMEngine:
        """Start vLLM on a checkpoint folder or hub id. Raises ValueError in one sentence."""
        return cls(start(config, model))

    @property
    def max_positions(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self._input.max_positions

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._chat.tokenizer

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        """Write the step that follows `after` (see `Engine`). Raises ValueError for sampling out of range."""
        check_sampling(sampling)
        if after.closed:
            now = time.time()
            return Step(prefix=after.end, finish="eos", started=now, ended=now)
        tokens: list[int] = []
        started = time.time()
        finish = await self._stoppable(call_id, prompt, after.end, sampling, tokens)
        return Step(after.end, tuple(tokens), self._step_end.text(tokens), finish, started, time.time())

    async def score(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion = "rho",
        references: Sequence[Step] = (),
    ) -> list[Verdict]:
        """Judge the steps at once, one request each over a shared prefix (see `Engine`); `stop` cannot shorten it.

        Raises ValueError when a step is empty, the steps do not follow each other, references are missing, and for
        the criterion "embedding": vLLM does not give hidden states of a model that generates.
        """
        if criterion in COMPARISONS:
            check_pairs(chain, references)
            return await _all(
                self._comparison(call_id, step, other, criterion) for step, other in zip(chain, references, strict=True)
            )
        check_chain(chain)
        question = self._questions[criterion]()
        return await _all(self._verdict(call_id, prompt, step, question) for step in chain)

    async def prefill(self, prompt: Prompt) -> Prefill:
        """Run the prompt alone, so that the first step does not pay for it."""
        started = time.time()
        question = self._questions["rho"]()
        await self._asked(f"prefill {prompt.key}", await self._input.of(prompt, ()), question)
        return Prefill(started, time.time())

    async def count_tokens(self, prompt: Prompt) -> int:
        """See `Engine`."""
        return len((await self._input.of(prompt, ()))["prompt_token_ids"])

    async def thought_end(self) -> ThoughtEnd:
        """See `Phases`."""
        return self._chat.thought_end

    async def tokenize(self, text: Prompt | str) -> Tokens:
        """See `Phases`."""
        if isinstance(text, str):
            return self._chat.ids(text)
        return tuple((await self._input.of(text, ()))["prompt_token_ids"])

    async def warm_up(self) -> None:
        """Have vLLM compile what it compiles only when a verdict is asked for the first time."""
        await self.prefill(Prompt("?"))

    async def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights in place and forget all that the old ones computed; names as in the checkpoint.

        Calls that begin meanwhile wait for the new weights. Raises RuntimeError while requests run, for weights that
        do not fit the checkpoint, and when what the old ones computed cannot be forgotten.
        """
        if self._num_running or not self._weights_in_place.is_set():
            running = f"{self._num_running} requests run" if self._num_running else "others are loaded"
            raise RuntimeError(f"weights cannot be replaced while {running}: await or stop them first")
        self._weights_in_place.clear()
        try:
            await replace_weights(self._llm, self._shapes, state_dict)
        finally:
            self._weights_in_place.set()

    def stop(self, call_id: str) -> None:
        """End that call between two tokens; an unknown or ended one is no error."""
        running = [writing for writing, running_id in self._writing.items() if running_id == call_id]
        for writing in running:
            writing.is_stopped = True
            writing.task.cancel()
        if not running:
            self._early_stops.stop(call_id)

    async def close(self) -> None:
        """Stop all calls and end vLLM's processes; the engine is of no use afterwards."""
        for writing in self._writing:
            writing.is_stopped = True
            writing.task.cancel()
        await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(self._llm.shutdown))])

    # -- steps -----------------------------------------------------------------------------------------------------

    async def _stoppable(
        self, call_id: str, prompt: Prompt, prefix: Tokens, sampling: Sampling, tokens: list[int]
    ) -> Finish:
        """Write in a task of its own, which `stop` cancels; what it has written until then stays in `tokens`."""
        if self._early_stops.begin(call_id):
            self._early_stops.end(call_id)
            return "stopped"
        task = asyncio.create_task(self._write(call_id, prompt, prefix, sampling, tokens), name=f"write {call_id}")
        writing = _Writing(task)
        self._writing[writing] = call_id
        try:
            return await task
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if not writing.is_stopped or (this is not None and this.cancelling()):
                raise
            return "stopped"
        finally:
            del self._writing[writing]
            self._early_stops.end(call_id)

    async def _write(
        self, call_id: str, prompt: Prompt, prefix: Tokens, sampling: Sampling, tokens: list[int]
    ) -> Finish:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        rendered = await self._input.of(prompt, prefix)
        room = min(sampling.max_tokens, self._input.max_positions - len(rendered["prompt_token_ids"]))
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed % 2**63,
            max_tokens=room,
            stop_token_ids=self._last_tokens,
            structured_outputs=_followed(sampling.grammar),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        async with aclosing(self._outputs(call_id, rendered, params)) as outputs:
            async for output in outputs:
                for token in output.outputs[0].token_ids:
                    tokens.append(token)
                    if finish := self._step_end.finish(tokens, room):
                        return finish
        raise RuntimeError(f"vLLM ended the request {call_id!r} after {len(tokens)} tokens without a reason")

    # -- verdicts --------------------------------------------------------------------------------------------------

    async def _verdict(self, call_id: str, prompt: Prompt, step: Step, question: Question) -> Verdict:
        started = time.time()
        try:
            rendered = await self._input.of(prompt, step.end + verdict_branch(step, question.turn))
        except TooLong:
            await self._input.of(prompt, ())  # raises when the prompt alone is too long
            return NO_VERDICT
        value = await self._asked(call_id, rendered, question)
        return Verdict(value, started, time.time())

    async def _comparison(self, call_id: str, step: Step, reference: Step, criterion: Criterion) -> Verdict:
        if criterion != "same":
            raise Unable(f"criterion {criterion!r} needs hidden states, which vLLM does not give: use engine 'hf'")
        started = time.time()
        rendered = await self._input.checked(
            {"prompt_token_ids": list(self._chat.same_chat(reference.text, step.text))}
        )
        value = await self._asked(call_id, rendered, self._questions["rho"]())
        return Verdict(value, started, time.time())

    async def _asked(self, call_id: str, rendered: Any, question: Question) -> float:
        """The verdict that the next token gives, from float32 log-probabilities."""
        from vllm import SamplingParams

        words = list(question.words)
        params = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=words, detokenize=False)
        async with aclosing(self._outputs(call_id, rendered, params)) as outputs:
            async for output in outputs:
                [token] = output.outputs[0].token_ids
                logprobs = output.outputs[0].logprobs[0]
                return question.read(token, [float(logprobs[word].logprob) for word in words])
        raise RuntimeError(f"vLLM ended the request {call_id!r} without a verdict")

    # -- vLLM ------------------------------------------------------------------------------------------------------

    async def _outputs(
        self, call_id: str, rendered: Any, params: SamplingParams
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's answer to one request, which is aborted when this generator is closed early."""
        from vllm.v1.engine.exceptions import EngineDeadError

        while not self._weights_in_place.is_set():
            await self._weights_in_place.wait()
        self._num_running += 1
        try:
            async with aclosing(self._llm.generate(rendered, params, f"{call_id}/{next(self._numbers)}")) as stream:
                async for output in stream:
                    self.num_cached_tokens = output.num_cached_tokens or 0
                    yield output
        except EngineDeadError as error:
            raise EngineDied("vLLM's own process has died") from error
        finally:
            self._num_running -= 1


def _followed(schema: str | None) -> StructuredOutputsParams | None:
    """vLLM's own constraint of a request by a JSON schema."""
    from vllm.sampling_params import StructuredOutputsParams

    return None if schema is None else StructuredOutputsParams(json=schema, disable_any_whitespace=True)


async def _all(verdicts: Iterable[Coroutine[Any, Any, Verdict]]) -> list[Verdict]:
    """Await them at once; none goes on after the first failure."""
    tasks = [asyncio.create_task(verdict) for verdict in verdicts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _delimiter_tokens(loaded: LoadedVLLM) -> frozenset[int]:
    """All tokens that hold a whole delimiter, such as ".\\n\\n"."""
    tokens = range(len(loaded.chat.tokenizer))
    return frozenset(token for token in tokens if DELIMITER in loaded.chat.decode((token,)))
