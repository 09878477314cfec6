"""Tokenizers of other programs: GGUF (llama.cpp) both ways, and llama2.c's vocabularies."""

from __future__ import annotations

import builtins
import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pellucid.core.errors import TokenizerError
from pellucid.text.byte_pairs import (
    ALIASES,
    BYTES,
    CUTS,
    DIGIT,
    GPT2_WORDS,
    LARGEST_ID,
    SPACE,
    WHOLE_WORDS,
    add_tokens,
    byte_level,
    frame,
    merges_by_score,
    parse_merges,
    sentencepiece,
)
from pellucid.text.folders import GENERAL_CLASS, LARGEST_FILE
from pellucid.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

T = TypeVar("T")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF's token types
KEY = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
SPECIAL_IDS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token", "mask": "mask_token"}
SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}  # where a file does not say


def from_llama2c(path: str | Path) -> Tokenizer:
    """The vocabulary of a llama2.c model (`tok512.bin`, `tokenizer.bin`): SentencePiece's tokens with their scores."""
    path = Path(path)
    if not path.is_file() or not 4 < path.stat().st_size <= LARGEST_FILE:
        raise TokenizerError(f"{path} is no vocabulary of llama2.c; name its tokenizer.bin")
    data, at = path.read_bytes(), 4  # after the length of the longest token
    tokens, scores = list[str](), list[float]()
    while at < len(data):
        try:
            score, length = struct.unpack_from("<fi", data, at)
            text = data[at + 8 : at + 8 + length].decode()
        except (struct.error, UnicodeDecodeError):
            raise TokenizerError(f"{path}: token {len(tokens)}, at byte {at}, is cut off or not UTF-8; get it anew") from None
        if length < 0 or (at := at + 8 + length) > len(data):
            raise TokenizerError(f"{path}: token {len(tokens)} has {length} bytes, which the file has not; get the file anew")
        tokens.append(text.strip("\n").replace(" ", SPACE) if len(tokens) < 3 else text.replace(" ", SPACE))
        scores.append(score)
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(tokens)][: len(tokens)]
    listed = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types}
    return from_gguf({KEY + key: value for key, value in listed.items()}, where=str(path))


