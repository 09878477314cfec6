"""Batches: number n is a pure function of (view, seed, n), and every token of every epoch is a target exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.view import TokenView

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]

IGNORED = -100  # the target where there is nothing to learn


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens: what goes in, what should come out, and which document of its row each token is in.

    An encoder-decoder's decoder reads `decoder_ids`. `present` says which of `ids` are not filling; it is None if all are.
    Targets are tokens or tags [rows seq], classes [rows], or numbers [rows labels]. `reference` [rows] is what another network
    says of each row. Rows of `uneven` lengths are filled on the right, and a part of them is as short as its longest row.
    """

    ids: Ids
    targets: Ids | Floats
    documents: Ids | None = None
    decoder_ids: Ids | None = None
    present: Flags | None = None
    reference: Floats | None = None
    uneven: bool = False

    def __post_init__(self) -> None:
        if self.present is not None and self.present.all():
            object.__setattr__(self, "present", None)

    def rows(self, rows: slice) -> Batch:
        """A part of the rows."""
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        parts: dict[str, Any] = {
            name: value[rows] if isinstance(value, np.ndarray) else value for name, value in arrays.items()
        }
        part = Batch(**parts)
        return part._tight() if self.uneven else part

    def _tight(self) -> Batch:
        """Without the columns on the right that are filling in every row, but for a few."""
        width = self.ids.shape[1] if self.present is None else few_widths(_width(self.present), most=self.ids.shape[1])
        each_token = self.targets.ndim == 2 and self.targets.dtype != np.float32
        length = width
        if self.decoder_ids is not None:
            length = _width(self.targets != IGNORED) if each_token else self.decoder_ids.shape[1]
        return replace(
            self,
            ids=self.ids[:, :width],
            targets=self.targets[:, :length] if each_token else self.targets,
            documents=None if self.documents is None else self.documents[:, :width],
            decoder_ids=None if self.decoder_ids is None else self.decoder_ids[:, :length],
            present=None if self.present is None else self.present[:, :width],
        )


class Corruption(Protocol):
    """Hides a part of windows and asks for it. A row of the batch depends on nothing but its own tokens and key."""

    def lengths(self, context: int) -> tuple[int, int]:
        """How many inputs and targets a window becomes. Raises `ConfigError` if there can be no such windows."""

    def __call__(self, tokens: Ids, present: Flags, keys: Bits) -> Batch:
        """The batch made of windows [n context] in which the `present` tokens are text, at least the first; keys are [n 2]."""


