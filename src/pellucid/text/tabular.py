"""Labelled data as tables: files of rows, lists of objects, sentences with a tag a line, and lists in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pellucid.core.errors import CorpusError
from pellucid.text.decoding import Decoding, read_lines, read_text
from pellucid.text.delimited import Delimited
from pellucid.text.hub import PREFIX, HubDataset
from pellucid.text.sources import SourceFile, endings, find
from pellucid.text.tables import JsonLines, Parquet, Row, Table, kind

TABLES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "json", ".parquet": "parquet"}
TAGGED = dict.fromkeys((".conll", ".bio", ".iob", ".iob2", ".txt", ".tsv"), "conll")  # what these are for --task tag

Sources = str | Path | Table | Sequence[str | Path | Table]


class Json(Table):
    """A JSON file that is a list of objects, or SNIPS' utterances by intent (Coucke et al., 2018)."""

    unit = "row"

    def __init__(self, file: SourceFile, decoding: Decoding) -> None:
        self.file, self.decoding, self.name, self.named = file, decoding, file.name, file.named

    def rows(self) -> Iterator[Row]:
        try:
            value = json.loads("".join(read_text(self.file, self.decoding)))
        except (ValueError, RecursionError) as error:
            reason = (
                f"{error.msg}, line {error.lineno}, column {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else str(error)
            )
            raise CorpusError(f"{self.name} is not valid JSON ({reason}); correct it") from None
        if isinstance(value, dict) and _is_snips(value):
            rows: list[Any] = [_utterance(intent, parts["data"]) for intent, said in value.items() for parts in said]
        elif isinstance(value, list):
            rows = value
        else:
            raise CorpusError(f"{self.name} holds {kind(value)}, not a list of objects with fields; write one, or JSON lines")
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise CorpusError(
                    f"{self.place(number)} holds {kind(row)}, not an object with fields; correct or remove the row"
                )
            yield number, row


class Tagged(Table):
    """Sentences with a word a line, its tag at the end, and a blank line between two (CoNLL)."""

    def __init__(self, file: SourceFile, decoding: Decoding) -> None:
        self.file, self.decoding, self.name, self.named = file, decoding, file.name, file.named

    def rows(self) -> Iterator[Row]:
        first, tokens, tags = 1, list[str](), list[str]()
        for number, line in enumerate(read_lines(self.file, self.decoding), 1):
            fields = [field.strip() for field in line.rstrip("\r\n").split("\t")] if "\t" in line.rstrip() else line.split()
            if not fields or fields[0] == "-DOCSTART-":
                if tokens:
                    yield first, {"tokens": tokens, "tags": tags}
                first, tokens, tags = number + 1, [], []
                continue
            if len(fields) < 2 or not fields[0] or not fields[-1]:
                raise CorpusError(f"{self.place(number)}: {line.strip()[:40]!r} is not a word and its tag; correct the line")
            tokens.append(fields[0])
            tags.append(fields[-1])
        if tokens:
            yield first, {"tokens": tokens, "tags": tags}


class Records(Table):
    """Rows in memory."""

    unit = "row"

    def __init__(self, records: Sequence[Mapping[str, Any]], name: str = "the given rows") -> None:
        self.records, self.name = records, name

    def rows(self) -> Iterator[Row]:
        return iter(enumerate(self.records, 1))


def given(texts: Sequence[Any], labels: Sequence[Any] | None = None) -> Records:
    """Texts and their labels, as lists or arrays, as a table with the fields `text` and `label`."""
    if labels is not None and len(texts) != len(labels):
        raise CorpusError(f"there are {len(texts):,} texts, but {len(labels):,} labels; give each text one")
    texts = _plain(texts)
    if labels is None:
        return Records([{"text": text} for text in texts], "the given texts")
    return Records(
        [{"text": text, "label": label} for text, label in zip(texts, _plain(labels), strict=True)], "the given texts"
    )


def open_tables(
    sources: Sources,
    *,
    names: Sequence[str] = (),
    encoding: str | None = None,
    on_bad_bytes: Literal["error", "replace"] = "error",
    tagged: bool = False,
) -> list[Table]:
    """The tables in files, folders, patterns, `hf:NAME` or memory; in the order of their paths, the others behind.

    `names` are the fields of csv and tsv files whose first row does not name them. With `tagged`, files of text and tsv are
    sentences with a word and its tag a line. Raises `CorpusError` for what cannot be found or is no table.
    """
    formats = TABLES | TAGGED if tagged else TABLES
    decoding = Decoding(encoding=encoding, on_bad_bytes=on_bad_bytes)
    several = [sources] if isinstance(sources, str | Path | Table) else list(sources)
    if not several:
        raise CorpusError("no labelled data is given; name a file, a folder, a pattern or hf:NAME")
    tables = [source for source in several if isinstance(source, Table)]
    paths = [source for source in several if not isinstance(source, Table)]
    hub = [str(path) for path in paths if str(path).startswith(PREFIX)]
    files = find([path for path in paths if str(path) not in hub], formats).files
    opened = [_table(file, decoding, names, formats) for file in files]
    if names and not any(isinstance(table, Delimited) for table in opened):
        raise CorpusError(f"--column-names {','.join(names)} has no effect: no csv or tsv file is read; leave it out")
    return [*opened, *map(HubDataset, hub), *tables]


def _table(file: SourceFile, decoding: Decoding, names: Sequence[str], formats: Mapping[str, str]) -> Table:
    if file.format == "jsonl":
        return JsonLines(file, decoding)
    if file.format == "json":
        return Json(file, decoding)
    if file.format == "parquet":
        return Parquet(file)
    if file.format == "conll":
        return Tagged(file, decoding)
    if file.format in ("csv", "tsv"):
        return Delimited(file, decoding, names)
    raise CorpusError(f"{file.name} is not known to hold rows with labels; give a file that ends in {endings(formats)}")


def _is_snips(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(
        isinstance(said, list)
        and all(isinstance(row, dict) and isinstance(row.get("data"), list) and all(map(_is_part, row["data"])) for row in said)
        for said in value.values()
    )


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def _utterance(intent: str, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    text, entities = "", []
    for part in parts:
        start, text = len(text), text + part["text"]
        if "entity" in part:
            entities.append({"start": start, "end": len(text), "label": part["entity"]})
    return {"text": text, "intent": intent, "entities": entities}


def _plain(values: Sequence[Any]) -> list[Any]:
    """Python's own values of a list or an array."""
    return list(values.tolist()) if hasattr(values, "tolist") else [v.item() if hasattr(v, "item") else v for v in values]