def from_gguf(metadata: Mapping[str, Any], *, where: str = "the GGUF file") -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file. Raises `TokenizerError` for a kind we do not know, and for damage."""
    return _Metadata(metadata, where).tokenizer()


class _Metadata:
    """Values that a stranger wrote, each checked where it is read."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata, self.where = metadata, where

    def tokenizer(self) -> Tokenizer:
        kind = self.value("model", str)
        if kind not in ("gpt2", "llama"):
            raise self.refusal("model", kind, 'not "gpt2" or "llama", the ones we read')
        tokens, types = self.tokens()
        if kind == "gpt2":
            backend, may_begin = self.byte_level(tokens)
        else:
            backend, may_begin = self.sentencepiece(tokens, types), True
        special = [token for token, type in zip(tokens, types, strict=True) if type in (UNKNOWN, CONTROL)]
        add_tokens(backend, special)
        add_tokens(backend, [t for t, type in zip(tokens, types, strict=True) if type == USER_DEFINED], special=False)
        ids = {name: self.id(name, len(tokens)) for name in SPECIAL_IDS}
        frame(backend, self.framing("bos", ids["bos"], may_begin), self.framing("eos", ids["eos"], False))
        config = {"tokenizer_class": GENERAL_CLASS, "clean_up_tokenization_spaces": False}
        config |= {SPECIAL_IDS[name]: tokens[id] for name, id in ids.items() if id is not None}
        return Tokenizer(backend, config | ({"chat_template": template} if (template := self.value(TEMPLATE, str)) else {}))

    def byte_level(self, tokens: list[str]) -> tuple[Backend, bool]:
        name = self.value("pre", str) or "default"
        cut = ALIASES.get(name, name)
        if cut not in CUTS:
            raise self.refusal("pre", name, f"a way of cutting words we do not know; we know {', '.join([*CUTS, *ALIASES])}")
        merges = parse_merges(self.list("merges", str))
        vocabulary = {token: id for id, token in enumerate(tokens)}
        return byte_level(vocabulary, merges, cut, where=self.where), cut in WHOLE_WORDS

    def sentencepiece(self, tokens: list[str], types: list[int]) -> Backend:
        scores = self.list("scores", float, len(tokens))
        if wrong := next((score for score in scores if not math.isfinite(score)), None):
            raise self.refusal("scores", wrong, "no finite number")
        unknown, prefix = self.id("unknown", len(tokens)), self.value("add_space_prefix", bool)
        merges = merges_by_score({t: s for t, s, type in zip(tokens, scores, types, strict=True) if type in (NORMAL, UNUSED)})
        vocabulary = {token: id for id, token in enumerate(tokens)}
        name = None if unknown is None else tokens[unknown]
        return sentencepiece(vocabulary, merges, unknown=name, prefix_space=prefix is not False, where=self.where)

    def tokens(self) -> tuple[list[str], list[int]]:
        tokens = self.list("tokens", str)
        if not 0 < len(tokens) <= LARGEST_ID:
            raise self.refusal("tokens", tokens, f"not one to {LARGEST_ID} tokens")
        if twice := next((token for token, times in Counter(tokens).items() if times > 1), None):
            raise self.refusal("tokens", twice, "there more than once")
        types = self.list("token_type", int, len(tokens)) if KEY + "token_type" in self.metadata else [NORMAL] * len(tokens)
        return tokens, types

    def framing(self, name: str, id: int | None, default: bool) -> list[int]:
        asked = self.value(f"add_{name}_token", bool)
        if asked and id is None:
            raise self.refusal(f"add_{name}_token", asked, f"but there is no {name}_token_id")
        return [id] if id is not None and (default if asked is None else asked) else []

    def id(self, name: str, size: int) -> int | None:
        id = self.value(f"{name}_token_id", int)
        if id is None and self.metadata[KEY + "model"] == "llama":
            id = SENTENCEPIECE_IDS.get(name)
        if id is not None and not 0 <= id < size:
            raise self.refusal(f"{name}_token_id", id, f"not one of 0 to {size - 1}")
        return id

    def value(self, key: str, kind: type[T]) -> T | None:
        value = _plain(self.metadata.get(_full(key)))
        if value is not None and type(value) is not kind:
            raise self.refusal(key, value, f"not {kind.__name__}")
        return value

    def list(self, key: str, kind: type[T], length: int | None = None) -> builtins.list[T]:
        values = _plain(self.metadata.get(_full(key)))
        if not isinstance(values, list) or length not in (None, len(values)):
            raise self.refusal(key, values, "no list" if length is None else f"no list of {length} values")
        values = [float(v) if kind is float and type(v) is int else v for v in map(_plain, values)]
        if wrong := next(([v] for v in values if type(v) is not kind), None):
            raise self.refusal(key, wrong[0], f"not {kind.__name__}")
        return values

    def refusal(self, key: str, value: object, why: str) -> TokenizerError:
        return TokenizerError(f"{self.where}: {_full(key)} has {value!r:.80}, {why}; get the model anew")


def _full(key: str) -> str:
    return key if key == TEMPLATE else KEY + key


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def to_gguf(tokenizer: Tokenizer) -> dict[str, Any]:
    """The metadata of GGUF that make llama.cpp give the same tokens for a text as this tokenizer.

    A normaliser to NFC, as Qwen's, is left out, as llama.cpp's own converter does: only text in NFD is read otherwise.
    Raises `TokenizerError` where llama.cpp has no such tokenizer.
    """
    state = json.loads(tokenizer.backend.to_str())
    model = state["model"]
    if tokenizer.kind != "bpe":
        raise _no_match(f"it reads {tokenizer.kind} its own way")
    flags = ["lstrip", "rstrip", "single_word", *(["normalized"] if state["normalizer"] else [])]
    if odd := next((token["content"] for token in state["added_tokens"] if any(token[flag] for flag in flags)), None):
        raise _no_match(f"the added token {odd!r} depends on the spaces or letters around it")
    if model["dropout"] or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise _no_match("its merges are random, or mark the ends of words")
    tokens, types = _listed(tokenizer, state)
    byte_level = (state["decoder"] or {}).get("type") == "ByteLevel"
    values = _write_byte_level(state) if byte_level else _write_sentencepiece(state, tokens, types)
    values |= {"tokens": tokens, "token_type": types} | _write_special(tokenizer)
    template = {TEMPLATE: tokenizer.chat_template} if tokenizer.chat_template else {}
    return {KEY + key: value for key, value in values.items()} | template


