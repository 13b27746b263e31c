"""Plain data that travels between driver, actors and engines. Standard library only.

A `Step` holds the exact prefix that it was written from. So the next draft call and the verifier need only a reference
to a drafted step, and a call with a shorter prefix is a rollback.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

DELIMITER = "\n\n"
"""Ends a reasoning step; kept at the end of the step's tokens."""

START_OF_THOUGHT, END_OF_THOUGHT = "<think>", "</think>"
"""Marks around the chain of thought; the answer follows the second."""

Tokens = tuple[int, ...]
"""Token ids of the target's tokenizer, without the prompt."""

Role = Literal["draft", "target", "verifier"]

Criterion = str
"""How a step is judged: a key of `dreamr.engines.verdicts.QUESTIONS` or of `COMPARISONS`."""

Finish = Literal["delimiter", "eos", "length", "stopped"]
"""Why a step ended: its delimiter, the end of the answer, `max_tokens`, or a call of `stop`."""

Priority = Literal["needed", "speculative"]
"""A speculative step may not be needed, and waits for needed ones. Changes no token."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the conversation before the question."""

    role: Literal["system", "user", "assistant"]
    text: str
    num_images: int = 0
    """How many of the prompt's images it shows, before its text."""


@dataclass(frozen=True)
class Prompt:
    """One question as the user asked it; each engine applies its own chat template and image processor."""

    question: str
    images: tuple[bytes, ...] = ()
    """Encoded image files (PNG, JPEG, ...), in the order in which they precede the question."""
    earlier: tuple[Turn, ...] = ()
    """The conversation so far; its images are the first ones of `images`."""

    @cached_property
    def key(self) -> str:
        """Content digest: engines share cached prefixes between calls with the same key."""
        digest = hashlib.sha256(self.question.encode())
        for image in self.images:
            digest.update(len(image).to_bytes(8, "big") + image)
        for turn in self.earlier:
            digest.update(repr(turn).encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one step are chosen. With `temperature == 0` (greedy), `top_p` and `seed` have no effect."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """Only so many of the most likely tokens; 0: all."""
    min_p: float = 0.0
    """Only tokens at least so likely, relative to the most likely one."""
    max_tokens: int = 512
    """Most tokens in one step, delimiter included."""
    seed: int = 0
    """Seed of this step alone; schedules make it from the request's seed, the step's number and the role."""
    budget: int | None = None
    """Most tokens of the whole answer; see `within_budget`."""
    grammar: str | None = None
    """A JSON schema as text: the step is one JSON value that follows it, and ends the answer."""
    hint: Tokens = ()
    """Tokens that the step may begin with, such as a rejected drafted step: an engine may check them in one forward
    instead of writing them again. Changes no token."""
    assisted: bool = True
    """Whether an engine that has an assistant may use it. Changes no greedy token, and no sampling distribution."""
    logprobs: bool = False
    """Also return the log-probability of every token at this temperature, for a learner; image tokens are then never
    chosen, since the learner would take one for another image."""
    sure_above: float | None = None
    """Mark steps whose `confidence` is above this as sure; needs `logprobs`."""

    def within_budget(self, num_before: int) -> Sampling:
        """The sampling of a step that begins after so many tokens of the answer: no longer than the budget allows."""
        if self.budget is None or self.budget - num_before >= self.max_tokens:
            return self
        return replace(self, max_tokens=max(1, self.budget - num_before))  # drafts may run past the end


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens up to and with the delimiter, and the prefix they were written from."""

    prefix: Tokens = ()
    tokens: Tokens = ()
    text: str = ""
    finish: Finish = "delimiter"
    started: float = 0.0
    ended: float = 0.0
    """Seconds on the engine's clock (`time.time` for real engines, so that lanes of several actors line up)."""
    rounds: tuple[tuple[int, int], ...] = ()
    """Per forward in which an assistant's tokens were checked: how many were proposed and how many accepted."""
    num_salvaged: int = 0
    """Tokens kept of a rejected drafted step, because the target's own step begins with them."""
    logprobs: tuple[float, ...] = ()
    """Of each token, where `Sampling.logprobs` asked for them."""
    token_texts: tuple[str, ...] = ()
    """Of each token, with `logprobs`; a token may hold a part of a character, which has no text."""
    is_sure: bool = False
    """Its confidence is above `Sampling.sure_above`: it is accepted without a verdict."""

    @property
    def confidence(self) -> float:
        """Log-probability of its least likely token."""
        return min(self.logprobs, default=-math.inf)

    @property
    def end(self) -> Tokens:
        """The prefix of the step that follows."""
        return self.prefix + self.tokens

    @property
    def closed(self) -> bool:
        """True when nothing can follow: the model ended its answer."""
        return self.finish == "eos"

    @property
    def is_blank(self) -> bool:
        """True when there is nothing to judge: only white space, or a step that was stopped."""
        return self.finish == "stopped" or not self.text.strip()


ROOT = Step()
"""The empty step before the first: `ROOT.end` is the empty prefix."""


@dataclass(frozen=True, slots=True)
class ThoughtEnd:
    """How a model ends its chain of thought."""

    token: int
    """`END_OF_THOUGHT`, which is one token."""
    closing: Step
    """Tokens and text that end a chain of thought for the model, where its budget ends."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The target's judgment of one drafted step on its own prefix."""

    score: float
    """On the scale of its criterion. For `rho` (CPN, paper section on TBVM) `p(positive) / (p(positive) +
    p(negative))` from float32 logits."""
    started: float = 0.0
    ended: float = 0.0
    judged: bool = True
    """False when nothing was computed: the call was stopped first, the step is blank, or the verdict was skipped; the
    score is 0 then."""
    skipped: bool = False
    """True for a sure step (`Step.is_sure`), which is accepted without a verdict."""
    mass: float | None = None
    """Total probability of the words that the score is read from; a score from a small mass is unreliable. None for
    scores that are not read from words."""


NO_VERDICT = Verdict(score=0.0, judged=False)


@dataclass(frozen=True, slots=True)
class JudgedStep:
    """The target's verdict on a drafted step, and its log-probabilities of the step's tokens where asked for."""

    verdict: Verdict
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Prefill:
    """When a prompt was read: seconds on the engine's clock, equal when it was cached."""

    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens that a draft proposes after a prefix, for token-level speculation."""

    tokens: Tokens = ()
    probabilities: bytes = b""
    """float32 (num_tokens, v), row by row: what each token was sampled from. Empty for greedy ones."""
    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Checked:
    """The target's decision on a proposal: the accepted tokens and one more token from the target."""

    steps: tuple[Step, ...]
    """The tokens split into steps; the first continues the open step of the call. A last step with finish "stopped" is
    still open."""
    num_accepted: int
    """Proposed tokens that were accepted."""
    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an actor reports about itself when it is ready."""

    role: Role
    model: str
    device: str
    num_parameters: int
    max_positions: int = 0
    """Most tokens of a prompt and its answer together; 0 when unknown."""
    recommended: Mapping[str, float] = field(default_factory=dict)
    """Sampling settings that the checkpoint recommends, by name; empty when it recommends none."""
    thought_end: ThoughtEnd | None = None
    """None when the engine cannot bound a chain of thought."""
    pid: int = 0
    node: str = ""
