"""Encoding a corpus onto the disk: on all cores, in bounded memory, restartable at any instant."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import CorpusError, TokenizerError
from pellucid.core.files import PARTIAL, disk_errors, remove_folder, seal, sync, write_json
from pellucid.core.progress import Progress, Task
from pellucid.text.corpus import Corpus, Document
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.view import SECTIONS

FORMAT = "pellucid tokens 1"
INFO, TOKENS_FILE, SECTIONS_FILE = "store.json", "tokens.bin", "sections.bin"

BATCH = 1 << 20  # characters encoded in one go: enough to occupy many cores, little beside the memory of a process
DRIVERS = 3  # threads that hand batches to the Rust threads: while some turn results into arrays, another encodes
SYNC_SECONDS = 1.0  # the work that a kill can cost


def build_store(corpus: Corpus, tokenizer: Tokenizer, folder: Path, progress: Progress) -> None:
    """Write the store `folder`; go on with what a killed build left. Of several processes one builds and the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    with disk_errors(folder), _locked(folder.with_name(f".{folder.name}.lock"), progress):
        if folder.is_dir():
            return
        partial.mkdir(mode=0o700, exist_ok=True)  # the tokens are the text: they are nobody else's business
        for path in partial.iterdir():
            if path.name not in (TOKENS_FILE, SECTIONS_FILE):
                path.unlink()
        try:
            with _Writer(partial, token_type(tokenizer)) as writer, progress.task("encoding", _megabytes(corpus), "MB") as task:
                _encode(corpus, tokenizer, writer, task)
        except (CorpusError, TokenizerError):
            remove_folder(partial)  # this text will never become a store, so nobody would come back for it
            raise
        info = {
            "format": FORMAT,
            "dtype": token_type(tokenizer).str,
            "tokens": writer.tokens,
            "sections": writer.sections,
            "end_of_text": tokenizer.end_of_text,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "corpus": corpus.fingerprint(),
        }
        write_json(partial / INFO, info)
        seal(partial)
        partial.replace(folder)
        sync(folder.parent)


def token_type(tokenizer: Tokenizer) -> np.dtype[np.unsignedinteger]:
    """The smallest type that holds every token."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def section_hash(data: bytes) -> int:
    """64 bits that decide on which side of a split a text falls; salted, so that no other use of hashes follows them."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"pellucid split").digest(), "little")


def _encode(corpus: Corpus, tokenizer: Tokenizer, writer: _Writer, task: Task) -> None:
    documents = iter(corpus)
    new = writer.resume(documents, task)
    assert tokenizer.end_of_text is not None
    with ThreadPoolExecutor(DRIVERS) as pool:
        waiting: deque[tuple[list[Document], Future[list[npt.NDArray[np.uint32]]]]] = deque()
        for batch in _batches(chain(new, documents)):
            waiting.append((batch, pool.submit(tokenizer.encode_batch, [document.text for document in batch])))
            if len(waiting) > DRIVERS:
                first, tokens = waiting.popleft()
                writer.write(first, tokens.result(), tokenizer.end_of_text, task)
        for batch, tokens in waiting:
            writer.write(batch, tokens.result(), tokenizer.end_of_text, task)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writer:
    """The two files of a store. A section's record is written after its tokens are safe, so the records say what is done."""

    def __init__(self, folder: Path, dtype: np.dtype[np.unsignedinteger]) -> None:
        self.dtype = dtype
        self.tokens, self.sections = 0, 0  # written so far
        self._token_file = (folder / TOKENS_FILE).open("ab")
        self._section_file = (folder / SECTIONS_FILE).open("ab")
        self._unsafe: list[npt.NDArray[np.void]] = []  # records whose tokens may not be on the disk yet
        self._synced = time.monotonic()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._sync()
        finally:
            self._token_file.close()
            self._section_file.close()

    def resume(self, documents: Iterator[Document], task: Task) -> list[Document]:
        """Skip the sections that are on the disk, drop what else is there; return the first new section (none at the end)."""
        left = self._left()
        known = left[["hash", "bytes", "part"]].tolist()
        new: list[Document] = []
        for document in documents:
            record = _record(document)
            if self.sections == len(known) or known[self.sections] != record:
                new.append(document)
                break
            self.sections += 1
            task.advance(record[1] / 1e6)
        self.tokens = int(left["end"][self.sections - 1]) if self.sections else 0
        self._token_file.truncate(self.tokens * self.dtype.itemsize)
        self._section_file.truncate(self.sections * SECTIONS.itemsize)
        return new

    def write(self, batch: list[Document], encoded: list[npt.NDArray[np.uint32]], end_of_text: int, task: Task) -> None:
        end = np.array([end_of_text], dtype=self.dtype)
        joined = np.concatenate([part for ids in encoded for part in (ids.astype(self.dtype), end)])
        records = np.empty(len(batch), dtype=SECTIONS)
        records["end"] = self.tokens + np.cumsum([len(ids) + 1 for ids in encoded])
        records["hash"], records["bytes"], records["part"] = zip(*map(_record, batch), strict=True)
        self._token_file.write(joined.tobytes())
        self._unsafe.append(records)
        self.tokens += len(joined)
        self.sections += len(batch)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()
        task.advance(int(records["bytes"].sum()) / 1e6)

    def _left(self) -> npt.NDArray[np.void]:
        """The records of an earlier build that are whole and whose tokens are there."""
        path = Path(self._section_file.name)
        records = np.fromfile(path, dtype=SECTIONS, count=path.stat().st_size // SECTIONS.itemsize)
        tokens = Path(self._token_file.name).stat().st_size // self.dtype.itemsize
        wrong = (np.diff(records["end"], prepend=0) <= 0) | (records["end"] > tokens)
        return records[: int(wrong.argmax())] if wrong.any() else records

    def _sync(self) -> None:
        self._token_file.flush()
        os.fsync(self._token_file.fileno())
        self._section_file.write(b"".join(records.tobytes() for records in self._unsafe))
        self._section_file.flush()
        os.fsync(self._section_file.fileno())
        self._unsafe, self._synced = [], time.monotonic()


def _record(document: Document) -> tuple[int, int, int]:
    data = document.text.encode()
    return section_hash(data), len(data), document.part


def _megabytes(corpus: Corpus) -> float | None:
    return None if corpus.bytes is None else corpus.bytes / 1e6


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold a file's lock, which the system frees when the process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("another process is encoding the same text; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)  # who waits for it finds the store
