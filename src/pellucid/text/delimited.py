"""Comma-separated values, and tab-separated ones, whose files disagree on what a quotation mark means."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from pellucid.core.errors import CorpusError
from pellucid.text.decoding import Decoding, read_lines
from pellucid.text.sources import SourceFile
from pellucid.text.tables import Row, Table

LARGEST_FIELD = 1 << 28  # characters of one field: beyond this a quotation mark was left open
LONGEST_QUOTATION = 1000  # lines of a tab-separated file that one quoted field may span

Record = tuple[int, list[str]]


class Delimited(Table):
    """Rows of values; the first row names the fields, and a quoted field may hold line breaks (RFC 4180).

    `names` names the fields of a file whose first row does not.
    """

    def __init__(self, file: SourceFile, decoding: Decoding, names: Sequence[str] = ()) -> None:
        self.file, self.decoding, self.name, self.named, self.names = file, decoding, file.name, file.named, list(names)

    def rows(self) -> Iterator[Row]:
        """Raises `CorpusError` with the line for a row that has more or fewer fields than the first."""
        records = self._records()
        number, header = (0, self.names) if self.names else next(records, (1, []))
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise CorpusError(f"{self.place(number)}: two fields are named {twice!r}; rename one")
        for number, record in records:
            if len(record) != len(header):
                namer = f"{len(header)} are named" if self.names else f"the first line names {len(header)}"
                raise CorpusError(
                    f"{self.place(number)}: a row of {len(record)} fields, where {namer}; correct "
                    "it (a text that holds a separator or a line break needs quotation marks around it)"
                )
            yield number, dict(zip(header, record, strict=True))

    def _records(self) -> Iterator[Record]:
        csv.field_size_limit(LARGEST_FIELD)  # the module's own limit of 128 KiB is smaller than many texts
        lines = read_lines(self.file, self.decoding)
        if self.file.format == "tsv":
            yield from tab_separated(lines)
            return
        reader = csv.reader(lines, strict=True)
        try:
            for record in reader:
                if record:
                    yield reader.line_num, record
        except csv.Error as error:
            place = self.place(reader.line_num)
            raise CorpusError(
                f"{place} is not valid csv ({error}); look for a quotation mark that is not closed or not doubled"
            ) from None


def tab_separated(lines: Iterable[str]) -> Iterator[Record]:
    """Records of tab-separated lines, each with its line number.

    Some such files quote as csv does, others use quotation marks as plain characters. A line with a field that begins with one
    is read as csv, with the lines that follow until the quotation is closed, if that gives the right number of fields and
    leaves no tab inside a quotation of several lines; else it is read as it stands.
    """
    numbered = enumerate(lines, 1)
    ahead: deque[tuple[int, str]] = deque()
    width = 0
    while (item := ahead.popleft() if ahead else next(numbered, None)) is not None:
        number, line = item
        fields = _plain(line)
        if fields == [""]:
            continue
        width = width or len(fields)
        if any(field.startswith('"') for field in fields):
            block, open = [item], _odd(line)
            while open and len(block) < LONGEST_QUOTATION:
                following = ahead.popleft() if ahead else next(numbered, None)
                if following is None:
                    break
                block.append(following)
                open ^= _odd(following[1])
            separators = sum(text.count("\t") for _, text in block)
            quoted = _as_csv(block) if len(block) == 1 or separators == width - 1 else None
            if quoted is not None and len(quoted) == width:
                yield number, quoted
                continue
            ahead.extendleft(reversed(block[1:]))
        yield number, fields


def _plain(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _odd(line: str) -> bool:
    return line.count('"') % 2 == 1


def _as_csv(block: Sequence[tuple[int, str]]) -> list[str] | None:
    try:
        records = list(csv.reader((line for _, line in block), delimiter="\t", strict=True))
    except csv.Error:
        return None
    return records[0] if len(records) == 1 else None
