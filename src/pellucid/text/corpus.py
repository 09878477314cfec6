"""Where text comes from: files, folders, patterns, standard input, the hub, or texts in memory, as one stream of documents."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from pellucid.core.errors import CorpusError
from pellucid.core.files import disk_errors, hash_file
from pellucid.text.decoding import Decoding, read_text
from pellucid.text.delimited import Delimited
from pellucid.text.fields import choose_field, text_of, whole
from pellucid.text.hub import PREFIX, HubDataset
from pellucid.text.sections import SECTION, sections
from pellucid.text.sources import SourceFile, find, spool_standard_input
from pellucid.text.tables import JsonLines, Parquet, Table, Texts

LINE_BREAK = re.compile(r"<br\s{0,4}/?>", re.IGNORECASE)
LONGEST_BREAK = len("<br    />")


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or section number `part` of one; `fields` are the other columns of a labelled row."""

    text: str
    part: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Counts:
    """What one pass over a corpus met: sections, documents, and documents left out as empty or as exact copies."""

    sections: int = 0
    documents: int = 0
    empty: int = 0
    duplicates: int = 0
    replaced: int = 0  # replacement characters, with on_bad_bytes="replace"


class PlainText:
    """A file that is one document."""

    def __init__(self, file: SourceFile, decoding: Decoding) -> None:
        self.file, self.decoding, self.name = file, decoding, file.name

    def __iter__(self) -> Iterator[str]:
        return read_text(self.file, self.decoding)


Source = PlainText | Table


class Corpus:
    """Documents that can be read again and again; `open` and `of` make one."""

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        text_field: str | None,
        decoding: Decoding,
        html_breaks: bool,
        deduplicate: bool,
        skipped: int,
    ) -> None:
        self.sources, self.decoding, self.html_breaks, self.deduplicate = sources, decoding, html_breaks, deduplicate
        self.skipped = skipped
        tables = [source for source in sources if isinstance(source, Table)]
        self.text_field = choose_field(tables, text_field) if tables else None
        self.counts: Counts | None = None  # of the last whole pass
        self._fingerprint: str | None = None
        self._refuse_what_has_no_effect(text_field)
        for source in sources:
            if isinstance(source, PlainText) and source.file.named and not any(chunk.strip() for chunk in source):
                raise CorpusError(f"{source.name} is empty or holds only white space; leave it out, or put text in it")

    @classmethod
    def open(
        cls,
        sources: str | Path | Sequence[str | Path],
        *,
        text_field: str | None = None,
        encoding: str | None = None,
        on_bad_bytes: Literal["error", "replace"] = "error",
        html_breaks: bool = False,
        deduplicate: bool = False,
    ) -> Corpus:
        """The documents of files, folders, glob patterns (`**` goes through folders), `-` (standard input) or `hf:NAME`.

        A `.txt` or `.md` file is one document, and so is a row of `.jsonl`, `.csv`, `.tsv` or `.parquet`; each may end in
        `.gz` or `.zst` too. Standard input is text, or JSON lines if `text_field` is given. `html_breaks` turns `<br />` into
        line feeds, `deduplicate` leaves out exact copies of documents. Raises `CorpusError` for what cannot be found or read.
        """
        decoding = Decoding(encoding=encoding, on_bad_bytes=on_bad_bytes)
        given = [sources] if isinstance(sources, str | Path) else list(dict.fromkeys(sources))
        if not given:
            raise CorpusError("no source of text is given; name a file, a folder, a pattern, - (standard input) or hf:NAME")
        hub = [str(source) for source in given if str(source).startswith(PREFIX)]
        found = find([source for source in given if str(source) != "-" and str(source) not in hub])
        opened: list[Source] = [_source(file, decoding) for file in found.files]
        if "-" in map(str, given):
            opened.append(_source(spool_standard_input(format="jsonl" if text_field else "text"), decoding))
        opened += [HubDataset(source) for source in hub]
        return cls(
            opened,
            text_field=text_field,
            decoding=decoding,
            html_breaks=html_breaks,
            deduplicate=deduplicate,
            skipped=found.skipped,
        )

    @classmethod
    def of(cls, texts: Iterable[str], *, html_breaks: bool = False, deduplicate: bool = False) -> Corpus:
        """The documents of an iterable of texts; one that can be read only once is kept in a temporary file."""
        if isinstance(texts, str):
            texts = [texts]
        decoding = Decoding()
        table: Table = Texts(texts) if isinstance(texts, Sequence) else JsonLines(_spool(texts), decoding)
        return cls([table], text_field="text", decoding=decoding, html_breaks=html_breaks, deduplicate=deduplicate, skipped=0)

    def __iter__(self) -> Iterator[Document]:
        """The sections of all documents, in order and without fields, for training on text.

        Raises `CorpusError` at the first byte or row that cannot be read, and at the end if there was no text at all.
        """
        counts, seen = Counts(), set[bytes]()
        for document in self._documents():
            parts = _unless_blank(sections(html_line_breaks(document) if self.html_breaks else document))
            first = next(parts, None)
            if first is None:
                counts.empty += 1
                continue
            if self.deduplicate and (digest := _digest(document)) in seen:
                counts.duplicates += 1
                continue
            if self.deduplicate:
                seen.add(digest)
            counts.documents += 1
            for part, text in enumerate(chain((first,), parts)):
                counts.sections += 1
                counts.replaced += text.count("\ufffd") if self.decoding.on_bad_bytes == "replace" else 0
                yield Document(text, part)
        if not counts.documents:
            raise CorpusError(f"{self._name()} is empty or holds only white space; put text in it, or name another source")
        self.counts = counts

    def rows(self) -> Iterator[Document]:
        """Whole documents with their other fields, uncut, empty ones and copies included, for training on labels."""
        for source in self.sources:
            if isinstance(source, PlainText):
                yield Document(self._clean("".join(source), source.name))
                continue
            assert self.text_field is not None
            for number, row in source.rows():
                text = self._clean(text_of(source, number, row, self.text_field), source.place(number))
                yield Document(text, 0, {name: value for name, value in row.items() if name != self.text_field})

    @property
    def bytes(self) -> int | None:
        """The size of the text on the disk; None where that is unknown or says little (compressed, Parquet, hub, in memory)."""
        files = [source.file for source in self.sources if isinstance(source, PlainText | JsonLines | Delimited)]
        if len(files) < len(self.sources) or any(file.compression for file in files):
            return None
        return sum(file.path.stat().st_size for file in files)

    def fingerprint(self) -> str:
        """SHA-256 of the content and of the options that change what is read; names and dates of files do not count."""
        if self._fingerprint is None:
            identity = {"section": SECTION, **self._options(), "sources": [_identity(source) for source in self.sources]}
            self._fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """What a run notes about its text: sources, size, options, fingerprint, and the counts of the last pass."""
        files = [source.file for source in self.sources if isinstance(source, PlainText | JsonLines | Delimited | Parquet)]
        return {
            "sources": len(self.sources),
            "names": [source.name for source in self.sources[:20]],
            "bytes": sum(file.path.stat().st_size for file in files),
            "skipped": self.skipped,
            "options": self._options(),
            "counts": None if self.counts is None else asdict(self.counts),
            "fingerprint": self.fingerprint(),
        }

    def _documents(self) -> Iterator[Iterable[str]]:
        """Each document as chunks of text that can be read twice."""
        for source in self.sources:
            if isinstance(source, PlainText):
                yield source
                continue
            assert self.text_field is not None
            for number, row in source.column(self.text_field):
                place = source.place(number)
                yield (whole(text_of(source, number, row, self.text_field), place, self.decoding.on_bad_bytes),)

    def _clean(self, text: str, place: str) -> str:
        text = whole(text, place, self.decoding.on_bad_bytes)
        return LINE_BREAK.sub("\n", text) if self.html_breaks else text

    def _options(self) -> dict[str, Any]:
        return {
            "text_field": self.text_field,
            "encoding": self.decoding.encoding,
            "on_bad_bytes": self.decoding.on_bad_bytes,
            "html_breaks": self.html_breaks,
            "deduplicate": self.deduplicate,
        }

    def _name(self) -> str:
        return self.sources[0].name if len(self.sources) == 1 else f"the corpus ({len(self.sources)} sources)"

    def _refuse_what_has_no_effect(self, text_field: str | None) -> None:
        if text_field is not None and self.text_field is None:
            raise CorpusError(
                f"--text-field {text_field} has no effect: {self._name()} is plain text, which has no fields; leave it out"
            )
        if self.decoding.encoding is not None and all(isinstance(source, Parquet | HubDataset) for source in self.sources):
            raise CorpusError(
                f"--encoding {self.decoding.encoding} has no effect: {self._name()} says its encoding itself; leave it out"
            )


