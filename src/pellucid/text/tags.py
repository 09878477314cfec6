"""Tags of words: B-x begins a span of kind x, I-x goes on with it, O is outside (Ramshaw and Marcus, 1995)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pellucid.core.errors import CorpusError
from pellucid.text.tables import kind
from pellucid.text.word_spans import Span, Words, words_of

OUTSIDE = "O"
TAG = re.compile(r"O|[BI]-.+", re.DOTALL)
KINDS = ("label", "type", "tag", "entity")  # what the kind of a span is called


def check_tags(words: Any, tags: Any, place: str) -> tuple[list[str], list[str]]:
    """The words and tags of a sentence; raises `CorpusError` unless they are texts, one tag for each word."""
    for values, name in ((words, "words"), (tags, "tags")):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise CorpusError(f"{place}: the {name} are {kind(values)}, not a list; correct or remove the row")
    if len(words) != len(tags):
        raise CorpusError(f"{place}: {len(words)} words, but {len(tags)} tags; give each word one")
    if wrong := [word for word in words if not isinstance(word, str) or not word.strip()]:
        raise CorpusError(f"{place}: {wrong[0]!r} is no word; correct or remove the row")
    if wrong := [tag for tag in tags if not isinstance(tag, str) or not TAG.fullmatch(tag)]:
        raise CorpusError(f"{place}: the tag {wrong[0]!r} is not O, B-... or I-...; write what begins a span as B-KIND")
    return list(words), list(tags)


def repaired(tags: Sequence[str]) -> tuple[list[str], int]:
    """The tags with every I-x that goes on with nothing as B-x, as conlleval reads them, and how many those were.

    >>> repaired(["O", "I-city", "I-city", "I-date"])
    (['O', 'B-city', 'I-city', 'B-date'], 2)
    """
    done, before = list[str](), OUTSIDE
    for tag in tags:
        done.append(f"B-{tag[2:]}" if tag.startswith("I-") and tag[2:] != before[2:] else tag)
        before = tag
    return done, sum(new != old for new, old in zip(done, tags, strict=True))


def tags_of_spans(text: str, spans: Any, place: str) -> tuple[Words, list[str]]:
    """The words of a text and their tags, from spans with start, end and label; a word is cut where a span begins or ends.

    Raises `CorpusError` for spans that lie outside the text, hold no word or overlap.
    """
    if isinstance(spans, str | Mapping) or not isinstance(spans, Iterable):
        raise CorpusError(f"{place}: the spans are {kind(spans)}, not a list; correct or remove the row")
    marked = sorted(_span(span, len(text), place) for span in spans)
    for (_, end, one), (start, _, other) in itertools.pairwise(marked):
        if start < end:
            raise CorpusError(f"{place}: the spans of {one!r} and {other!r} overlap at character {start}; leave one out")
    borders = {border for start, end, _ in marked for border in (start, end)}
    words = Words(text, tuple(part for span in words_of(text).spans for part in _cut(span, borders)))
    tags = [OUTSIDE] * len(words.spans)
    for start, end, name in marked:
        inside = [number for number, (first, stop) in enumerate(words.spans) if start <= first and stop <= end]
        if not inside:
            raise CorpusError(f"{place}: the span from {start} to {end} ({name!r}) holds no word; correct it, or leave it out")
        for number in inside:
            tags[number] = f"{'B' if number == inside[0] else 'I'}-{name}"
    return words, tags


def spans_of_tags(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Spans as (first word, the one after the last, kind), as conlleval finds them.

    >>> spans_of_tags(["B-city", "I-city", "O", "I-date"])
    [(0, 2, 'city'), (3, 4, 'date')]
    """
    spans: list[tuple[int, int, str]] = []
    for number, tag in enumerate(repaired(tags)[0]):
        if tag.startswith("I-"):
            start, _, name = spans.pop()
            spans.append((start, number + 1, name))
        elif tag != OUTSIDE:
            spans.append((number, number + 1, tag[2:]))
    return spans


def _cut(span: Span, borders: Iterable[int]) -> list[Span]:
    places = [span[0], *sorted(border for border in borders if span[0] < border < span[1]), span[1]]
    return list(itertools.pairwise(places))


def _span(span: Any, length: int, place: str) -> tuple[int, int, str]:
    if not isinstance(span, Mapping):
        raise CorpusError(f"{place}: a span is {kind(span)}, not an object with start, end and label; correct it")
    start, end = span.get("start"), span.get("end")
    name = next((span[key] for key in KINDS if key in span), None)
    if type(start) is not int or type(end) is not int or not isinstance(name, str) or not name:
        raise CorpusError(f"{place}: a span needs start, end and label, but one has {sorted(map(str, span))}; correct it")
    if not 0 <= start < end <= length:
        raise CorpusError(f"{place}: the span from {start} to {end} lies outside the text of {length} characters; correct it")
    return start, end, name
