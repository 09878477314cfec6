"""What an explanation is about: the words of a text, or the spans that the user names, each with its tokens."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from pellucid.core.errors import ConfigError
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import Span, words_of

By = Literal["words", "tokens", "sentences", "auto"]
MANY = 160  # words: with more, "auto" takes sentences, since every unit costs a forward pass
LONGEST = 40  # words, after which a sentence is cut then

# what ends a sentence: its marks and closing quotes with the space behind them, or a line's end
END = re.compile(r"""[.!?]+["'”’»)\]]*\s+|[。！？]+["'”’»)\]]*\s*|\n\s*""")  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Unit:
    """Some characters of a text, from `start` up to `end`, and the numbers of the tokens that stand for them."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]


def units_of(
    text: str, places: Sequence[Span | None], *, by: By = "auto", spans: Iterable[str | Span] = ()
) -> tuple[list[Unit], str]:
    """The units of a text, in order, and what they are; `places` says which characters each token stands for.

    Each token with a place belongs to one unit: words that share a token are one. `spans` (characters, or the text itself where
    it first occurs) are units as they are, and what lies between them goes by words, tokens or sentences.
    """
    if by not in get_args(By):
        raise ConfigError(f"units are {', '.join(get_args(By))}, not {by!r}")
    named = sorted(span_of(text, span) for span in ([spans] if isinstance(spans, str) else spans))
    for (_, end), (start, stop) in pairwise(named):
        if start < end:
            raise ConfigError(f"the spans overlap at {text[start:stop]!r}; name parts that lie apart")
    kind: str = by
    if by == "auto":
        kind = "words" if len(words_of(text).spans) <= MANY else "parts of sentences"
    borders = {border for span in named for border in span}
    cuts = sorted(borders | {cut for cut in cuts_of(text, kind, places) if not any(a < cut < b for a, b in named)})
    groups: list[list[int]] = []
    spaces: list[int] = []  # tokens of nothing but spaces belong to the word behind them
    reached, cut = -1, 0  # the last character of the group so far, and the first cut behind it
    for number, place in enumerate(places):
        if place is None:
            if groups:  # those before what is no text belong to the word before them
                groups[-1] += spaces
                spaces = []
            continue
        start, end = place
        if kind != "tokens" and start < end and not text[start:end].strip(" "):
            spaces.append(number)
            continue
        first = min(start + len(text[start:end]) - len(text[start:end].lstrip()), max(start, end - 1))
        while cut < len(cuts) and cuts[cut] <= first:
            cut += 1
        begun = cuts[cut - 1] if cut else 0
        if not groups or begun > reached:
            groups.append([])
        groups[-1] += [*spaces, number]
        reached, spaces = max(reached, end - 1, first), []
    if groups:
        groups[-1] += spaces
    units = [unit(text, places, group) for group in groups]
    for start, end in named:
        wanted = text[start:end].strip(" ")
        if not any(one.text == wanted and start <= one.start and one.end <= end for one in units):
            found = next((one.text for one in units if one.start <= start < one.end), "")
            raise ConfigError(
                f"the span {wanted!r} begins or ends inside a token, so it cannot be taken away alone; name {found!r}"
            )
    return units, kind


def unit(text: str, places: Sequence[Span | None], tokens: Sequence[int]) -> Unit:
    """Some tokens that follow one another, and the characters that they stand for, without the spaces around."""
    found = [place for token in tokens if (place := places[token]) is not None]
    start, end = min(start for start, _ in found), max(end for _, end in found)
    while start < end - 1 and text[start] == " ":
        start += 1
    while end - 1 > start and text[end - 1] == " ":
        end -= 1
    return Unit(text[start:end], start, end, tuple(tokens))


def cuts_of(text: str, by: str, places: Sequence[Span | None]) -> Iterable[int]:
    """Where units begin."""
    if by == "tokens":
        return {max(start, end - len(text[start:end].lstrip())) for start, end in filter(None, places)}
    if by != "words":
        sentences = {0, *(match.end() for match in END.finditer(text))}
        return sentences if by == "sentences" else sentences | set(parts_of(text, sentences))
    return {cut for span in words_of(text).spans for cut in span}


def parts_of(text: str, sentences: set[int]) -> Iterator[int]:
    """Where a long sentence goes on in another part."""
    cuts, words = iter(sorted(sentences)), 0
    following = next(cuts, len(text))
    for start, _ in words_of(text).spans:
        while following <= start:
            following, words = next(cuts, len(text) + 1), 0
        if words == LONGEST:
            words = 0
            yield start
        words += 1


def span_of(text: str, span: str | Span) -> Span:
    """The characters that a span names."""
    if isinstance(span, str):
        at = text.find(span) if span.strip() else -1
        if at < 0:
            near = difflib.get_close_matches(span, text.split(), n=1)
            raise ConfigError(
                f"the span {span!r} does not occur in the text" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return at, at + len(span)
    start, end = span
    if not 0 <= start < end <= len(text):
        raise ConfigError(f"the span {start} to {end} lies outside the text, which has {len(text):,} characters")
    return start, end


def places_of(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[Span | None]]:
    """The text that tokens spell, the special ones too, and where each stands in it; None for special ones.

    A character of several tokens belongs to all of them.
    """
    stream, text = tokenizer.stream(special=True), ""
    places: list[Span | None] = []
    for number, id in enumerate(ids):
        start = len(text)
        text += stream.push(id) + (stream.finish() if number == len(ids) - 1 else "")
        places.append(None if id in tokenizer.special_ids else (start, len(text)))
        if len(text) > start:  # it completes the character that the tokens before it began
            for earlier in range(number - 1, -1, -1):
                if places[earlier] != (start, start):
                    break
                places[earlier] = (start, start + 1)
    return text, places