def html_line_breaks(chunks: Iterable[str]) -> Iterator[str]:
    """Turn `<br>`, `<br/>` and `<br />` into line feeds, also where one lies across two chunks."""
    rest = ""
    for chunk in chunks:
        rest += chunk
        begun = rest.rfind("<", max(0, len(rest) - LONGEST_BREAK))
        stop = len(rest) if begun < 0 else begun
        yield LINE_BREAK.sub("\n", rest[:stop])
        rest = rest[stop:]
    yield LINE_BREAK.sub("\n", rest)


def _source(file: SourceFile, decoding: Decoding) -> Source:
    if file.format == "jsonl":
        return JsonLines(file, decoding)
    if file.format in ("csv", "tsv"):
        return Delimited(file, decoding)
    return Parquet(file) if file.format == "parquet" else PlainText(file, decoding)


def _spool(texts: Iterable[str]) -> SourceFile:
    file = tempfile.NamedTemporaryFile("w", encoding="ascii", prefix="pellucid-")  # noqa: SIM115 - lives as long as the corpus
    with disk_errors(Path(file.name)):
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        file.flush()
    return SourceFile(Path(file.name), "the given texts", "jsonl", temporary=file)


def _unless_blank(parts: Iterator[str]) -> Iterator[str]:
    """The sections of a document, or none if all of it is white space."""
    held = []
    for part in parts:
        held.append(part)
        if not part.isspace():
            yield from held
            yield from parts


def _digest(document: Iterable[str]) -> bytes:
    digest = hashlib.blake2b(digest_size=12)
    for chunk in document:
        digest.update(chunk.encode())
    return digest.digest()


def _identity(source: Source) -> list[str]:
    if isinstance(source, HubDataset):
        return ["hub", source.identity()]
    if isinstance(source, Texts):
        digest = hashlib.sha256()
        for text in source.texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(data)}:".encode() + data)
        return ["texts", digest.hexdigest()]
    assert isinstance(source, PlainText | JsonLines | Delimited | Parquet)
    return [source.file.format, source.file.compression, hash_file(source.file.path)]
