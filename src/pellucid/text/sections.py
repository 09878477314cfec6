"""Long documents are cut into sections: so one big file streams, spreads over cores, and splits into train and validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

SECTION = 8192  # characters: some 2,000 tokens, well above usual contexts and small enough for one file to be split fairly


def cut(text: str, start: int) -> int:
    """Where the section that begins at `start` ends: after a paragraph, else a line, a word, a sentence, else anywhere.

    It has `SECTION` characters at most, and half of that at least unless the text ends.
    """
    stop = start + SECTION
    if stop >= len(text):
        return len(text)
    half = start + SECTION // 2
    for mark, kept in (
        ("\n\n", 2),
        ("\n", 1),
        (" ", 0),
        ("\t", 0),
        ("\u3000", 0),
        ("。", 1),
    ):  # a word keeps the space before it
        at = text.rfind(mark, half, stop)
        if at >= 0:
            return at + kept
    return stop


def sections(chunks: Iterable[str]) -> Iterator[str]:
    """Cut a text that arrives in chunks into sections; joined, they are the text, and they do not depend on the chunks."""
    rest = ""
    for chunk in chunks:
        rest += chunk
        start = 0
        while len(rest) - start > SECTION:
            stop = cut(rest, start)
            yield rest[start:stop]
            start = stop
        rest = rest[start:]
    if rest:
        yield rest
