"""`Script`: steps and verdicts of an engine without a model. They depend on its seed and on the whole prefix."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property

from dreamr.config import ScriptedEngineConfig
from dreamr.engines.steps import StepEnd
from dreamr.types import DELIMITER, END_OF_THOUGHT, Finish, Prompt, Sampling, Step, Tokens

END_OF_STEP = 0
END_OF_ANSWER = 1
WORDS = range(2, 1000)
_SLIP = 1000
"""A token that is in no script."""
THOUGHT_END, JSON_VALUE = 1001, 1002
_SHOWN = {THOUGHT_END: END_OF_THOUGHT, JSON_VALUE: "{}"}


class Script:
    """What one scripted model writes and accepts."""

    def __init__(self, config: ScriptedEngineConfig) -> None:
        self._config = config

    def step(self, prompt: Prompt, prefix: Tokens, sampling: Sampling) -> Tokens:
        """The whole step after `prefix`. At temperature 0 the sampling seed changes nothing."""
        if sampling.grammar:
            return (JSON_VALUE, END_OF_ANSWER)[: sampling.max_tokens]
        seed = sampling.seed if sampling.temperature > 0 else 0
        rng = random.Random(f"step/{self._config.seed}/{prompt.key}/{prefix}/{seed}")
        num_steps = random.Random(f"length/{prompt.key}").randint(*self._config.num_steps)
        last = prefix.count(END_OF_STEP) + 1 >= num_steps
        length = rng.randint(*self._config.step_tokens)
        words = rng.choices(WORDS, k=length - 1)
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

    def imitated(self, prompt: Prompt, after: Step, written: list[int], sampling: Sampling) -> int:
        """The token that the imitated engine would write, except for some slips."""
        if _SLIP in written:  # no script continues from there
            return _SLIP
        config = self._config
        slip = random.Random(f"slip/{config.seed}/{prompt.key}/{after.end}/{written}").random()
        return self._model.next_token(prompt, after, written, sampling) if slip < config.token_acceptance else _SLIP

    @cached_property
    def _model(self) -> Script:
        """The script of the imitated engine, or this one."""
        config = self._config
        return self if config.imitates is None else Script(config.model_copy(update={"seed": config.imitates}))

    def logprobs(self, prompt: Prompt, step: Step) -> tuple[float, ...]:
        """Low ones mostly where the imitated engine rejects the step, so that confidence predicts verdicts."""
        doubt = random.Random(f"doubt/{self._config.seed}/{prompt.key}/{step.end}").random()
        rejected = self._model.rho(prompt, step) < 0.5
        return (-doubt - 0.8 * rejected,) * len(step.tokens)

    def next_token(self, prompt: Prompt, after: Step, written: list[int], sampling: Sampling) -> int:
        """The token after an open step and the tokens written after it."""
        last = (after, *ENDS.split(after, tuple(written), sampling))[-1]
        is_open = last is after or last.finish == "stopped"
        prefix, place = (last.prefix, len(last.tokens)) if is_open else (last.end, 0)
        return self.step(prompt, prefix, sampling)[place]


def text_of(tokens: Sequence[int]) -> str:
    words = " ".join(_SHOWN.get(token, str(token)) for token in tokens if token in WORDS or token in _SHOWN)
    return words + (DELIMITER if tokens and tokens[-1] == END_OF_STEP else "")


ENDS = StepEnd(text_of, frozenset({END_OF_ANSWER}))


def finish_of(tokens: Sequence[int], script: Tokens) -> Finish:
    if len(tokens) < len(script):
        return "stopped"
    return {END_OF_STEP: "delimiter", END_OF_ANSWER: "eos"}.get(tokens[-1], "length")  # type: ignore[return-value]
