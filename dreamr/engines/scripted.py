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
from dreamr.engines.shared_forwards import SharedForwards
from dreamr.engines.steps import StepEnd
from dreamr.errors import TooLong
from dreamr.types import (
    DELIMITER,
    END_OF_THOUGHT,
    Checked,
    Criterion,
    Finish,
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

END_OF_STEP = 0
END_OF_ANSWER = 1
_WORDS = range(2, 1000)
_SLIP = 1000
"""A token that is in no script."""
THOUGHT_END, JSON_VALUE = 1001, 1002
_SHOWN = {THOUGHT_END: END_OF_THOUGHT, JSON_VALUE: "{}"}


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
        self._latency = random.Random(f"latency/{config.seed}")
        self._forward = asyncio.Semaphore(config.max_batch if config.row_s is None else 1)
        self._shared = SharedForwards(self._run_shared, config.max_batch)
        self._stopped: set[str] = set()
        self._promoted: set[str] = set()
        self._arrived: set[str] = set()
        self._last_forward = 0.0
        self._read: set[str] = set()
        """Keys of the prompts that were read."""

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        """See `Engine`."""
        if after.closed:
            return Step(prefix=after.end, finish="eos", started=self._now(), ended=self._now())
        self._check_length(prompt, after.end)
        await self._arrive(call_id)
        script = self.script(prompt, after.end, sampling)
        tokens: list[int] = []
        started = reached = self._now()
        while len(tokens) < len(script):
            if call_id in self._stopped:
                break
            first = 0.0 if tokens else self._config.first_token_s + self._reading(prompt)
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
        step = Step(after.end, tuple(tokens), _text(tokens), _finish(tokens, script), started, self._now())
        return replace(step, logprobs=self._logprobs(prompt, step)) if sampling.logprobs else step

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
                await self._pass(config.verdict_s + config.verdict_step_s * (len(chain) - 1) + self._reading(prompt))
        scale = 9 if criterion in ("digit", "mean_digit") else 1
        return [Verdict(scale * self.rho(prompt, step), started, self._now()) for step in chain]

    async def next_steps(
        self, call_id: str, prompt: Prompt, chain: Sequence[Step], sampling: Sequence[Sampling]
    ) -> tuple[Step, ...]:
        """See `BranchWriting`: tokens of all steps share a forward."""
        await self._arrive(call_id)
        scripts = [self.script(prompt, step.end, one) for step, one in zip(chain, sampling, strict=True)]
        started, written = self._now(), 0
        while written < max(map(len, scripts)) and call_id not in self._stopped:
            async with self._forward:
                started = started if written else self._now()
                first = 0.0 if written else self._config.first_token_s + self._reading(prompt)
                num_open = sum(len(script) > written for script in scripts)
                await self._pass(self._config.token_s + (num_open - 1) * (self._config.row_s or 0.0) + first)
            written += 1
        return tuple(
            Step(step.end, script[:written], _text(script[:written]), _finish(script[:written], script), started, now)
            for step, script, now in zip(chain, scripts, [self._now()] * len(chain), strict=True)
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
            tokens.append(self._imitated(prompt, after, tokens, sampling))
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
            own.append(self._next(prompt, after, own, sampling))
            if proposal.tokens[: len(own)] != tuple(own):
                break
        accepted = len(own) - (proposal.tokens[: len(own)] != tuple(own))
        return Checked(_ENDS.split(after, tuple(own), sampling), accepted, started, self._now())

    def _imitated(self, prompt: Prompt, after: Step, written: list[int], sampling: Sampling) -> int:
        if _SLIP in written:  # no script continues from there
            return _SLIP
        config = self._config
        slip = random.Random(f"slip/{config.seed}/{prompt.key}/{after.end}/{written}").random()
        return self._model()._next(prompt, after, written, sampling) if slip < config.token_acceptance else _SLIP

    def _model(self) -> ScriptedEngine:
        """The imitated engine, or this one."""
        config = self._config
        return self if config.imitates is None else ScriptedEngine(config.model_copy(update={"seed": config.imitates}))

    def _logprobs(self, prompt: Prompt, step: Step) -> tuple[float, ...]:
        """Low ones mostly where the imitated engine rejects the step, so that confidence predicts verdicts."""
        doubt = random.Random(f"doubt/{self._config.seed}/{prompt.key}/{step.end}").random()
        rejected = self._model().rho(prompt, step) < 0.5
        return (-doubt - 0.8 * rejected,) * len(step.tokens)

    def _next(self, prompt: Prompt, after: Step, written: list[int], sampling: Sampling) -> int:
        """The token after an open step and the tokens written after it."""
        last = (after, *_ENDS.split(after, tuple(written), sampling))[-1]
        is_open = last is after or last.finish == "stopped"
        prefix, place = (last.prefix, len(last.tokens)) if is_open else (last.end, 0)
        return self.script(prompt, prefix, sampling)[place]

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
        return tuple(random.Random(word).choice(_WORDS) for word in words)

    def promote(self, call_id: str, hint: Tokens = ()) -> None:
        """See `Engine`."""
        self._promoted.add(call_id)

    def stop(self, call_id: str) -> None:
        """See `Engine`."""
        self._stopped.add(call_id)

    def idle_s(self) -> float:
        """See `Engine`."""
        return self._now() - self._last_forward

    def script(self, prompt: Prompt, prefix: Tokens, sampling: Sampling) -> Tokens:
        """The whole step after `prefix`. At temperature 0 the sampling seed changes nothing."""
        if sampling.grammar:
            return (JSON_VALUE, END_OF_ANSWER)[: sampling.max_tokens]
        seed = sampling.seed if sampling.temperature > 0 else 0
        rng = random.Random(f"step/{self._config.seed}/{prompt.key}/{prefix}/{seed}")
        num_steps = random.Random(f"length/{prompt.key}").randint(*self._config.num_steps)
        last = prefix.count(END_OF_STEP) + 1 >= num_steps
        length = rng.randint(*self._config.step_tokens)
        words = rng.choices(_WORDS, k=length - 1)
        if self._ends_thought(prompt, prefix):
            words = [THOUGHT_END, *words[1:]]
        return (*words, END_OF_ANSWER if last else END_OF_STEP)[: sampling.max_tokens]

    def _ends_thought(self, prompt: Prompt, prefix: Tokens) -> bool:
        if self._config.thought_steps is None or THOUGHT_END in prefix:
            return False
        return prefix.count(END_OF_STEP) >= random.Random(f"thought/{prompt.key}").randint(*self._config.thought_steps)

    def rho(self, prompt: Prompt, step: Step) -> float:
        """The verdict on a step on its own prefix."""
        rng = random.Random(f"rho/{self._config.seed}/{prompt.key}/{step.end}")
        return 0.99 if rng.random() < self._config.acceptance else 0.01

    def _check_length(self, prompt: Prompt, prefix: Tokens) -> None:
        """Raises TooLong."""
        num_words, limit = len(prompt.question.split()), self._config.max_positions
        if limit and num_words + len(prefix) >= limit:
            raise TooLong(f"prompt and prefix have {num_words} + {len(prefix)} tokens; the limit is {limit}")

    def _reading(self, prompt: Prompt) -> float:
        """Seconds for reading the prompt; 0 when it was read before."""
        if prompt.key in self._read:
            return 0.0
        self._read.add(prompt.key)
        return self._config.prompt_s

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


def _text(tokens: Sequence[int]) -> str:
    words = " ".join(_SHOWN.get(token, str(token)) for token in tokens if token in _WORDS or token in _SHOWN)
    return words + (DELIMITER if tokens and tokens[-1] == END_OF_STEP else "")


_ENDS = StepEnd(_text, frozenset({END_OF_ANSWER}))


def _finish(tokens: Sequence[int], script: Tokens) -> Finish:
    if len(tokens) < len(script):
        return "stopped"
    return {END_OF_STEP: "delimiter", END_OF_ANSWER: "eos"}.get(tokens[-1], "length")  # type: ignore[return-value]
