"""Prefix cache: keys and values of several token sequences, found again by their longest common prefix.

Not thread-safe by itself: every method is called by the thread whose turn it is (`turns.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from transformers import DynamicCache


@dataclass(slots=True, eq=False)
class CachedSequence:
    """Tokens of one prompt and what follows it, and their keys and values in every layer."""

    key: str
    """`Prompt.key`: image tokens look alike, so only sequences of one prompt may share."""
    kv: DynamicCache
    tokens: list[int] = field(default_factory=list)
    """Prompt included; always as many as `kv` holds between two forwards."""
    leased: bool = False


class PrefixCache:
    """Bounded set of cached sequences, least recently used first out.

    `max_tokens` bounds the tokens of all sequences together; sequences in use count, but are never evicted, so the
    bound is exceeded only when the calls that run need more than it allows.
    """

    def __init__(self, max_tokens: int, new_kv: Callable[[], DynamicCache]) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_cached_tokens must be at least 1, not {max_tokens}")
        self._max_tokens = max_tokens
        self._new_kv = new_kv
        self._sequences: list[CachedSequence] = []
        """Least recently used first."""
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences together."""
        return self._num_tokens

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    @property
    def num_leased(self) -> int:
        return sum(sequence.leased for sequence in self._sequences)

    @contextmanager
    def lease(self, key: str, tokens: Sequence[int]) -> Iterator[CachedSequence]:
        """A sequence that holds the longest cached prefix of `tokens` and nothing else, for this caller alone.

        An idle sequence that is wholly a prefix is continued. Of a longer one, or of one in use, the shared part is
        forked, so its tail stays available. A caller that fails loses the sequence: its layers may disagree.
        """
        sequence = self._claim(key, tokens)
        try:
            yield sequence
        except BaseException:
            self._drop(sequence)
            raise
        finally:
            sequence.leased = False
            self._evict()

    def grew(self, sequence: CachedSequence, tokens: Sequence[int]) -> None:
        """Note that a forward has added `tokens` to the sequence's keys and values."""
        sequence.tokens.extend(tokens)
        self._num_tokens += len(tokens)
        if self._num_tokens > self._max_tokens:
            self._evict()

    def crop(self, sequence: CachedSequence, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens, also of keys and values that were not noted by `grew`."""
        surplus = sequence.kv.get_seq_length() - num_tokens
        if surplus > 0:
            sequence.kv.crop(-surplus)
        self._num_tokens -= len(sequence.tokens) - num_tokens
        del sequence.tokens[num_tokens:]

    def clear(self) -> None:
        """Drop everything. Raises RuntimeError while a sequence is in use."""
        if self.num_leased:
            raise RuntimeError(f"the prefix cache cannot be cleared: {self.num_leased} sequences are in use")
        self._sequences.clear()
        self._num_tokens = 0

    def _claim(self, key: str, tokens: Sequence[int]) -> CachedSequence:
        wanted = list(tokens)
        best, num_shared, whole = None, 0, False
        for sequence in self._sequences:
            if sequence.key != key:
                continue
            shared = common_prefix(sequence.tokens, wanted)
            continuable = not sequence.leased and shared == len(sequence.tokens)
            if (shared, continuable) >= (num_shared, whole):
                best, num_shared, whole = sequence, shared, continuable
        if best is None or not whole:
            best = self._fork(key, best, num_shared)
        else:
            self._sequences.remove(best)
        best.leased = True
        self._sequences.append(best)
        return best

    def _fork(self, key: str, source: CachedSequence | None, num_tokens: int) -> CachedSequence:
        """A new sequence with a copy of the first `num_tokens` of `source`, which may be in use."""
        fork = CachedSequence(key, self._new_kv())
        if source is None or num_tokens == 0:
            return fork
        for index, (keys, values, _) in enumerate(source.kv):
            fork.kv.update(keys[..., :num_tokens, :], values[..., :num_tokens, :], index)
        fork.tokens = source.tokens[:num_tokens]
        self._num_tokens += num_tokens
        return fork

    def _evict(self) -> None:
        for sequence in list(self._sequences):
            if self._num_tokens <= self._max_tokens:
                return
            if not sequence.leased:
                self._drop(sequence)

    def _drop(self, sequence: CachedSequence) -> None:
        self._sequences.remove(sequence)
        self._num_tokens -= len(sequence.tokens)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` share from the start."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return next(index for index in range(shorter) if a[index] != b[index])
