"""The embedded pair's tokenizer: words of the ledger task, and single characters for everything else."""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dreamr.tasks.ledger import COLORS, SHAPES

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
)
_WORDS = (
    *COLORS,
    *SHAPES,
    *("Start", "with", "the", "Add", "Subtract", "Double", "Triple", "it", "What", "is", "result"),
    *("First", "shows", "Then", "Next", "we", "add", "subtract", "double", "triple", "value", "that", "have"),
    *("which", "So", "new", "Answer", "user", "assistant", "system", "Right", "positive", "negative"),
)
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level and lossless on printable ASCII: a known word (with the space before it) is one token, other text is
    split into characters. Digits are one token each, the delimiter is one token."""
    words = sorted({form for word in _WORDS for form in (word, f" {word}")})
    characters = [*string.printable.strip(), " ", "\n"]
    spaced = [f" {symbol}" for symbol in (*string.digits, *"+-*=")]
    pieces = [*SPECIAL, "<unk>", "\n\n", *words, *characters, *spaced]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    known = "|".join(sorted(_WORDS, key=len, reverse=True))
    pattern = rf"\n\n|</?think>| ?(?:{known})(?![A-Za-z])| ?[0-9+*=-]|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[1:7]),  # the think tags stay visible in decoded text
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token of the vocabulary."""
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found