def _listed(tokenizer: Tokenizer, state: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Every token and its type; where no token has an id, one that no text has."""
    tokens, types = [f"[PAD{id}]" for id in range(tokenizer.vocab_size)], [UNUSED] * tokenizer.vocab_size
    for token, id in state["model"]["vocab"].items():
        tokens[id], types[id] = token, NORMAL
    for token in state["added_tokens"]:
        tokens[token["id"]], types[token["id"]] = token["content"], CONTROL if token["special"] else USER_DEFINED
    return tokens, types


def _write_byte_level(state: dict[str, Any]) -> dict[str, Any]:
    cuts, whole_words = _read_cuts(state["pre_tokenizer"]), state["model"]["ignore_merges"]
    name = next((name for name, known in CUTS.items() if known == cuts and (name in WHOLE_WORDS) == whole_words), None)
    if name is None or state["normalizer"] not in (None, {"type": "NFC"}):
        raise _no_match("it cuts or changes text in a way llama.cpp does not have")
    return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in state["model"]["merges"]]}


def _read_cuts(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """The regular expressions of a byte-level pre-tokenizer, one after the other; None for any other one."""
    steps = pre_tokenizer["pretokenizers"] if (pre_tokenizer or {}).get("type") == "Sequence" else [pre_tokenizer]
    cuts: list[str] = []
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                cuts.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                cuts.append(DIGIT)
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": by_words} if step is steps[-1]:
                return (*cuts, GPT2_WORDS) if by_words else tuple(cuts)
            case _:
                return None
    return None


def _write_sentencepiece(state: dict[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    model, prefix = state["model"], _read_prefix(state["normalizer"], state["pre_tokenizer"])
    plain = prefix is not None and model["byte_fallback"] and not model["ignore_merges"]
    if not plain or not set(tokens) >= {*BYTES, model["unk_token"]}:
        raise _no_match("it is neither byte-level nor SentencePiece's with bytes for unknown characters")
    for token, type in [*((name, BYTE) for name in BYTES), (model["unk_token"], UNKNOWN)]:
        types[tokens.index(token)] = type
    made: dict[str, float] = {}
    for left, right in model["merges"]:
        made.setdefault(left + right, -float(len(made)))
    scores = [made.get(t, -float(len(made))) if type == NORMAL else 0.0 for t, type in zip(tokens, types, strict=True)]
    merges = merges_by_score({t: s for t, s, type in zip(tokens, scores, types, strict=True) if type == NORMAL})
    if merges != [tuple(pair) for pair in model["merges"]]:
        raise _no_match("its merges are not in the order of scores")
    unknown = tokens.index(model["unk_token"])
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix, "unknown_token_id": unknown}


def _read_prefix(normalizer: Any, pre_tokenizer: Any) -> bool | None:
    """Whether a space is put before a text; None if what comes before merging is not what SentencePiece does."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    match normalizer, pre_tokenizer:
        case {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, last]}, None if last == spaces:
            return True
        case _, None | {"type": "Split", "pattern": {"String": " "}} if normalizer == spaces:
            return False
        case None, {"type": "Metaspace", "replacement": "\u2581", "split": False, "prepend_scheme": scheme}:
            return bool(scheme != "never")
        case _:
            return None


def _write_special(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids of special tokens, and which ones frame a text."""
    before, after = tokenizer.frame
    end = tokenizer.end_of_text
    if len(before) > 1 or after not in ([], [end]):
        raise _no_match(f"it puts the tokens {before} and {after} around a text")
    begin = before[0] if before else tokenizer.beginning
    ids = {"bos": end if begin is None else begin, "eos": end, "padding": tokenizer.pad, "mask": tokenizer.mask}
    values: dict[str, Any] = {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    return values | {"add_bos_token": bool(before), "add_eos_token": bool(after)}


def _no_match(why: str) -> TokenizerError:
    return TokenizerError(f"llama.cpp would read other tokens than this tokenizer ({why}); train one with --tokenizer bpe")
