"""`ScriptedEngine`: an engine without a model, for tests and simulation under a virtual clock.

Its steps depend on its seed and on every token of the prefix, so one wrong prefix changes all that follows. Calls take
turns at the forward, in the order in which they come, as on a real model. Without `row_s`, `max_batch` forwards run at
the same time; with it, waiting steps share one (`SharedForwards`). All tokens of a step take the configured time
together: an event loop that notices the end of one late does not delay the next.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from dreamr.config import ScriptedEngineConfig
from dreamr.engines.cores import Cores
from dreamr.engines.script import END_OF_ANSWER, END_OF_STEP, ENDS, THOUGHT_END, WORDS, Script, finish_of, text_of
from dreamr.engines.shared_forwards import SharedForwards
from dreamr.errors import TooLong
from dreamr.types import (
    END_OF_THOUGHT,
    Checked,
    Criterion,
    Prefill,
    Priority,
    Prompt,
    Proposal,
    Role,
    Sampling,
    Step,
    ThoughtEnd,
    Tokens,
    Verdict,
)


class ScriptedEngine:
    """Draft, target or verifier: two engines with the same seed are the same model with any latencies.

    `clock` stamps steps and verdicts; under a virtual clock, give it the event loop's. With `cores`, which other
    engines may share, all work takes place on these, as that of `actor`.
    """

    def __init__(
        self,
        config: ScriptedEngineConfig,
        clock: Callable[[], float] = time.time,
        cores: Cores | None = None,
        actor: Role | None = None,
    ) -> None:
        self._config, self._now, self._cores, self._actor = config, clock, cores, actor
        self.script = Script(config)
        self._latency = random.Random(f"latency/{config.seed}")
        self._forward = asyncio.Semaphore(config.max_batch if config.row_s is None else 1)
        self._shared = SharedForwards(self._run_shared, config.max_batch)
        self._stopped: set[str] = set()
        self._promoted: set[str] = set()
        self._arrived: set[str] = set()
        self._last_forward = 0.0
        self._read: set[str] = set()
        """Keys of the prompts that were read."""
        self._cached: set[tuple[str, Tokens]] = set()
        """Keys of prompts, with the ends of the steps after them that were read or written."""

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        """See `Engine`."""
        if after.closed:
            return Step(prefix=after.end, finish="eos", started=self._now(), ended=self._now())
        self._check_length(prompt, after.end)
        await self._arrive(call_id)
        script = self.script.step(prompt, after.end, sampling)
        tokens: list[int] = []
        started = reached = self._now()
        while len(tokens) < len(script):
            if call_id in self._stopped:
                break
            first = 0.0 if tokens else self._config.first_token_s + self._reading(prompt, after.end)
            background = self._config.background and priority == "speculative" and call_id not in self._promoted
            if self._config.row_s is not None:
                began = await self._shared.join(self._config.token_s, first, background=background)
                started = started if tokens else began
            else:
                waits = self._forward.locked()
                async with self._forward:
                    reached = self._now() if waits else reached
                    started = started if tokens else self._now()
                    reached = await self._pass(self._config.token_s + first, after=reached, background=background)
            tokens.append(script[len(tokens)])
        self._cached.add((prompt.key, after.end + tuple(tokens)))
        step = Step(after.end, tuple(tokens), text_of(tokens), finish_of(tokens, script), started, self._now())
        if not sampling.logprobs:
            return step
        return replace(step, logprobs=self.script.logprobs(prompt, step), token_texts=ENDS.token_texts(tokens))

    async def score(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion = "rho",
        references: Sequence[Step] = (),
    ) -> list[Verdict]:
        """See `Engine`. A step that is accepted by one criterion is accepted by all of them, at their default
        thresholds."""
        config = self._config
        await self._arrive(call_id)
        if references and config.row_s is not None:
            alone_s = config.verdict_s if config.compare_s is None else config.compare_s
            started = await self._shared.join(alone_s)
        else:
            async with self._forward:
                started = self._now()
                further_s = config.verdict_step_s * (len(chain) - 1)
                await self._pass(config.verdict_s + further_s + self._reading(prompt, chain[0].prefix))
                self._cached.update((prompt.key, step.end) for step in chain)
        scale = 9 if criterion in ("digit", "mean_digit") else 1
        return [Verdict(scale * self.script.rho(prompt, step), started, self._now()) for step in chain]

    async def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> tuple[Step, ...]:
        """See `BranchWriting`: tokens of all steps share a forward."""
        await self._arrive(call_id)
        scripts = [self.script.step(prompt, step.end, one) for step, one in zip(chain, sampling, strict=True)]
        unread = [one for step in chain for one in self._unread(prompt, step.end)]  # each row reads its whole prefix
        reading_s = len(unread) * self._config.read_step_s + self._reading(prompt)
        self._cached.update(unread)
        started, written = self._now(), 0
        while written < max(map(len, scripts)) and call_id not in self._stopped:
            async with self._forward:
                started = started if written else self._now()
                first = 0.0 if written else self._config.first_token_s + reading_s
                num_open = sum(len(script) > written for script in scripts)
                await self._pass(self._config.token_s + (num_open - 1) * (self._config.row_s or 0.0) + first)
            written += 1
        now, parts = self._now(), [script[:written] for script in scripts]
        return tuple(
            Step(step.end, tokens, text_of(tokens), finish_of(tokens, script), started, now)
            for step, tokens, script in zip(chain, parts, scripts, strict=True)
        )

    async def propose_tokens(
        self, call_id: str, prompt: Prompt, after: Step, num_tokens: int, sampling: Sampling
    ) -> Proposal:
        """See `TokenSpeculation`: the tokens that the imitated engine would write, except for some slips."""
        await self._arrive(call_id)
        started = self._now()
        tokens: list[int] = []
        while len(tokens) < num_tokens and END_OF_ANSWER not in tokens:
            first = 0.0 if tokens else self._config.first_token_s
            async with self._forward:
                await self._pass(self._config.token_s + first + self._reading(prompt))
            tokens.append(self.script.imitated(prompt, after, tokens, sampling))
        return Proposal(tuple(tokens), started=started, ended=self._now())

    async def check_tokens(
        self, call_id: str, prompt: Prompt, after: Step, proposal: Proposal, sampling: Sampling
    ) -> Checked:
        """See `TokenSpeculation`."""
        await self._arrive(call_id)
        check_s = self._config.token_s if self._config.check_s is None else self._config.check_s
        async with self._forward:
            started = self._now()
            await self._pass(self._config.first_token_s + check_s + self._reading(prompt))
        own: list[int] = []
        while END_OF_ANSWER not in own:
            own.append(self.script.next_token(prompt, after, own, sampling))
            if proposal.tokens[: len(own)] != tuple(own):
                break
        accepted = len(own) - (proposal.tokens[: len(own)] != tuple(own))
        return Checked(ENDS.split(after, tuple(own), sampling), accepted, started, self._now())

    async def prefill(self, prompt: Prompt) -> Prefill:
        """See `Engine`."""
        self._check_length(prompt, ())
        async with self._forward:
            started = self._now()
            await self._pass(self._config.first_token_s + self._reading(prompt))
            return Prefill(started, self._now())

    async def count_tokens(self, prompt: Prompt) -> int:
        """See `Engine`. A scripted model reads words, and images not at all."""
        return len(prompt.question.split())

    async def thought_end(self) -> ThoughtEnd:
        """See `Phases`."""
        return ThoughtEnd(THOUGHT_END, Step(tokens=(THOUGHT_END,), text=END_OF_THOUGHT))

    async def tokenize(self, text: Prompt | str) -> Tokens:
        """See `Phases`: one token per word."""
        words = (text if isinstance(text, str) else text.question).split()
        return tuple(random.Random(word).choice(WORDS) for word in words)

    def promote(self, call_id: str, hint: Tokens = ()) -> None:
        """See `Engine`."""
        self._promoted.add(call_id)

    def stop(self, call_id: str) -> None:
        """See `Engine`."""
        self._stopped.add(call_id)

    def idle_s(self) -> float:
        """See `Engine`."""
        return self._now() - self._last_forward

    def _check_length(self, prompt: Prompt, prefix: Tokens) -> None:
        """Raises TooLong."""
        num_words, limit = len(prompt.question.split()), self._config.max_positions
        if limit and num_words + len(prefix) >= limit:
            raise TooLong(f"prompt and prefix have {num_words} + {len(prefix)} tokens; the limit is {limit}")

    def _reading(self, prompt: Prompt, prefix: Tokens = ()) -> float:
        """Seconds for reading the prompt and the steps after it, as far as they were not read before."""
        unread = self._unread(prompt, prefix)
        self._cached.update(unread)
        prompt_s = 0.0 if prompt.key in self._read else self._config.prompt_s
        self._read.add(prompt.key)
        return prompt_s + len(unread) * self._config.read_step_s

    def _unread(self, prompt: Prompt, prefix: Tokens) -> list[tuple[str, Tokens]]:
        """The last steps of a prefix, as in `_cached`, that were not read."""
        unread: list[tuple[str, Tokens]] = []
        ends = [place + 1 for place in range(len(prefix) - 1) if prefix[place] == END_OF_STEP]
        for end in reversed([*ends, len(prefix)] if prefix else []):
            if (prompt.key, prefix[:end]) in self._cached:
                break
            unread.append((prompt.key, prefix[:end]))
        return unread

    async def _pass(self, seconds: float, *, after: float | None = None, background: bool = False) -> float:
        """One forward, begun at `after`, by default now; return when it ended."""
        jitter = self._config.jitter
        seconds *= self._latency.uniform(1 - jitter, 1 + jitter)
        if self._cores is None:
            ends = (self._now() if after is None else after) + seconds
            await asyncio.sleep(max(0.0, ends - self._now()))
        else:
            await self._cores.work(seconds, background=background, actor=self._actor)
            ends = self._now()
        self._last_forward = self._now()
        return ends

    async def _run_shared(self, seconds: float, num_rows: int, background: bool) -> float:
        """One forward for several calls; return when it began."""
        async with self._forward:
            began = self._now()
            further_s = (num_rows - 1) * (self._config.row_s or 0.0)
            await self._pass(seconds + further_s, background=background)
            return began

    async def _arrive(self, call_id: str) -> None:
        """Spend the time of a call, once for all steps of a chain."""
        if not self._config.call_s or call_id in self._arrived:
            return
        self._arrived.add(call_id)
        if self._cores is None:
            await asyncio.sleep(self._config.call_s)
        else:
            await self._cores.work(self._config.call_s)
