"""The prefix cache, with keys and values that say which token they belong to."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import DynamicCache, Qwen3VLTextConfig

from dreamr.engines.hf.cache import CachedSequence, PrefixCache, common_prefix

CONFIG = Qwen3VLTextConfig(num_hidden_layers=2)


def make_cache(max_tokens: int = 1000) -> PrefixCache:
    return PrefixCache(max_tokens, lambda: DynamicCache(config=CONFIG))


def run(cache: PrefixCache, sequence: CachedSequence, tokens: list[int], noted: bool = True) -> None:
    """Stand in for a forward pass: every layer stores each token's number."""
    for layer in range(2):
        states = torch.tensor(tokens, dtype=torch.float32).view(1, 1, -1, 1)
        sequence.kv.update(states, states + layer, layer)
    if noted:
        cache.grew(sequence, tokens)


def stored(sequence: CachedSequence) -> list[int]:
    """The tokens that all layers agree on."""
    keys = [layer.keys.flatten().int().tolist() if layer.is_initialized else [] for layer in sequence.kv.layers]
    assert keys[0] == keys[1]
    return keys[0]


def use(cache: PrefixCache, key: str, tokens: list[int]) -> int:
    """Lease, fill up and give back; returns how many tokens were there already."""
    with cache.lease(key, tokens) as sequence:
        found = len(sequence.tokens)
        assert stored(sequence) == sequence.tokens == tokens[:found]
        if missing := tokens[found:]:
            run(cache, sequence, missing)
    return found


def test_a_longer_wish_continues_the_cached_prefix() -> None:
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


def test_a_sequence_in_use_is_forked_and_never_shared() -> None:
    cache = make_cache()
    with cache.lease("a", [1, 2, 3]) as first:
        run(cache, first, [1, 2, 3])
        with cache.lease("a", [1, 2, 3]) as second:
            assert second is not first
            assert stored(second) == [1, 2, 3]
            run(cache, second, [7])
            run(cache, first, [8])
            assert (stored(first), stored(second)) == ([1, 2, 3, 8], [1, 2, 3, 7])


def test_an_idle_sequence_is_preferred_to_a_fork_of_the_same_length() -> None:
    cache = make_cache()
    with cache.lease("a", [1, 2]) as busy:
        run(cache, busy, [1, 2])
        use(cache, "a", [1, 2])
        with cache.lease("a", [1, 2, 3]):
            assert cache.num_sequences == 2


def test_crop_also_removes_what_was_never_noted() -> None:
    cache = make_cache()
    with cache.lease("a", [1, 2, 3]) as sequence:
        run(cache, sequence, [1, 2, 3])
        run(cache, sequence, [70, 71], noted=False)
        cache.crop(sequence, 2)
        assert stored(sequence) == sequence.tokens == [1, 2]
    assert cache.num_tokens == 2


def test_the_least_recently_used_goes_first() -> None:
    cache = make_cache(max_tokens=9)
    for key in ("a", "b", "c"):
        use(cache, key, [1, 2, 3])
    use(cache, "a", [1, 2, 3])
    use(cache, "d", [1, 2, 3])
    assert cache.num_tokens == 9
    assert [use(cache, key, [1, 2, 3]) for key in ("a", "c", "d")] == [3, 3, 3]
    assert use(cache, "b", [1, 2, 3]) == 0


def test_a_sequence_in_use_is_never_evicted() -> None:
    cache = make_cache(max_tokens=4)
    with cache.lease("a", [1, 2, 3]) as sequence:
        run(cache, sequence, [1, 2, 3])
        use(cache, "b", [1, 2, 3])
        assert cache.num_sequences == 1
        assert stored(sequence) == [1, 2, 3]
    assert use(cache, "a", [1, 2, 3]) == 3


def test_a_caller_that_fails_loses_its_sequence() -> None:
    cache = make_cache()
    use(cache, "a", [1, 2])
    with pytest.raises(RuntimeError, match="half a forward"), cache.lease("a", [1, 2, 3]) as sequence:  # noqa: PT012
        sequence.kv.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0)
        raise RuntimeError("half a forward")
    assert (cache.num_sequences, cache.num_tokens) == (0, 0)


def test_clear_forgets_everything_and_refuses_while_in_use() -> None:
    cache = make_cache()
    with cache.lease("a", [1]) as sequence:
        run(cache, sequence, [1])
        with pytest.raises(RuntimeError, match="1 sequences are in use"):
            cache.clear()
    cache.clear()
    assert (cache.num_tokens, use(cache, "a", [1])) == (0, 0)


def test_random_use_keeps_the_bound_and_the_contents() -> None:
    rng = random.Random(0)
    cache = make_cache(max_tokens=40)
    found = [use(cache, rng.choice("ab"), [rng.randint(0, 2) for _ in range(rng.randint(1, 12))]) for _ in range(500)]
    assert cache.num_tokens <= 40
    assert sum(found) > 500


@pytest.mark.parametrize(
    ("a", "b", "shared"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 4, 3], 1), ([5], [5], 1)]
)
def test_common_prefix(a: list[int], b: list[int], shared: int) -> None:
    assert common_prefix(a, b) == common_prefix(b, a) == shared
