"""Token masks for answers that follow a JSON schema: llguidance on the vocabulary of one model.

    schema ──▶ Grammars.mask_of ──▶ TokenMask ── allowed(tokens so far) ──▶ (v) booleans ──▶ the next token

A grammar is compiled once per schema; a `TokenMask` follows one answer. Between two JSON tokens there is one space or
none, so that a model cannot fill its budget with blanks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from dreamr.engines.steps import common_prefix
from dreamr.errors import Unable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MAX_GRAMMARS = 64
"""Compiled grammars that are kept, least recently used first out."""

_OPTIONS: Any = {"whitespace_flexible": True, "whitespace_pattern": "[ ]?"}


def check_schema(schema: str) -> None:
    """Raises ValueError, in one sentence, for a JSON schema that cannot be followed."""
    problem = LLMatcher.validate_grammar(_grammar(schema))
    if problem:
        raise ValueError(" ".join(problem.split()))


class Grammars:
    """The grammars of one model. Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_tokens: frozenset[int], num_logits: int) -> None:
        self._tokenizer, self._eos_tokens, self._num_logits = tokenizer, eos_tokens, num_logits
        added = tokenizer.added_tokens_decoder.items()
        self._control = sorted({token for token, control in added if control.special} - eos_tokens)
        self._vocabulary: LLTokenizer | None = None
        self._closer = _Closer((), ())
        self._compiled: LRUCache[str, LLMatcher] = LRUCache(MAX_GRAMMARS)
        self._lock = threading.Lock()

    def mask_of(self, schema: str, budget: int) -> TokenMask:
        """The mask of one answer of at most `budget` tokens. Raises ValueError for a schema that cannot be followed."""
        with self._lock:
            if self._vocabulary is None:  # up to a second for a large vocabulary, paid by the first such answer
                self._vocabulary = _vocabulary(self._tokenizer, self._eos_tokens)
                self._closer = _closer(self._tokenizer, self._eos_tokens)
            if schema not in self._compiled:
                matcher = LLMatcher(self._vocabulary, _grammar(schema))
                if matcher.is_error():
                    raise ValueError(" ".join(matcher.get_error().split()))
                self._compiled[schema] = matcher
            matcher = self._compiled[schema].deep_copy()
            return TokenMask(matcher, self._closer, self._control, budget, self._num_logits)


class TokenMask:
    """The tokens that may follow, in one answer.

    An answer that is still open near the end of its budget is completed in few tokens: a weak model may write digits
    of a number without end, and an unfinished JSON value is useless. It stays open only when the budget is too small.
    """

    def __init__(self, matcher: LLMatcher, closer: _Closer, control: Sequence[int], budget: int, size: int) -> None:
        """`control`: tokens that no text contains; `size`: number of logits."""
        self._matcher, self._closer, self._control, self._budget = matcher, closer, list(control), budget
        self._size = size
        self._consumed: list[int] = []
        self._next_look = 0
        """Number of tokens at which a short completion is looked for again."""
        self._completion: list[int] = []
        """Tokens that complete the answer, once they are all that is allowed."""

    def allowed(self, tokens: Sequence[int]) -> Tensor:
        """Booleans (v), True for each token that may follow `tokens`, which began with the answer.

        Raises Unable when no token of the model fits, and RuntimeError when the tokens themselves break the grammar.
        """
        import torch  # not at the top: `check_schema` works without it

        self._consume(tokens)
        mask = torch.zeros(self._size, dtype=torch.bool)
        if forced := self._forced(len(tokens)):
            mask[forced] = True
            return mask
        bias = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        known = min(self._size, len(bias))  # logits have more rows than there are tokens where a vocabulary is padded
        mask[:known] = bias[:known] > 0
        mask[self._control] = False
        if not mask.any():
            raise Unable("the model's vocabulary cannot spell a text that the JSON schema requires")
        return mask

    def _consume(self, tokens: Sequence[int]) -> None:
        kept = common_prefix(self._consumed, tokens)
        if kept < len(self._consumed):
            self._matcher.rollback(len(self._consumed) - kept)
            self._completion = []
        if not self._matcher.consume_tokens(list(tokens[kept:])):
            raise RuntimeError(f"the answer does not follow its grammar: {self._matcher.get_error()}")
        self._consumed = list(tokens)

    def _forced(self, num_tokens: int) -> int | None:
        """The only token that may follow; None while the answer is free."""
        if not self._completion and num_tokens >= self._next_look:
            left = self._budget - num_tokens
            completion = self._closer.completion(self._matcher.deep_copy(), left)
            spare = left - len(completion) - self._budget // 8  # one token may open a value that takes several to close
            if spare <= 0:
                self._completion = completion
            self._next_look = num_tokens + max(1, spare // 2)
        return self._completion.pop(0) if self._completion else None


class _Closer:
    """Completes JSON values in few tokens: closes brackets, and begins values only where the schema requires them."""

    def __init__(self, outside: Sequence[int], inside: Sequence[int]) -> None:
        """Tokens by preference, outside of a string and inside of one. The first of `inside` ends a string; most of the
        others are invalid outside of one, which distinguishes the two states of a matcher."""
        self._outside, self._inside = outside, inside

    def completion(self, matcher: LLMatcher, limit: int) -> list[int]:
        """Tokens that complete the value, the end of the answer included; at most `limit`."""
        tokens: list[int] = []
        while len(tokens) < limit and not matcher.is_stopped():
            token = self._next(matcher.compute_logit_bias())
            if token is None:
                break
            tokens.append(token)
            matcher.consume_token(token)
        return tokens

    def _next(self, bias: bytes) -> int | None:
        in_string = any(bias[token] for token in self._inside[1:])
        preferred = self._inside if in_string else self._outside
        return next((token for token in (*preferred, *range(len(bias))) if bias[token]), None)


def _grammar(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(json.loads(schema), overrides=_OPTIONS)


def _closer(tokenizer: PreTrainedTokenizerBase, eos_tokens: frozenset[int]) -> _Closer:
    def ids(signs: str) -> list[int]:
        found = [tokenizer.encode(sign, add_special_tokens=False) for sign in signs]
        return [one[0] for one in found if len(one) == 1]

    # A string allows characters that neither begin nor continue a value.
    return _Closer([*sorted(eos_tokens), *ids('}],:"0123456789nulltruefalse[{-')], ids('"xqzXQZ!?@#'))


def _vocabulary(tokenizer: PreTrainedTokenizerBase, eos_tokens: frozenset[int]) -> LLTokenizer:
    from llguidance.hf import from_tokenizer
    from transformers import PreTrainedTokenizerFast

    ends = sorted(eos_tokens)
    try:
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            return from_tokenizer(tokenizer, eos_token=ends)
    except ValueError:  # neither byte-level nor byte-fallback: tokens are texts, as in the built-in models
        pass
    return LLTokenizer(TokenizerWrapper(_TextTokens(tokenizer)), eos_token=ends)


class _TextTokens:
    """Adapter with the interface that `TokenizerWrapper` needs, for a tokenizer whose tokens are texts."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id: int = tokenizer.eos_token_id
        self.bos_token_id = None
        self.tokens = [str(token).encode() for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        added = tokenizer.added_tokens_decoder.items()
        marks = {token for token in range(len(self.tokens)) if self.tokens[token] in (b"<think>", b"</think>")}
        self.special_token_ids = sorted(marks | {token for token, added_token in added if added_token.special})

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
