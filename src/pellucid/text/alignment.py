"""Words and the tokens they become: a word's tag stands at its first token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pellucid.core.errors import CorpusError
from pellucid.text.batches import IGNORED, Ids
from pellucid.text.encoded import Empty, Long, check_long, room_inside, too_long
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import Words

NO_TOKEN = -1  # the place of a word that became no token: it is all of characters that the tokenizer leaves out


@dataclass(frozen=True, slots=True)
class WordWindow:
    """The tokens [seq] of the words from number `first` on of row `row`, framed; `starts` [words] is each one's first token."""

    ids: Ids
    starts: Ids
    row: int
    first: int

    def targets(self, tags: Sequence[int]) -> Ids:
        """The tags of all words of the row, as targets [seq] of this window: each at its word's first token."""
        targets = np.full(len(self.ids), IGNORED, dtype=np.int64)
        numbers = np.array(tags[self.first : self.first + len(self.starts)], dtype=np.int64)
        there = self.starts != NO_TOKEN
        targets[self.starts[there]] = numbers[there]
        return targets


@dataclass(frozen=True, slots=True)
class EncodedWords:
    """Windows of tokens, and counts: rows that had more tokens than fit, and words that have no token in any window."""

    windows: list[WordWindow]
    long: int
    lost: int


def encode_words(
    tokenizer: Tokenizer,
    rows: Sequence[Words],
    *,
    longest: int | None,
    long: Long = "error",
    empty: Empty = "error",
    place: Callable[[int], str] = "text {}".format,
) -> EncodedWords:
    """The tokens of rows of words, framed, in windows of at most `longest` tokens; each word has a first token of its own.

    A longer row is an error, is cut on the right ("cut"), or goes on in further windows, which begin with a word ("split").
    Raises `CorpusError`, with the `place` of the row, for one that is too long and, unless such are skipped, for one without a
    word that has a token.
    """
    check_long(long)
    before, after = (np.array(ids, dtype=np.int64) for ids in tokenizer.frame)
    room = room_inside(tokenizer, longest)
    aligned = [_own_tokens(tokenizer, row, *found) for row, found in zip(rows, _encoded(tokenizer, rows), strict=True)]
    for number, (_, starts) in enumerate(aligned):
        if (starts == NO_TOKEN).all() and empty == "error":
            raise CorpusError(f"{place(number)}: no word of the text has a token; leave it out")
    lengths = np.array([len(ids) for ids, _ in aligned], dtype=np.int64)
    over = 0 if room is None else int((lengths > room).sum())
    if over and long == "error":
        raise too_long(over, lengths + len(before) + len(after), longest, place)
    windows = []
    for number, (ids, starts) in enumerate(aligned):
        if (starts == NO_TOKEN).all():
            continue
        parts = [(0, len(starts))] if room is None or len(ids) <= room else list(_parts(starts, len(ids), room))
        for first, stop in parts[:1] if long == "cut" else parts:
            begin = _begin(starts, first, len(ids)) if first else 0
            end = _begin(starts, stop, len(ids))
            if room is not None and end - begin > room:
                raise CorpusError(
                    f"{place(number)}: word {first + 1} has {end - begin} tokens, more than the {room} that fit; leave it out"
                )
            inside = starts[first:stop]
            moved = np.where(inside == NO_TOKEN, NO_TOKEN, inside - begin + len(before))
            windows.append(WordWindow(np.concatenate([before, ids[begin:end], after]), moved, number, first))
    have = sum(int((window.starts != NO_TOKEN).sum()) for window in windows)
    return EncodedWords(windows, over, sum(len(row.spans) for row in rows) - have)


def _parts(starts: Ids, tokens: int, room: int) -> Iterator[tuple[int, int]]:
    """The words of each window: as many as fit, at least one."""
    first = 0
    while first < len(starts):
        begin = _begin(starts, first, tokens) if first else 0
        stop = first + 1
        while stop < len(starts) and _begin(starts, stop + 1, tokens) - begin <= room:
            stop += 1
        yield first, stop
        first = stop


def _begin(starts: Ids, word: int, tokens: int) -> int:
    """Where the tokens of a word begin, or of the next one that has some: where those of the words before it end."""
    later = starts[word:]
    return int(later[later != NO_TOKEN].min(initial=tokens))


def first_tokens(words: Words, offsets: Ids) -> Ids:
    """The number of the first token [words] that stands for a character of each word; `NO_TOKEN` where there is none."""
    spans = np.array(words.spans, dtype=np.int64).reshape(-1, 2)
    if not len(offsets):
        return np.full(len(spans), NO_TOKEN, dtype=np.int64)
    found = np.searchsorted(np.maximum.accumulate(offsets[:, 1]), spans[:, 0], side="right")
    there = (found < len(offsets)) & (offsets[np.minimum(found, len(offsets) - 1), 0] < spans[:, 1])
    return np.where(there, found, NO_TOKEN)


def _encoded(tokenizer: Tokenizer, rows: Sequence[Words]) -> list[tuple[Ids, Ids]]:
    """The tokens of rows, and the first token of each of their words."""
    encoded = tokenizer.encode_offsets([row.text for row in rows])
    return [(ids, first_tokens(row, offsets)) for row, (ids, offsets) in zip(rows, encoded, strict=True)]


def _own_tokens(tokenizer: Tokenizer, words: Words, ids: Ids, starts: Ids) -> tuple[Ids, Ids]:
    """Where two words share a token, as `."` may, the same of the words encoded one by one, so that each has its own."""
    there = starts[starts != NO_TOKEN]
    if len(np.unique(there)) == len(there):
        return ids, starts
    pieces, end = [], 0
    for start, stop in words.spans:
        pieces.append(Words(words.text[end:stop], ((start - end, stop - end),)))
        end = stop
    encoded = _encoded(tokenizer, [*pieces, Words(words.text[end:], ())])
    places = np.cumsum([0, *(len(part) for part, _ in encoded)])
    own = [
        NO_TOKEN if found[0] == NO_TOKEN else place + found[0] for place, (_, found) in zip(places, encoded[:-1], strict=False)
    ]
    return np.concatenate([part for part, _ in encoded]), np.array(own, dtype=np.int64)
