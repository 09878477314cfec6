"""Which field of a table is the text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pellucid.core.errors import CorpusError
from pellucid.text.tables import Table, kind


def choose_field(tables: Sequence[Table], wanted: str | None) -> str:
    """The field that holds the text in all tables: the wanted one, else one named `text`, else the only one that holds text.

    Raises `CorpusError` with the fields there are if the wanted one is missing, several could be meant, or tables differ.
    """
    chosen = wanted
    for table in tables:
        fields = table.fields()
        if not fields and not table.named and len(tables) > 1:
            continue
        if not fields:
            raise CorpusError(f"{table.name} is empty (it has no rows); leave it out, or put text in it")
        if chosen is None:
            chosen = _guess(table, fields)
        if chosen in fields:
            continue
        if wanted is None:
            raise CorpusError(
                f"{table.name} has no field {chosen!r}, which holds the text in {tables[0].name} ({listed(fields)}); "
                "give every file the same field, or read them apart"
            )
        raise CorpusError(f"{table.name} has no field {chosen!r} ({listed(fields)}); {_way_out(chosen, fields)}")
    if chosen is None:
        raise CorpusError(f"{tables[0].name} and the other tables are empty (they have no rows); put text in them")
    return chosen


def text_of(table: Table, number: int, row: Mapping[str, Any], field: str) -> str:
    """The text of one row; `CorpusError` with its place if the field is missing or holds something else."""
    value = row.get(field)
    if isinstance(value, str):
        return value
    if field in row:
        raise CorpusError(f"{table.place(number)}: field {field!r} holds {kind(value)}, not text; correct or remove the row")
    raise CorpusError(
        f"{table.place(number)}: no field {field!r} ({listed(row)}); correct or remove the row, or pass --text-field"
    )


def whole(text: str, place: str, on_bad_bytes: str) -> str:
    """The text, if all its characters are: JSON can spell half a one (a lone surrogate), which no encoding can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if on_bad_bytes == "error":
            code = ord(text[error.start])
            raise CorpusError(
                f"{place}: character {error.start} is half a character (U+{code:04X}); "
                "correct it, or pass --on-bad-bytes replace"
            ) from None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _guess(table: Table, fields: Mapping[str, bool]) -> str:
    candidates = [field for field, text in fields.items() if text]
    if "text" in candidates:
        return "text"
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise CorpusError(f"{table.name} has no field that holds text ({listed(fields)}); name one with --text-field")
    raise CorpusError(f"{table.name} has several fields that hold text ({listed(candidates)}); choose one with --text-field")


def _way_out(wanted: str, fields: Iterable[str]) -> str:
    near = difflib.get_close_matches(wanted, fields, n=1)
    return f"did you mean {near[0]!r}?" if near else "name one of these with --text-field"


def listed(fields: Iterable[str]) -> str:
    """What fields there are, for messages: it has 'a', 'b'."""
    names = list(fields)
    shown = ", ".join(repr(name if len(name) <= 40 else f"{name[:40]}...") for name in names[:20])
    return f"it has {shown}{', ...' if len(names) > 20 else ''}" if names else "it has none"