class Windows:
    """A view cut into windows of `context` tokens; the last one is filled up with targets to ignore.

    Without a corruption all tokens are targets: the input of each is the token before it, that of the very first an
    end-of-text: every text begins behind one.
    """

    def __init__(self, view: TokenView, context: int, documents: bool, corruption: Corruption | None) -> None:
        if context < 1:
            raise ConfigError(f"the context is {context} tokens; it must be at least 1")
        inputs, targets = (context, context) if corruption is None else corruption.lengths(context)
        if max(inputs, targets) > context:
            raise ConfigError(
                f"windows of {context} tokens would become {inputs} inputs and {targets} targets, more than a context; "
                "choose a larger context, or longer spans"
            )
        if documents and (inputs, targets) != (context, context):
            raise ConfigError(
                f"windows of {context} tokens become {inputs} inputs and {targets} targets, which document masks do not fit; "
                "switch document masks off"
            )
        self.view, self.context, self.documents, self.corruption = view, context, documents, corruption
        self.count = -(-view.tokens // context)

    def read(self, numbers: Ids, keys: Bits) -> Batch:
        """The windows of some numbers, as a batch; those from `count` on are nothing but filling."""
        starts = numbers * self.context
        if self.corruption is None:
            tokens, present = self._tokens(starts - 1, self.context + 1)
            batch = Batch(tokens[:, :-1], np.where(present[:, 1:], tokens[:, 1:], IGNORED))
        else:
            tokens, present = self._tokens(starts, self.context)
            batch = self.corruption(tokens, present, keys)
        if not self.documents:
            return batch
        return replace(batch, documents=document_numbers(tokens[:, : self.context], self.view.end_of_text))

    def _tokens(self, starts: Ids, length: int) -> tuple[Ids, Flags]:
        """`length` tokens from each start, end-of-text where the stream has none, and where it has some."""
        places = starts[:, None] + np.arange(length)
        present = (places >= 0) & (places < self.view.tokens)
        tokens = np.full(present.shape, self.view.end_of_text, dtype=np.int64)
        whole = present.all(axis=1)
        tokens[whole] = self.view.gather(starts[whole], length)
        for row in np.flatnonzero(~whole).tolist():  # the first window and the last
            start, stop = np.clip((starts[row], starts[row] + length), 0, self.view.tokens).tolist()
            tokens[row, present[row]] = self.view.read(start, stop)
        return tokens, present


class Batches:
    """`batches[n]` for any n >= 0: epoch after epoch, each with the windows in its own order, corrupted in its own way.

    There is no state, so it matters neither who asks for which batch nor in what order. With `documents`, batches say where one
    document ends and the next begins. Raises `CorpusError` if the text is shorter than one context.
    """

    def __init__(
        self,
        view: TokenView,
        *,
        context: int,
        batch_size: int,
        seed: int,
        documents: bool = False,
        corruption: Corruption | None = None,
    ) -> None:
        self._windows = Windows(view, context, documents, corruption)
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

    def __getitem__(self, number: int) -> Batch:
        return self.rows(number, slice(None))

    def rows(self, number: int, rows: slice) -> Batch:
        """Some rows of batch `number`, without reading the others."""
        if number < 0:
            raise IndexError(f"batch {number} does not exist; numbers begin at 0")
        places = number * self.batch_size + np.arange(self.batch_size, dtype=np.int64)[rows]
        return self._windows.read(self._numbers(places), row_keys(self.seed, places))

    def continues(self, number: int) -> bool:  # noqa: ARG002 - lanes do
        """Whether the rows of a batch go on where the batch before it ended."""
        return False

    def _numbers(self, places: Ids) -> Ids:
        """Which window is in each row, of all the rows of all batches."""
        epochs, inside = np.divmod(places, self.windows)
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            numbers[epochs == epoch] = self._permutation(epoch)[inside[epochs == epoch]]
        return numbers

    def _permutation(self, epoch: int) -> Ids:
        """The order of an epoch's windows: random numbers, sorted."""
        if self._order is None or self._order[0] != epoch:
            key = np.array([[self.seed % 2**64, epoch]], dtype=np.uint64)
            self._order = epoch, np.argsort(random_bits(key, self.windows)[0], kind="stable")
        return self._order[1]


class Lanes(Batches):
    """Batches whose row r goes on where row r of the batch before ended, for networks that carry a state along.

    Each row has a share of the view to itself, as many windows as any other or one more; where a share has ended, its row is
    ignored. Every epoch is in the same order, that of the text: the state is to learn from what was written before.
    """

    def __init__(self, view: TokenView, *, context: int, batch_size: int) -> None:
        super().__init__(view, context=context, batch_size=batch_size, seed=0)
        self._starts = np.arange(batch_size + 1) * self.windows // batch_size

    @property
    def batches_per_epoch(self) -> int:
        """Batches until the text begins again."""
        return -(-self.windows // self.batch_size)

    def continues(self, number: int) -> bool:
        return number % self.batches_per_epoch > 0

    def _numbers(self, places: Ids) -> Ids:
        numbers, lanes = np.divmod(places, self.batch_size)
        windows = self._starts[lanes] + numbers % self.batches_per_epoch
        return np.where(windows < self._starts[lanes + 1], windows, self.windows)


def sequential(
    view: TokenView,
    *,
    context: int,
    batch_size: int,
    limit: int | None = None,
    documents: bool = False,
    corruption: Corruption | None = None,
) -> Iterator[Batch]:
    """All windows of a view in order, or `limit` of them evenly spaced; the last batch may be smaller.

    A window is corrupted in the same way every time, whatever the limit and the size of batches.
    """
    windows = Windows(view, context, documents, corruption)
    if limit is not None and limit < 1:
        raise ConfigError(f"the limit is {limit} windows; it must be at least 1")
    count = windows.count if limit is None else min(limit, windows.count)
    numbers = np.arange(count, dtype=np.int64) * windows.count // count
    size = _checked(batch_size)
    parts = (numbers[start : start + size] for start in range(0, count, size))
    return (windows.read(part, row_keys(0, part)) for part in parts)


def document_numbers(ids: Ids, end_of_text: int) -> Ids:
    """Which document of its row each token is in, from 0: an end-of-text token opens the text that follows it."""
    opened: Ids = np.cumsum(ids == end_of_text, axis=-1)
    return opened - opened[..., :1]


def row_keys(seed: int, places: Ids) -> Bits:
    """A key [n 2] for each of all the rows of all batches; those below 2^63 are for the orders of epochs."""
    keys = np.full((len(places), 2), seed % 2**64, dtype=np.uint64)
    keys[:, 1] = places.astype(np.uint64) | np.uint64(2**63)
    return keys


def random_bits(keys: Bits, count: int) -> Bits:
    """`count` random numbers for each key, as [n count]: raw Philox output, the same in every version of numpy."""
    rows = [np.random.Philox(key=key).random_raw(count) for key in keys]
    return np.array(rows, dtype=np.uint64).reshape(len(keys), count)


def few_widths(width: int, *, most: int) -> int:
    """A width at least as large, but at most `most`, of which there are few.

    For each shape of a batch oneDNN compiles kernels and keeps them, 9 MB for MiniLM: widths go by fours.
    """
    return min(-(-width // 4) * 4, most)


def _width(flags: Flags) -> int:
    """Columns up to the last in which any row has something; at least one."""
    return int(np.flatnonzero(flags.any(axis=0)).max(initial=0)) + 1


def _checked(batch_size: int) -> int:
    if batch_size < 1:
        raise ConfigError(f"the batch size is {batch_size}; it must be at least 1")
    return batch_size
