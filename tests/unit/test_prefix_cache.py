"""The prefix cache, with keys and values that say which token they belong to."""

from __future__ import annotations

import random

import pytest
import torch

from dreamr.engines.hf.cache import GRANULARITY, CachedSequence, KVShape, PrefixCache
from dreamr.engines.steps import common_prefix

SHAPE = KVShape(layers=2, heads=1, head_dim=1, dtype=torch.float32, device=torch.device("cpu"))


def make_cache(max_buffers: int = 100) -> PrefixCache:
    """Room for so many buffers of the smallest size."""
    return PrefixCache(max_buffers * GRANULARITY, SHAPE)


def write(cache: PrefixCache, sequence: CachedSequence, tokens: list[int]) -> None:
    """Stand in for a forward pass: every layer stores each token's number."""
    cache.reserve(sequence, len(tokens))
    first = len(sequence.tokens)
    for keys, values in sequence.layers:
        keys[0, 0, first : first + len(tokens), 0] = torch.tensor(tokens, dtype=torch.float32)
        values[0, 0, first : first + len(tokens), 0] = -torch.tensor(tokens, dtype=torch.float32)
    cache.grew(sequence, tokens)


def stored(sequence: CachedSequence) -> list[int]:
    """The tokens that all layers agree on."""
    count = len(sequence.tokens)
    rows = {tuple(keys[0, 0, :count, 0].int().tolist()) for keys, _ in sequence.layers}
    rows |= {tuple((-values[0, 0, :count, 0]).int().tolist()) for _, values in sequence.layers}
    assert len(rows) <= 1
    return list(rows.pop()) if rows else []


def use(cache: PrefixCache, key: str, tokens: list[int]) -> int:
    """Claim, fill up and release; returns how many tokens were there already."""
    sequence = cache.claim(key, tokens)
    found = len(sequence.tokens)
    assert stored(sequence) == sequence.tokens == tokens[:found]
    if missing := tokens[found:]:
        write(cache, sequence, missing)
    assert stored(sequence) == tokens
    cache.release(sequence)
    return found


def test_a_longer_sequence_continues_the_cached_prefix() -> None:
    cache = make_cache()
    assert [use(cache, "a", [1, 2, 3]), use(cache, "a", [1, 2, 3, 4, 5])] == [0, 3]
    assert cache.num_sequences == 1


def test_prompts_do_not_share_however_alike_their_tokens_are() -> None:
    cache = make_cache()
    assert [use(cache, "a", [1, 2]), use(cache, "b", [1, 2])] == [0, 0]


def test_a_branch_shares_the_start_and_leaves_the_other_branch_alone() -> None:
    cache = make_cache()
    use(cache, "a", [1, 2, 3, 4])
    assert use(cache, "a", [1, 2, 9]) == 2
    assert use(cache, "a", [1, 2, 3, 4, 5]) == 4
    assert use(cache, "a", [1, 2, 9, 9]) == 3


def test_a_sequence_in_use_is_copied_and_never_shared() -> None:
    cache = make_cache()
    first = cache.claim("a", [1, 2, 3])
    write(cache, first, [1, 2, 3])
    second = cache.claim("a", [1, 2, 3])
    assert second is not first
    assert stored(second) == [1, 2, 3]
    write(cache, second, [7])
    write(cache, first, [8])
    assert (stored(first), stored(second)) == ([1, 2, 3, 8], [1, 2, 3, 7])
    assert cache.num_in_use == 2


def test_an_idle_sequence_is_preferred_to_a_copy_of_the_same_length() -> None:
    cache = make_cache()
    busy = cache.claim("a", [1, 2])
    write(cache, busy, [1, 2])
    use(cache, "a", [1, 2])
    cache.claim("a", [1, 2, 3])
    assert cache.num_sequences == 2


def test_buffers_grow_with_their_contents_and_cropped_columns_are_written_again() -> None:
    cache = make_cache()
    sequence = cache.claim("a", [])
    tokens: list[int] = []
    for number in range(5 * GRANULARITY):
        write(cache, sequence, [number])
        tokens.append(number)
        if number % 50 == 49:
            cache.crop(sequence, len(tokens) - 20)
            del tokens[-20:]
    assert stored(sequence) == tokens
    assert sequence.capacity % GRANULARITY == 0
    cache.release(sequence)
    cache.check_integrity()


def test_the_least_recently_used_goes_first() -> None:
    cache = make_cache(3)
    for key in ("a", "b", "c"):
        use(cache, key, [1, 2, 3])
    use(cache, "a", [1, 2, 3])
    use(cache, "d", [1, 2, 3])
    assert cache.capacity == 3 * GRANULARITY
    assert [use(cache, key, [1, 2, 3]) for key in ("a", "c", "d")] == [3, 3, 3]
    assert use(cache, "b", [1, 2, 3]) == 0


def test_others_are_evicted_before_a_buffer_is_made() -> None:
    cache = make_cache(2)
    sizes: list[int] = []
    for key in "abcde":
        sequence = cache.claim(key, [1])
        write(cache, sequence, [1])
        sizes.append(cache.capacity)
        cache.release(sequence)
        use(cache, key, [1, 2])  # a fork of the idle one would need a third buffer
    assert max(sizes) <= 2 * GRANULARITY


def test_a_sequence_in_use_is_never_evicted() -> None:
    cache = make_cache(1)
    sequence = cache.claim("a", [1, 2, 3])
    write(cache, sequence, [1, 2, 3])
    use(cache, "b", [1, 2, 3])
    assert cache.num_sequences == 1
    assert stored(sequence) == [1, 2, 3]
    cache.release(sequence)
    assert use(cache, "a", [1, 2, 3]) == 3


def test_a_dropped_sequence_is_forgotten() -> None:
    cache = make_cache()
    use(cache, "a", [1, 2])
    cache.drop(cache.claim("a", [1, 2, 3]))
    assert (cache.num_sequences, cache.capacity) == (0, 0)


def test_clear_forgets_everything_and_refuses_while_in_use() -> None:
    cache = make_cache()
    sequence = cache.claim("a", [1])
    with pytest.raises(RuntimeError, match="1 sequences are in use"):
        cache.clear()
    with pytest.raises(AssertionError, match="1 sequences are in use"):
        cache.check_integrity()
    cache.release(sequence)
    cache.clear()
    assert (cache.capacity, use(cache, "a", [1])) == (0, 0)


def test_random_use_keeps_the_bound_and_the_contents() -> None:
    rng = random.Random(0)
    cache = make_cache(8)
    found = [use(cache, rng.choice("ab"), [rng.randint(0, 2) for _ in range(rng.randint(1, 12))]) for _ in range(500)]
    assert cache.capacity <= 8 * GRANULARITY
    assert sum(found) > 500
    cache.check_integrity()


@pytest.mark.parametrize(
    ("a", "b", "shared"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 4, 3], 1), ([5], [5], 1)]
)
def test_common_prefix(a: list[int], b: list[int], shared: int) -> None:
    assert common_prefix(a, b) == common_prefix(b, a) == shared
