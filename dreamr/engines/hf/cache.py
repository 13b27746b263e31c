"""Prefix cache: keys and values of several token sequences, looked up by longest common prefix.

    claim(key, tokens) ──▶ sequence with the longest cached prefix of `tokens`, for one request alone
    reserve / grew / crop  while the request runs
    release ──▶ idle: kept until it is evicted as the least recently used

Only the engine's loop uses it, so there are no locks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreamr.engines.steps import common_prefix

GRANULARITY = 64
"""Capacities are multiples of this many tokens, so a decoded token seldom needs a new buffer."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """Shape of the keys and values of one token."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize


@dataclass(slots=True, eq=False)
class CachedSequence:
    """Tokens of one prompt and of the steps after it, and their keys and values in every layer."""

    key: str
    """`Prompt.key`: image tokens have the same id in every prompt, so only sequences of one prompt may share."""
    tokens: list[int] = field(default_factory=list)
    """Prompt included."""
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values per layer, each (1, heads, capacity, head_dim); the first `len(tokens)` columns are valid."""
    in_use: bool = False

    @property
    def capacity(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0


class PrefixCache:
    """Bounded set of cached sequences, least recently used first out.

    `max_tokens` bounds the capacity of all sequences together; sequences in use count, but are never evicted, so the
    bound is exceeded only when the running requests need more than it allows.
    """

    def __init__(self, max_tokens: int, shape: KVShape) -> None:
        if max_tokens < 1:
            raise ValueError(f"max_cached_tokens must be at least 1, not {max_tokens}")
        self._max_tokens, self._shape = max_tokens, shape
        self._sequences: list[CachedSequence] = []
        """Least recently used first."""
        self._capacity = 0

    @property
    def capacity(self) -> int:
        """Tokens that all buffers together can hold."""
        return self._capacity

    @property
    def num_sequences(self) -> int:
        return len(self._sequences)

    @property
    def num_in_use(self) -> int:
        return sum(sequence.in_use for sequence in self._sequences)

    def claim(self, key: str, tokens: Sequence[int]) -> CachedSequence:
        """A sequence with the longest cached prefix of `tokens` and nothing else, for this caller alone.

        An idle sequence that is wholly a prefix is continued. Of a longer one, or of one in use, the shared part is
        copied, so its tail stays available.
        """
        best, num_shared, whole = self._longest(key, list(tokens))
        if best is None or not whole:
            best = self._fork(key, best, num_shared)
        else:
            self._sequences.remove(best)
        best.in_use = True
        self._sequences.append(best)
        return best

    def release(self, sequence: CachedSequence) -> None:
        """The caller has finished; the sequence stays cached."""
        sequence.in_use = False
        self._evict(0)

    def drop(self, sequence: CachedSequence) -> None:
        """Remove a sequence whose request failed: only some layers may hold its last tokens."""
        self._sequences.remove(sequence)
        self._capacity -= sequence.capacity

    def reserve(self, sequence: CachedSequence, num_tokens: int) -> None:
        """Make sure that `num_tokens` more fit into the sequence's buffers; evicts others first."""
        needed = len(sequence.tokens) + num_tokens
        if needed <= sequence.capacity:
            return
        capacity = -(-max(needed, sequence.capacity * 3 // 2) // GRANULARITY) * GRANULARITY
        self._evict(capacity - sequence.capacity)
        self._capacity += capacity - sequence.capacity
        sequence.layers = self._copied(sequence.layers, len(sequence.tokens), capacity)

    def grew(self, sequence: CachedSequence, tokens: Sequence[int]) -> None:
        """Note that a forward has written keys and values of `tokens`."""
        sequence.tokens.extend(tokens)

    def crop(self, sequence: CachedSequence, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens. Copies nothing: the columns after them will be overwritten."""
        del sequence.tokens[num_tokens:]

    def clear(self) -> None:
        """Drop everything. Raises RuntimeError while a sequence is in use."""
        if self.num_in_use:
            raise RuntimeError(f"the prefix cache cannot be cleared: {self.num_in_use} sequences are in use")
        self._sequences.clear()
        self._capacity = 0

    def check_integrity(self) -> None:
        """Raises AssertionError for inconsistent accounts; tests call it when the engine is idle."""
        assert self.num_in_use == 0, f"{self.num_in_use} sequences are in use although nothing runs"
        assert self._capacity == sum(sequence.capacity for sequence in self._sequences)
        assert all(len(sequence.tokens) <= sequence.capacity for sequence in self._sequences)
        assert len({id(sequence) for sequence in self._sequences}) == len(self._sequences)

    def _longest(self, key: str, wanted: list[int]) -> tuple[CachedSequence | None, int, bool]:
        """The best sequence to start from, how many tokens it shares, and whether it can be continued itself."""
        best, num_shared, whole = None, 0, False
        for sequence in self._sequences:
            if sequence.key != key:
                continue
            shared = common_prefix(sequence.tokens, wanted)
            continuable = not sequence.in_use and shared == len(sequence.tokens)
            if (shared, continuable) >= (num_shared, whole):
                best, num_shared, whole = sequence, shared, continuable
        return best, num_shared, whole

    def _fork(self, key: str, source: CachedSequence | None, num_tokens: int) -> CachedSequence:
        """A new sequence with a copy of the first `num_tokens` of `source`, which may be in use."""
        fork = CachedSequence(key)
        if source is None or num_tokens == 0:
            return fork
        capacity = -(-(num_tokens + GRANULARITY // 2) // GRANULARITY) * GRANULARITY
        layers = source.layers  # keeps a reference: eviction may drop the source
        self._evict(capacity)
        fork.layers = self._copied(layers, num_tokens, capacity)
        fork.tokens = source.tokens[:num_tokens]
        self._capacity += capacity
        return fork

    def _copied(
        self, layers: list[tuple[Tensor, Tensor]], num_tokens: int, capacity: int
    ) -> list[tuple[Tensor, Tensor]]:
        shape = self._shape
        size = (1, shape.heads, capacity, shape.head_dim)
        copies = []
        for index in range(shape.layers):
            keys, values = (torch.empty(size, dtype=shape.dtype, device=shape.device) for _ in range(2))
            if num_tokens:
                keys[:, :, :num_tokens] = layers[index][0][:, :, :num_tokens]
                values[:, :, :num_tokens] = layers[index][1][:, :, :num_tokens]
            copies.append((keys, values))
        return copies

    def _evict(self, needed: int) -> None:
        """Drop idle sequences until `needed` more tokens fit, or none is left."""
        for sequence in list(self._sequences):
            if self._capacity + needed <= self._max_tokens:
                return
            if not sequence.in_use:
                self.drop(sequence)
