"""A part of a token store as one stream: what training or validation reads."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import CorpusError

SECTIONS = np.dtype([("end", "<i8"), ("hash", "<u8"), ("bytes", "<u4"), ("part", "<u4")])
"""A record for each section: where its tokens end (with its end-of-text), hash and UTF-8 size of its text, its part number."""


class TokenView:
    """The chosen sections of a store, joined: `tokens` of them, from `documents` pieces of `bytes` UTF-8 bytes.

    The store has an end-of-text token after every section; between sections that continue each other it is left out here.
    """

    def __init__(
        self,
        tokens: npt.NDArray[np.unsignedinteger],
        sections: npt.NDArray[np.void],
        chosen: npt.NDArray[np.bool_],
        end_of_text: int,
        key: str,
    ) -> None:
        index = np.flatnonzero(chosen)
        if not index.size:
            raise CorpusError("no section of the text is chosen; give more text")
        stop = sections["end"][index]
        start = np.where(index > 0, sections["end"][index - 1], 0)
        continues = (np.diff(index) == 1) & (sections["part"][index[1:]] > 0)
        stop[:-1][continues] -= 1
        first = np.concatenate(([0], 1 + np.flatnonzero(start[1:] != stop[:-1])))  # sections that touch make one run
        self._tokens = tokens
        self._run_start = start[first]
        self._run_end = np.cumsum(np.add.reduceat(stop - start, first))  # in this stream
        self.tokens = int(self._run_end[-1])
        self.bytes = int(sections["bytes"][index].sum(dtype=np.int64))
        self.documents = int(index.size - continues.sum())
        self.end_of_text = end_of_text
        self.fingerprint = hashlib.sha256(key.encode() + np.packbits(chosen).tobytes()).hexdigest()

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens `start` to `stop` (excluded) of the stream. Raises `IndexError` outside it."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} are not in a stream of {self.tokens}")
        out = np.empty(stop - start, dtype=np.int64)
        self._fill(out, start)
        return out

    def gather(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """`length` tokens from each of `starts`, as [n length]. Raises `IndexError` outside the stream."""
        if starts.size and (starts.min() < 0 or starts.max() + length > self.tokens):
            raise IndexError(
                f"windows of {length} tokens from {starts.min()} to {starts.max()} leave a stream of {self.tokens}"
            )
        out = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(out, starts.tolist(), strict=True):
            self._fill(row, start)
        return out

    def _fill(self, out: npt.NDArray[np.int64], start: int) -> None:
        run = int(np.searchsorted(self._run_end, start, side="right"))
        done = 0
        while done < len(out):
            left = int(self._run_end[run]) - start - done  # tokens of this run that are still ahead
            length = int(self._run_end[run] - (self._run_end[run - 1] if run else 0))
            count = min(left, len(out) - done)
            at = int(self._run_start[run]) + length - left
            out[done : done + count] = self._tokens[at : at + count]
            done += count
            run += 1
