"""Tokenizers learned from a corpus: byte-level byte pairs (Sennrich et al., 2016; Radford et al., 2019), and characters."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.core.errors import TokenizerError
from pellucid.text.characters import EVERY_CHARACTER, code_points
from pellucid.text.sections import SECTION

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

END_OF_TEXT = "<|endoftext|>"
SPECIAL = (
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
)  # ids 0, 1 and 2 of every tokenizer trained here; the last two mark chat turns
BYTES = 256

# How Qwen2 cuts text into the words that merges stay within: contractions, words with the space or mark before them, single
# digits, punctuation, line ends, spaces. transformers, llama.cpp and vLLM know it, words of any script count, nothing is lost.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_bpe(texts: Iterable[str], vocab_size: int, sample_bytes: int, special: Sequence[str] = SPECIAL) -> Backend:
    """Learn `vocab_size` tokens (`special` and the 256 bytes included) from a sample of at most `sample_bytes`.

    Raises `TokenizerError` if `vocab_size` is too small for the bytes, or larger than the text supports.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    smallest = BYTES + len(special)
    if vocab_size < smallest:
        raise TokenizerError(
            f"a vocabulary of {vocab_size} is too small for byte-level tokens: the {BYTES} bytes and {len(special)} special "
            f"tokens make {smallest}; pass --vocab-size {smallest} or more, or --tokenizer chars"
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"), byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # a pair met once teaches nothing
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    drawn = sample(texts, sample_bytes)
    backend.train_from_iterator(drawn, trainer)
    reached = backend.get_vocab_size()
    if reached < vocab_size:
        whole = sum(len(text.encode()) for text in drawn) < sample_bytes - 4 * SECTION
        source, more = ("this corpus", "give more text") if whole else ("the sample", f"raise sample_bytes ({sample_bytes})")
        raise TokenizerError(
            f"a vocabulary of {vocab_size} is larger than {source} supports: {reached} is the largest possible; "
            f"pass --vocab-size {reached} or less, or {more}"
        )
    return backend


def train_chars(texts: Iterable[str], special: Sequence[str] = SPECIAL) -> Backend:
    """One token for every distinct character of the texts, in the order of their code points after the special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    met = np.zeros(0x110000, dtype=bool)
    for text in texts:
        met[code_points(text)] = True
    vocabulary = [*special, *map(chr, np.flatnonzero(met).tolist())]
    backend = Tokenizer(models.WordLevel({token: id for id, token in enumerate(vocabulary)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(EVERY_CHARACTER), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return backend


def sample(texts: Iterable[str], budget: int) -> list[str]:
    """A sample of at most `budget` bytes, spread over the whole stream: the texts whose hashes are smallest, in that order.

    It is the same for the same texts in any order, and never holds much more than the budget in memory.
    """
    kept: list[tuple[int, str, int]] = []  # a heap with the largest hash on top (keys are negative)
    size, limit = 0, -(2**64)
    for text in texts:
        data = text.encode()
        key = -int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"tokenizer").digest(), "big")
        if key <= limit:
            continue
        heapq.heappush(kept, (key, text, len(data)))
        size += len(data)
        while size > budget or (kept and kept[0][0] == limit):
            limit, _, dropped = heapq.heappop(kept)
            size -= dropped
    return [text for _, text, _ in sorted(kept, reverse=True)]
