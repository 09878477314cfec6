"""Batches: number n is a pure function of (view, seed, n), and every token of every epoch is a target exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.view import TokenView

Ids = npt.NDArray[np.int64]

IGNORED = -100  # the target where there is nothing to learn


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens [batch context]: what goes in, what should come out, and which document of its row each token is in."""

    ids: Ids
    targets: Ids
    documents: Ids | None = None

    def rows(self, rows: slice) -> Batch:
        """A part of the rows."""
        return Batch(self.ids[rows], self.targets[rows], None if self.documents is None else self.documents[rows])


class Windows:
    """A view cut into windows of `context` targets; the last one is filled up with targets to ignore.

    The input of a target is the token before it, that of the very first an end-of-text: every text begins behind one.
    """

    def __init__(self, view: TokenView, context: int, documents: bool) -> None:
        if context < 1:
            raise ConfigError(f"the context is {context} tokens; it must be at least 1")
        self.view, self.context, self.documents = view, context, documents
        self.count = -(-view.tokens // context)

    def read(self, numbers: Ids) -> Batch:
        """The windows of some numbers (below `count`), as a batch."""
        size, context, view = len(numbers), self.context, self.view
        stream = np.full((size, context + 1), view.end_of_text, dtype=np.int64)
        whole = (numbers > 0) & (numbers < view.tokens // context)
        stream[whole] = view.gather(numbers[whole] * context - 1, context + 1)
        targets = stream[:, 1:].copy()
        for row in np.flatnonzero(~whole).tolist():  # the first window and the last
            start = int(numbers[row]) * context
            tokens = view.read(max(start - 1, 0), min(start + context, view.tokens))
            skip = 1 if start == 0 else 0
            stream[row, skip : skip + len(tokens)] = tokens
            targets[row] = stream[row, 1:]
            targets[row, skip + len(tokens) - 1 :] = IGNORED
        ids = stream[:, :-1]
        return Batch(ids, targets, document_numbers(ids, view.end_of_text) if self.documents else None)


class Batches:
    """`batches[n]` for any n >= 0: epoch after epoch, each with the windows in its own order.

    There is no state, so it matters neither who asks for which batch nor in what order. With `documents`, batches say where one
    document ends and the next begins. Raises `CorpusError` if the text is shorter than one context.
    """

    def __init__(self, view: TokenView, *, context: int, batch_size: int, seed: int, documents: bool = False) -> None:
        self._windows = Windows(view, context, documents)
        self.batch_size, self.seed = _checked(batch_size), seed
        if view.tokens < context:
            raise CorpusError(
                f"the text has {view.tokens} tokens, fewer than one context of {context}; give more text, or a smaller context"
            )
        self._order: tuple[int, Ids] | None = None  # of the epoch asked for last: remembered, not needed

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return self._windows.context

    @property
    def windows(self) -> int:
        """Windows in an epoch."""
        return self._windows.count

    @property
    def tokens_per_epoch(self) -> int:
        """Targets in an epoch: all tokens of the view."""
        return self._windows.view.tokens

    def __getitem__(self, number: int) -> Batch:
        return self.rows(number, slice(None))

    def rows(self, number: int, rows: slice) -> Batch:
        """Some rows of batch `number`, without reading the others."""
        if number < 0:
            raise IndexError(f"batch {number} does not exist; numbers begin at 0")
        places = number * self.batch_size + np.arange(self.batch_size, dtype=np.int64)[rows]
        epochs, inside = np.divmod(places, self.windows)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            windows[epochs == epoch] = self._permutation(epoch)[inside[epochs == epoch]]
        return self._windows.read(windows)

    def _permutation(self, epoch: int) -> Ids:
        """The order of an epoch's windows: random keys, sorted. Raw Philox output is the same in every version of numpy."""
        if self._order is None or self._order[0] != epoch:
            key = np.array([self.seed % 2**64, epoch], dtype=np.uint64)
            keys = np.random.Philox(key=key).random_raw(self.windows)
            self._order = epoch, np.argsort(keys, kind="stable")
        return self._order[1]


def sequential(
    view: TokenView, *, context: int, batch_size: int, limit: int | None = None, documents: bool = False
) -> Iterator[Batch]:
    """All windows of a view in order, or `limit` of them evenly spaced; the last batch may be smaller."""
    windows = Windows(view, context, documents)
    if limit is not None and limit < 1:
        raise ConfigError(f"the limit is {limit} windows; it must be at least 1")
    count = windows.count if limit is None else min(limit, windows.count)
    numbers = np.arange(count, dtype=np.int64) * windows.count // count
    size = _checked(batch_size)
    return (windows.read(numbers[start : start + size]) for start in range(0, count, size))


def document_numbers(ids: Ids, end_of_text: int) -> Ids:
    """Which document of its row each token is in, from 0: an end-of-text token opens the text that follows it."""
    opened: Ids = np.cumsum(ids == end_of_text, axis=-1)
    return opened - opened[..., :1]


def _checked(batch_size: int) -> int:
    if batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}; it must be at least 1")
    return batch_size
