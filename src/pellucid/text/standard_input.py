"""Texts on standard input: a text a line, or rows as JSON lines."""

from __future__ import annotations

from collections.abc import Iterator

from pellucid.text.decoding import Decoding, read_lines
from pellucid.text.sources import SourceFile, spool_standard_input
from pellucid.text.tables import JsonLines, Row, Table


class Lines(Table):
    """A text a line, in the one field `text`."""

    def __init__(self, file: SourceFile, decoding: Decoding) -> None:
        self.file, self.decoding, self.name = file, decoding, file.name

    def rows(self) -> Iterator[Row]:
        for number, line in enumerate(read_lines(self.file, self.decoding), 1):
            yield number, {"text": line.rstrip("\r\n")}

    def fields(self) -> dict[str, bool]:
        return {"text": True}


def standard_input(decoding: Decoding) -> Table:
    """What stands on standard input: JSON lines if the first line with something on it begins with {."""
    file = spool_standard_input(format="jsonl")
    first = next((line for line in read_lines(file, decoding) if line.strip()), "")
    return (JsonLines if first.lstrip().startswith("{") else Lines)(file, decoding)
