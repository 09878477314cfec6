"""Formats that hold many documents, one a row: JSON lines, Parquet, and texts in memory."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pellucid.core.errors import CorpusError
from pellucid.core.files import disk_errors
from pellucid.text.decoding import CHUNK, Decoding, read_bytes, read_lines, reading
from pellucid.text.sources import SourceFile

PEEK = 100  # rows looked at to tell which fields hold text

Row = tuple[int, Mapping[str, Any]]


class Table(ABC):
    """Rows of named fields. `name` is what messages call it, `unit` what they call the number of a row."""

    name: str
    unit = "line"
    named = True  # the user asked for it, so that it must hold text

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row with its number."""

    def column(self, field: str) -> Iterator[Row]:  # noqa: ARG002 - formats that store rows read all of them
        """Every row with its number, for one field; formats that store columns apart read only that one."""
        return self.rows()

    def place(self, number: int) -> str:
        """Where a row is, for messages."""
        return f"{self.name}:{number}" if self.unit == "line" else f"{self.name}: {self.unit} {number}"

    def fields(self) -> dict[str, bool]:
        """The fields of the first rows, and whether each could be the text: strings, and not only numbers."""
        values: dict[str, list[Any]] = {}
        for _, row in islice(self.rows(), PEEK):
            for field, value in row.items():
                values.setdefault(field, []).append(value)
        return {field: all(isinstance(v, str) for v in column) and not _numeric(column) for field, column in values.items()}


class JsonLines(Table):
    """One JSON object a line."""

    def __init__(self, file: SourceFile, decoding: Decoding) -> None:
        self.file, self.decoding, self.name, self.named = file, decoding, file.name, file.named

    def rows(self) -> Iterator[Row]:
        for number, line in enumerate(read_lines(self.file, self.decoding), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip())
            except (ValueError, RecursionError) as error:
                reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
                raise CorpusError(f"{self.place(number)} is not valid JSON ({reason}); correct or remove the line") from None
            if not isinstance(row, dict):
                raise CorpusError(
                    f"{self.place(number)} holds {kind(row)}, not an object with fields; correct or remove the line"
                )
            yield number, row


class Parquet(Table):
    """Columns on disk, read a part of a row group at a time."""

    unit = "row"

    def __init__(self, file: SourceFile) -> None:
        self.file, self.name, self.named = file, file.name, file.named

    def rows(self) -> Iterator[Row]:
        return self._rows(None)

    def column(self, field: str) -> Iterator[Row]:
        return self._rows([field])

    def fields(self) -> dict[str, bool]:
        import pyarrow as pa

        def text(kind: Any) -> bool:
            inner = kind.value_type if pa.types.is_dictionary(kind) else kind
            return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner))

        with self._opened() as parquet:
            return {field.name: text(field.type) for field in parquet.schema_arrow}

    def _rows(self, columns: list[str] | None) -> Iterator[Row]:
        with self._opened() as parquet:
            batches = parquet.iter_batches(batch_size=256, columns=columns)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with reading(self.name), ExitStack() as stack:
            path = self.file.path
            if self.file.compression:  # the format is read from its end, so it cannot be decompressed on the way
                spool = stack.enter_context(tempfile.NamedTemporaryFile(prefix="pellucid-"))
                path = Path(spool.name)
                with disk_errors(path):
                    spool.writelines(read_bytes(self.file))
                    spool.flush()
            try:
                yield stack.enter_context(pq.ParquetFile(path, pre_buffer=False, buffer_size=CHUNK))
            except pa.ArrowInvalid as error:
                raise CorpusError(
                    f"{self.name} is not a valid Parquet file ({first_line(error)}); fetch or write it again"
                ) from None


class Texts(Table):
    """Texts in memory, in the one field `text`."""

    unit = "text"

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts, self.name = texts, "the given texts"

    def rows(self) -> Iterator[Row]:
        for number, text in enumerate(self.texts, 1):
            yield number, {"text": text}


def kind(value: Any) -> str:
    """What a JSON value is, as people say it."""
    names: dict[type, str] = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a text"}
    return names.get(
        type(value), "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else "no text"
    )


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _numeric(column: Sequence[str]) -> bool:
    def number(value: str) -> bool:
        try:
            float(value)
        except ValueError:
            return False
        return True

    return all(not value.strip() or number(value) for value in column)
