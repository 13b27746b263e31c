"""Answers under a JSON schema: masks on several vocabularies, budgets, and the built-in pair."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from support.tiny import make_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dreamr.engines.grammar import Grammars, TokenMask, check_schema
from dreamr.errors import Unable
from tools.structured import count, random_schema

EMBEDDED = Path(__file__).parents[2] / "dreamr/embedded/target"
OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module", params=["word-level", "byte-level"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(EMBEDDED) if request.param == "word-level" else make_tokenizer()


@pytest.fixture(scope="module")
def grammars(tokenizer: PreTrainedTokenizerBase) -> Grammars:
    assert tokenizer.eos_token_id is not None
    return Grammars(tokenizer, frozenset({tokenizer.eos_token_id}), len(tokenizer) + 7)


def babbled(mask: TokenMask, tokenizer: PreTrainedTokenizerBase, budget: int, seed: int) -> list[int]:
    """What a model without any sense writes under a mask; it likes some tokens much more than others."""
    torch.manual_seed(seed)
    size, liking = len(tokenizer) + 7, 3 * torch.randn(len(tokenizer) + 7)  # padded, as models are
    tokens: list[int] = []
    while len(tokens) < budget and (not tokens or tokens[-1] != tokenizer.eos_token_id):
        allowed = mask.allowed(tokens)
        tokens.append(int((liking + torch.randn(size)).masked_fill(~allowed, -torch.inf).argmax()))
    return tokens


def test_whatever_a_model_likes_to_write_follows_the_schema_within_the_budget(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase
) -> None:
    for seed in range(150):
        schema = random_schema(random.Random(seed), depth=3)
        tokens = babbled(grammars.mask_of(json.dumps(schema), 200), tokenizer, 200, seed)
        assert tokens[-1] == tokenizer.eos_token_id, schema
        jsonschema.validate(json.loads(tokenizer.decode(tokens, skip_special_tokens=True)), schema)


def test_a_mask_follows_tokens_that_are_taken_back(grammars: Grammars, tokenizer: PreTrainedTokenizerBase) -> None:
    schema = json.dumps(OBJECT)
    tokens = babbled(grammars.mask_of(schema, 60), tokenizer, 60, 1)
    mask = grammars.mask_of(schema, 60)
    for length in (len(tokens) - 1, 3, 5, 0, 4):
        fresh = grammars.mask_of(schema, 60).allowed(tokens[:length])
        assert torch.equal(mask.allowed(tokens[:length]), fresh)


def test_tokens_that_break_the_grammar_are_a_bug(grammars: Grammars, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(RuntimeError, match="does not follow its grammar"):
        grammars.mask_of(json.dumps(OBJECT), 60).allowed(tokenizer.encode("]"))


def test_what_a_vocabulary_cannot_spell_is_refused_in_one_sentence(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase
) -> None:
    schema = {"type": "object", "properties": {"Ä": {"type": "null"}}, "required": ["Ä"], "additionalProperties": False}
    mask = grammars.mask_of(json.dumps(schema), 30)
    if tokenizer.decode(tokenizer.encode("Ä"), skip_special_tokens=True) == "Ä":
        written = json.loads(tokenizer.decode(babbled(mask, tokenizer, 30, 0), skip_special_tokens=True))
        assert written == {"Ä": None}
    else:
        with pytest.raises(Unable, match="cannot spell"):
            babbled(mask, tokenizer, 30, 0)


REFUSED: dict[str, Any] = {
    "Unimplemented": {"type": "object", "not": {"type": "string"}},
    "does not exist": {"$ref": "#/nowhere"},
    "Invalid type": {"type": "text"},
    "Unsatisfiable": {"allOf": [{"type": "integer"}, {"type": "string"}]},
}


@pytest.mark.parametrize("said", list(REFUSED))
def test_a_schema_that_cannot_be_followed_is_one_sentence(grammars: Grammars, said: str) -> None:
    for check in (check_schema, lambda schema: grammars.mask_of(schema, 9)):
        with pytest.raises(ValueError, match=said) as raised:
            check(json.dumps(REFUSED[said]))
        assert "\n" not in str(raised.value)


async def test_the_built_in_pair_follows_random_schemas() -> None:
    assert await count(4, max_tokens=48) == {"valid": 4}
