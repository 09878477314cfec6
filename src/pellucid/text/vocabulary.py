"""Tokenizers learned from a corpus: byte pairs, words and pieces, characters.

Byte pairs: Sennrich et al., 2016; Radford et al., 2019. Words and pieces: Wu et al., 2016; Devlin et al., 2019.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
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
UNKNOWN = "[UNK]"  # what words and pieces have for a word that they cannot spell
CONTINUING = "##"  # before a piece that goes on with a word
ALPHABET = 1000  # characters that words and pieces know, the most frequent: all of an alphabet's, not all of Chinese

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
    _check_reached(backend.get_vocab_size(), vocab_size, drawn, sample_bytes)
    return backend


def train_wordpiece(texts: Iterable[str], vocab_size: int, sample_bytes: int, special: Sequence[str]) -> Backend:
    """Learn `vocab_size` words and pieces (`special`, which has `UNKNOWN`, included), cut and cleaned as for BERT, uncased.

    Pieces are joined by how often they meet. Words are then spelled with the longest pieces first. Raises
    `TokenizerError` if `vocab_size` is too small for the characters, or larger than the text supports.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    drawn = sample(texts, sample_bytes)
    alphabet, pieces = _characters(backend, drawn)
    fixed = [*special, *alphabet, *pieces]
    if vocab_size < len(fixed):
        raise TokenizerError(
            f"a vocabulary of {vocab_size} is too small for words and pieces: {len(special)} special tokens, {len(alphabet)} "
            f"characters, and {len(pieces)} of these inside words, make {len(fixed)}; "
            f"pass --vocab-size {len(fixed)} or more, or --tokenizer bpe"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=fixed,  # in this order: the library's own for pieces is random, and later ties depend on it
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUING,
        show_progress=False,
    )
    backend.train_from_iterator(drawn, trainer)
    vocabulary = backend.get_vocab()
    _check_reached(len(vocabulary), vocab_size, drawn, sample_bytes)
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUING))
    made.normalizer, made.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    made.decoder = decoders.WordPiece(CONTINUING)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def _characters(backend: Backend, texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """The `ALPHABET` most frequent characters of the words in texts, and "##c" for each of these that stands inside a word."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    between_spaces = Counter(chain.from_iterable(backend.normalizer.normalize_str(text).split() for text in texts))
    for words, count in between_spaces.items():
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(words):
            inside.update(word[1:])
            for character in word:
                counts[character] += count
    alphabet = sorted(sorted(counts, key=lambda character: (-counts[character], character))[:ALPHABET])
    return alphabet, [CONTINUING + character for character in alphabet if character in inside]


def _check_reached(reached: int, vocab_size: int, drawn: Sequence[str], sample_bytes: int) -> None:
    if reached >= vocab_size:
        return
    whole = sum(len(text.encode()) for text in drawn) < sample_bytes - 4 * SECTION
    source, more = ("this corpus", "give more text") if whole else ("the sample", f"raise sample_bytes ({sample_bytes})")
    raise TokenizerError(
        f"a vocabulary of {vocab_size} is larger than {source} supports: {reached} is the largest possible; "
        f"pass --vocab-size {reached} or less, or {more}"
    )


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
