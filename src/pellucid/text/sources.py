"""Where text comes from: names, folders and patterns become a list of files, each with its format."""

from __future__ import annotations

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.core.errors import CorpusError
from pellucid.core.files import disk_errors

FORMATS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read. `named` says that the user asked for this very file, so that it must hold text."""

    path: Path
    name: str  # what messages call it
    format: str
    compression: str = ""
    named: bool = True
    temporary: Any = None  # keeps a spooled file on the disk as long as this object lives


@dataclass(frozen=True, slots=True)
class Found:
    """The files below a number of sources, and how many files of other kinds were passed over in folders."""

    files: list[SourceFile]
    skipped: int


def find(sources: Sequence[str | Path], formats: Mapping[str, str] = FORMATS) -> Found:
    """All files of some paths, folders and patterns: each once, in the order of their paths, whatever order the sources have.

    `formats` says which endings are read, and as what; a file that is named may have any other, and is text.
    Raises `CorpusError` for a path that is missing, a pattern that matches nothing and a folder without readable files.
    """
    files: dict[Path, SourceFile] = {}
    skipped: set[Path] = set()
    for source in sources:
        for path, named in _expand(source, formats):
            ending, compression = _ending(path)
            if ending in formats or named:
                format = formats.get(ending, "text")
                files.setdefault(path.resolve(), SourceFile(path, str(path), format, compression, named))
            else:
                skipped.add(path.resolve())
    return Found([files[path] for path in sorted(files)], len(skipped - files.keys()))


def endings(formats: Mapping[str, str]) -> str:
    """The endings of files that are read, for messages."""
    return f"{' '.join(formats)}, each also with {' or '.join(COMPRESSIONS)}"


def spool_standard_input(*, format: str) -> SourceFile:
    """Keep standard input in a temporary file (readable by its owner only), because a corpus is read more than once."""
    file = tempfile.NamedTemporaryFile(prefix="pellucid-")  # noqa: SIM115 - it lives as long as the corpus
    with disk_errors(Path(file.name)):
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        file.flush()
    return SourceFile(Path(file.name), "standard input", format, temporary=file)


def _ending(path: Path) -> tuple[str, str]:
    """The ending that tells the format, and the compression around it: `a.csv.gz` is (".csv", "gz")."""
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    return (path.with_suffix("") if compression else path).suffix.lower(), compression


def _expand(source: str | Path, formats: Mapping[str, str]) -> Iterator[tuple[Path, bool]]:
    path = Path(source).expanduser()
    if path.is_dir():
        yield from ((file, False) for file in _walk(path, formats))
    elif path.exists():
        yield path, True
    elif glob.has_magic(str(path)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute pattern
        files = [match for match in matches if match.is_file()]
        if not files:
            raise CorpusError(f"{source} matches no file; check the pattern (** goes through folders)")
        yield from ((file, True) for file in files)
    else:
        raise CorpusError(f"{_short(source)} does not exist; check the path (texts in memory are read by Corpus.of)")


def _walk(folder: Path, formats: Mapping[str, str]) -> list[Path]:
    """The files of a folder and of the folders in it, without the hidden ones."""

    def stop(error: OSError) -> None:
        raise CorpusError(f"{error.filename} cannot be read ({error.strerror}); change its permissions, or leave it out")

    files = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    if not files:
        raise CorpusError(f"{folder} is an empty folder; put text in it ({endings(formats)}), or name another")
    if not any(_ending(file)[0] in formats for file in files):
        raise CorpusError(
            f"{folder} holds no file that ends in {endings(formats)}; name the files themselves to read them as text, "
            f"for example {files[0]}"
        )
    return files


def _short(source: str | Path) -> str:
    text = str(source)
    return text if len(text) <= 200 else f"{text[:80]!r}..."
