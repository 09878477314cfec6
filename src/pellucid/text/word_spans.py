"""A text and where its words are."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from pellucid.text.words import UNSEPARATED

APOSTROPHES = "'\u2019"

Span = tuple[int, int]  # of characters: the first, and the one after the last


@dataclass(frozen=True, slots=True)
class Words:
    """A text and the spans of its words, in order and apart."""

    text: str
    spans: tuple[Span, ...]

    def words(self) -> list[str]:
        return [self.text[start:stop] for start, stop in self.spans]


def words_of(text: str) -> Words:
    """The words of a text: runs of letters and digits, runs of one punctuation mark, and each Chinese or Japanese character.

    >>> words_of("Alice's cat: 3rd...").words()
    ['Alice', "'s", 'cat', ':', '3rd', '...']
    """
    spans: list[Span] = []
    kind = " "
    for place, character in enumerate(text):
        before, kind = kind, _kind(character)
        if kind == " ":
            continue
        glued = kind == before or (kind == "word" and before in APOSTROPHES and _after_word(spans, text))
        if glued and kind != "alone":
            spans[-1] = spans[-1][0], place + 1
        else:
            spans.append((place, place + 1))
    return Words(text, tuple(spans))


def joined(words: Sequence[str]) -> Words:
    """Words as a text, with a space between two of them unless both are Chinese or Japanese characters."""
    parts: list[str] = []
    spans: list[Span] = []
    length = 0
    for number, word in enumerate(words):
        if number and not (UNSEPARATED.match(words[number - 1][-1:]) and UNSEPARATED.match(word)):
            parts.append(" ")
            length += 1
        parts.append(word)
        spans.append((length, length + len(word)))
        length += len(word)
    return Words("".join(parts), tuple(spans))


def _kind(character: str) -> str:
    if character.isspace():
        return " "
    if UNSEPARATED.match(character):
        return "alone"
    return "word" if unicodedata.category(character)[0] in "LMN" else character


def _after_word(spans: Sequence[Span], text: str) -> bool:
    """Whether the last word is one apostrophe right behind a word, which with the letters after it is a word: 's, n't, 'll."""
    start, stop = spans[-1]
    return stop - start == 1 and start > 0 and _kind(text[start - 1]) == "word"
