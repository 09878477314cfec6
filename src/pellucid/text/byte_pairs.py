"""Byte-pair encoding from the lists that other formats hold: tokens with merges, or SentencePiece's tokens with scores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pellucid.core.errors import TokenizerError
from pellucid.text.vocabulary import WORDS

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Merges = list[tuple[str, str]]

LARGEST_ID = 2**24 - 1  # sixty times the largest vocabulary there is
LONGEST_TOKEN = 1024  # characters of a token that merges make; the longest in use, runs of spaces, have a few hundred
SPACE = "\u2581"  # how SentencePiece writes a space
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # its tokens for what it has no other token for

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
# How texts are cut before merging, one regular expression after the other, by the names of llama.cpp.
CUTS: dict[str, tuple[str, ...]] = {
    "gpt-2": (GPT2_WORDS,),
    "smollm": (DIGIT, GPT2_WORDS),
    "qwen2": (WORDS,),
    "llama-bpe": (WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|"),),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
}
ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "starcoder": "smollm", "deepseek-r1-qwen": "qwen2"}
WHOLE_WORDS = {"llama-bpe"}  # where a word that is a token is that token, whatever the merges say


def byte_level(
    vocabulary: Mapping[str, int], merges: Merges, cut: str, *, prefix_space: bool = False, where: str = "the vocabulary"
) -> Backend:
    """Byte-level byte pairs (Radford et al., 2019); `cut` is a name in `CUTS`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    check_vocabulary(vocabulary, where)
    check_merges(vocabulary, merges, where)
    backend = Tokenizer(models.BPE(dict(vocabulary), merges, ignore_merges=cut in WHOLE_WORDS))
    if cut == "gpt-2":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    else:
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in CUTS[cut]]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece(
    vocabulary: Mapping[str, int], merges: Merges, *, unknown: str | None, prefix_space: bool, where: str = "the vocabulary"
) -> Backend:
    """Byte pairs as SentencePiece has them (Kudo and Richardson, 2018): of characters, with bytes for unknown ones."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    check_vocabulary(vocabulary, where)
    if missing := [token for token in BYTES if token not in vocabulary]:
        raise TokenizerError(f"{where} has no {missing[0]}, so it cannot hold every text; take one with all 256 bytes")
    model = models.BPE(dict(vocabulary), merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix_space else spaces
    first_space = [decoders.Strip(" ", 1, 0)] if prefix_space else []
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *first_space])
    return backend


def merges_by_score(scores: Mapping[str, float]) -> Merges:
    """Every way to make a token of two others, the token with the highest score first: what SentencePiece does, as merges."""
    ways = (
        (token[:at], token[at:])
        for token in scores
        if len(token) <= LONGEST_TOKEN  # others are refused later
        for at in range(1, len(token))
    )
    known = [(left, right) for left, right in ways if left in scores and right in scores]
    return sorted(known, key=lambda way: (-scores[way[0] + way[1]], -len(way[0])))


def frame(backend: Backend, before: Sequence[int], after: Sequence[int]) -> None:
    """Make the tokenizer put tokens around a text where it is asked to."""
    from tokenizers import processors

    if not before and not after:
        return
    names = {id: backend.id_to_token(id) or "" for id in (*before, *after)}
    labels = {id: f"token{id}" if re.search(r"[\s:$]", name) else name for id, name in names.items()}  # a template's own signs
    begin, end = [labels[id] for id in before], [labels[id] for id in after]
    backend.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A", *end],
        pair=[*begin, "$A", *end, *([] if end else begin), "$B:1", *(f"{label}:1" for label in end)],
        special_tokens=[{"id": labels[id], "ids": [id], "tokens": [names[id]]} for id in names],
    )


def check_vocabulary(vocabulary: Mapping[str, Any], where: str) -> None:
    """Raise `TokenizerError` for what the library would take amiss, down to a crash."""
    seen: dict[int, str] = {}
    for token, id in vocabulary.items():
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id <= LARGEST_ID:
            raise TokenizerError(f"{where}: token {token!r:.80} has the id {id!r:.80}, not 0 to {LARGEST_ID}; get it anew")
        if not is_text(token) or len(token) > LONGEST_TOKEN:
            raise TokenizerError(
                f"{where}: token {id} ({token!r:.80}) is no text of up to {LONGEST_TOKEN} characters; get it anew"
            )
        if id in seen:
            raise TokenizerError(f"{where}: tokens {seen[id]!r:.80} and {token!r:.80} have the same id, {id}; get it anew")
        seen[id] = token


def check_merges(vocabulary: Mapping[str, int], merges: Merges, where: str) -> None:
    for left, right in merges:
        if wrong := next((token for token in (left, right, left + right) if token not in vocabulary), None):
            raise TokenizerError(
                f"{where}: the merge {left!r:.80}, {right!r:.80} needs {wrong!r:.80}, no token; get the files anew"
            )


def is_text(token: str) -> bool:
    """Whether a string has whole characters only."""
    return re.search("[\ud800-\udfff]", token) is None


def parse_merges(lines: Iterable[str]) -> Merges:
    """`left right`, one a line. Raises `TokenizerError`."""
    merges = []
    for line in lines:
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(f"the merge {line!r:.80} is not two tokens with a space between; get the file anew")
        merges.append((left, right))
    return merges


def add_tokens(backend: Backend, names: Iterable[str], *, special: bool = True) -> None:
    """Make tokens be found before anything is cut or merged; those of the vocabulary keep their ids."""
    from tokenizers import AddedToken

    backend.add_tokens([AddedToken(name, special=special, normalized=False) for name in names])
