"""Bytes to text, in chunks: decompression, byte order marks, and errors that say at which byte."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.sources import SourceFile

CHUNK = 1 << 20  # bytes read at a time

MARKS = (  # the longer ones first: UTF-32's mark begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How bytes become text: `encoding` (None: UTF-8, or what a byte order mark says) and what happens to bytes outside it."""

    encoding: str | None = None
    on_bad_bytes: Literal["error", "replace"] = "error"

    def __post_init__(self) -> None:
        if self.on_bad_bytes not in ("error", "replace"):
            raise ConfigError(f"on_bad_bytes is {self.on_bad_bytes!r}; it must be 'error' or 'replace'")
        try:
            "a".encode(self.encoding or "utf-8")
        except (LookupError, ValueError):
            raise ConfigError(
                f"{self.encoding!r} is not a known text encoding; try utf-8, gb18030, latin-1 or utf-16"
            ) from None


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what can go wrong while a file is read into a `CorpusError` that names it."""
    try:
        yield
    except EOFError:
        raise CorpusError(f"{name} ends before its compressed data does; it is truncated: fetch it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(f"{name} is not a valid gzip file ({error}); fetch it again, or correct its ending") from None
    except OSError as error:
        if error.errno is None:  # from pyarrow, about the data
            raise CorpusError(f"{name} cannot be decompressed ({error}); it is damaged or truncated: fetch it again") from None
        raise CorpusError(f"{name} cannot be read ({error.strerror}); change its permissions, or leave it out") from None


def read_bytes(file: SourceFile) -> Iterator[bytes]:
    """The bytes of a file, decompressed, in chunks of at most `CHUNK`."""
    with reading(file.name), _open(file) as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def read_text(file: SourceFile, decoding: Decoding) -> Iterator[str]:
    """The text of a file in chunks, line ends as they are, without a byte order mark.

    Raises `CorpusError` with the byte offset (after decompression) where the bytes are not text of the encoding.
    """
    chunks = read_bytes(file)
    first = next(chunks, b"")
    encoding = decoding.encoding or next((name for mark, name in MARKS if first.startswith(mark)), "utf-8")
    if codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"
    decoder = codecs.getincrementaldecoder(encoding)("strict" if decoding.on_bad_bytes == "error" else "replace")
    done = 0
    for chunk in chain((first,), chunks, (b"",)):
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            if b"\0" in chunk and "16" not in encoding and "32" not in encoding:
                raise _binary(file) from None
            raise _bad_bytes(file, decoding, error, done - waiting + error.start) from None
        if "\0" in text:
            raise _binary(file)
        done += len(chunk)
        if text:
            yield text


def read_lines(file: SourceFile, decoding: Decoding) -> Iterator[str]:
    """The lines of a file, each with its end; only a line feed ends a line."""
    rest = ""
    for chunk in read_text(file, decoding):
        lines = (rest + chunk).split("\n")
        rest = lines.pop()
        for line in lines:
            yield line + "\n"
    if rest:
        yield rest


def _open(file: SourceFile) -> Any:
    if file.compression == "gz":
        return gzip.open(file.path, "rb")
    if file.compression == "zst":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.OSFile(str(file.path)), "zstd")
    return file.path.open("rb")


def _binary(file: SourceFile) -> CorpusError:
    return CorpusError(
        f"{file.name} is a binary file (it holds NUL bytes), not text; leave it out, or pass --encoding if it is UTF-16"
    )


def _bad_bytes(file: SourceFile, decoding: Decoding, error: UnicodeDecodeError, offset: int) -> CorpusError:
    byte = f"0x{error.object[error.start]:02x}"
    if decoding.encoding is not None:
        return CorpusError(
            f"{file.name}: byte {offset} is not {decoding.encoding} ({byte}); "
            "pass another --encoding, or --on-bad-bytes replace"
        )
    name = "UTF-8" if error.encoding.startswith("utf-8") else error.encoding.upper()
    return CorpusError(f"{file.name}: byte {offset} is not {name} ({byte}); pass --encoding, or --on-bad-bytes replace")
