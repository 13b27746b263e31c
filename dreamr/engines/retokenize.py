"""`TextCrossing`: a model with another tokenizer than the target, whose steps are in the target's token ids.

    others ── Step, target's ids ──▶ text ──▶ own ids ──▶ engine
           ◀── Step, target's ids ── text ◀── own ids ◀────┘

Every step outside is in the target's encoding, so no other part handles a second tokenizer, and committed tokens are
those that the target would read. Each call translates its whole prefix, so its result depends on the prefix alone,
never on earlier calls of this engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from dreamr.engines.base import COMPARISONS, Engine, Swappable
from dreamr.types import Criterion, Prefill, Priority, Prompt, Sampling, Step, Tokens, Verdict

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"
"""An incomplete character decodes to this."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    eos_token_id: int | None

    def get_vocab(self) -> dict[str, int]: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> Any: ...
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> Any: ...

    @property
    def added_tokens_decoder(self) -> dict[int, Any]: ...


class TextCrossing:
    """See `Engine`; `own` is the engine's tokenizer, `target` the one whose ids steps carry."""

    def __init__(self, engine: Engine, own: Tokenizer, target: Tokenizer) -> None:
        self._engine, self._own, self._target = engine, own, target

    async def next_step(
        self, call_id: str, prompt: Prompt, after: Step, sampling: Sampling, priority: Priority = "needed"
    ) -> Step:
        """Write a step of at most `max_tokens` of the engine's tokens; the target's encoding may be longer.

        Raises ValueError when the target's tokenizer cannot spell what was written.
        """
        inner = await self._engine.next_step(call_id, prompt, self._translated(after), sampling, priority)
        text = inner.text.rstrip(_UNFINISHED)
        tokens = self._spelled(text)
        if inner.closed and inner.tokens:
            tokens += (cast(int, self._target.eos_token_id),)
        # `logprobs` stay, for the step's confidence alone: they belong to other tokens than these.
        return replace(inner, prefix=after.end, tokens=tokens, text=text, token_texts=())

    async def score(
        self,
        call_id: str,
        prompt: Prompt,
        chain: Sequence[Step],
        criterion: Criterion = "rho",
        references: Sequence[Step] = (),
    ) -> list[Verdict]:
        """Judge each step on its own prefix; comparisons read texts alone and need no translation."""
        if criterion in COMPARISONS:
            return await self._engine.score(call_id, prompt, chain, criterion, references)
        verdicts: list[Verdict] = []
        for step in chain:
            verdicts += await self._engine.score(call_id, prompt, [self._as_own(step)], criterion)
        return verdicts

    async def prefill(self, prompt: Prompt) -> Prefill:
        """See `Engine`."""
        return await self._engine.prefill(prompt)

    async def count_tokens(self, prompt: Prompt) -> int:
        """See `Engine`; the engine's own tokens."""
        return await self._engine.count_tokens(prompt)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The engine's own."""
        return cast(Swappable, self._engine).tokenizer

    def read_weights(self, model: str) -> Mapping[str, Tensor]:
        """See `Swappable`: engines with a tokenizer are."""
        return cast(Swappable, self._engine).read_weights(model)

    async def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """See `Swappable`."""
        await cast(Swappable, self._engine).update_weights(state_dict)

    def promote(self, call_id: str, hint: Tokens = ()) -> None:
        """See `Engine`; a hint would be in the target's ids."""
        self._engine.promote(call_id)

    def stop(self, call_id: str) -> None:
        """See `Engine`."""
        self._engine.stop(call_id)

    def idle_s(self) -> float:
        """See `Engine`."""
        return self._engine.idle_s()

    def _translated(self, after: Step) -> Step:
        """The step whose end is `after.end` in the engine's own ids."""
        text = _text(self._target, after.end)
        return Step(prefix=_ids(self._own, text), finish=after.finish)

    def _as_own(self, step: Step) -> Step:
        """`step` in the engine's own ids: its last part alone, so that it is judged as one step."""
        prefix = _ids(self._own, _text(self._target, step.prefix))
        tokens = _ids(self._own, _text(self._target, step.tokens))
        if step.closed:
            tokens += (cast(int, self._own.eos_token_id),)
        return replace(step, prefix=prefix, tokens=tokens)

    def _spelled(self, text: str) -> Tokens:
        tokens = _ids(self._target, text)
        if _text(self._target, tokens) != text:
            raise ValueError(
                f"the target's tokenizer cannot spell the draft's {text!r}: a pair needs tokenizers that spell any text"
            )
        return tokens


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether both give every ordinary token the same id, and end an answer alike: then ids need no translation."""
    return _ordinary(one) == _ordinary(other) and one.eos_token_id == other.eos_token_id


def _ordinary(tokenizer: Tokenizer) -> dict[str, int]:
    control = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {token: index for token, index in tokenizer.get_vocab().items() if index not in control}


def _text(tokenizer: Tokenizer, tokens: Tokens) -> str:
    return cast(str, tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _ids(tokenizer: Tokenizer, text: str) -> Tokens:
    return tuple(cast(list[int], tokenizer.encode(text, add_special_tokens=False)))
