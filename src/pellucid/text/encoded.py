"""Texts as tokens for a model that reads a limited number of them: what is longer is an error, is cut, or is split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.batches import Ids
from pellucid.text.tokenizer import Tokenizer

Long = Literal["error", "cut", "split"]
Empty = Literal["error", "skip"]  # of texts without a token: skipped ones have no window


@dataclass(frozen=True, slots=True)
class Encoded:
    """Windows of tokens, framed as the model expects; `texts` says which text each is of: all but split ones have one."""

    windows: list[Ids]
    texts: Ids  # [windows]
    long: int  # texts that had more tokens than fit
    longest: int  # tokens of the longest text, its frame included


def encode_texts(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    longest: int | None,
    long: Long = "error",
    empty: Empty = "error",
    place: Callable[[int], str] = "text {}".format,
) -> Encoded:
    """The tokens of texts, each between the tokens of the frame, in windows of at most `longest` tokens (None: any number).

    A longer text is an error, is cut on the right ("cut"), or becomes several windows of nearly equal length ("split").
    Raises `CorpusError` for one that is too long and, unless such are skipped, for one without a token, with the `place` of
    its number.
    """
    check_long(long)
    before, after = (np.array(ids, dtype=np.int64) for ids in tokenizer.frame)
    room = room_inside(tokenizer, longest)
    rows = [ids.astype(np.int64) for ids in tokenizer.encode_batch(texts)]
    without = [number for number, ids in enumerate(rows) if not len(ids)]
    if without and empty == "error":
        raise CorpusError(f"{place(without[0])}: the text has no tokens{_and_others(len(without))}; leave it out")
    lengths = np.array([len(ids) for ids in rows], dtype=np.int64)
    framed = lengths + len(before) + len(after)
    over = 0 if room is None else int((lengths > room).sum())
    if over and long == "error":
        raise too_long(over, framed, longest, place)
    windows, numbers = [], []
    for number, ids in enumerate(rows):
        if room is None or len(ids) <= room:
            parts = [ids] if len(ids) else []
        else:
            parts = [ids[:room]] if long == "cut" else np.array_split(ids, -(-len(ids) // room))
        windows += [np.concatenate([before, part, after]) for part in parts]
        numbers += [number] * len(parts)
    return Encoded(windows, np.array(numbers, dtype=np.int64), over, int(framed.max(initial=0)))


def room_inside(tokenizer: Tokenizer, longest: int | None) -> int | None:
    """How many tokens of a text fit between those of the frame; raises `ConfigError` if none does."""
    if longest is None:
        return None
    frame = sum(map(len, tokenizer.frame))
    if longest <= frame:
        raise ConfigError(f"{longest} tokens leave no room for a text, whose frame takes {frame}; allow more")
    return longest - frame


def too_long(count: int, lengths: Ids, longest: int | None, place: Callable[[int], str]) -> CorpusError:
    """What is said about `count` texts that do not fit, of all whose lengths these are."""
    have = "1 text has" if count == 1 else f"{count:,} texts have"
    return CorpusError(
        f"{have} more than the {longest} tokens that the model takes, of {len(lengths):,} (the longest, "
        f"{place(int(lengths.argmax()))}, has {lengths.max():,}); pass --long cut to leave out what is beyond, "
        "or --long split to read such a text in parts"
    )


def check_long(long: str) -> None:
    """Raise `ConfigError` for anything but "error", "cut" and "split"."""
    if long not in get_args(Long):
        raise ConfigError(f"--long is {long!r}; it must be one of {', '.join(get_args(Long))}")


def _and_others(count: int) -> str:
    return {1: "", 2: ", nor has 1 other"}.get(count, f", nor have {count - 1:,} others")
