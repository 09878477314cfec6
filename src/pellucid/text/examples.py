"""Labelled examples as tokens, and batches of them: number n is a pure function of (examples, seed, n)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pellucid.core.errors import ConfigError
from pellucid.text.batches import IGNORED, Batch, Flags, Floats, Ids, few_widths, random_bits

POOL = 50  # batches whose rows are sorted by length together: filling is then a few per cent, and the order random enough
FILLING = -1  # the document number of filling, which no document has


@dataclass(frozen=True, slots=True)
class Example:
    """The tokens [seq] of one row, and what they should give.

    The target is a class, a number, numbers [labels] (float32), or a token or tag for each token [seq] (int64); with
    `decoder_ids`, for each of those. `documents` [seq] says which text each token of a packed row is in, and `reference` what
    another network says of the row.
    """

    ids: Ids
    target: int | float | Ids | Floats
    decoder_ids: Ids | None = None
    reference: float | None = None
    documents: Ids | None = None

    def __post_init__(self) -> None:
        if not len(self.ids):
            raise ConfigError("an example has no tokens; leave it out")


class ExampleBatches:
    """`batches[n]` for any n >= 0: epoch after epoch, each with all examples once, in its own order.

    An epoch has `batches_per_epoch` batches, the last of which may be smaller. Rows of like length come together: the random
    order of an epoch is sorted by length within pools of 50 batches, and the order of batches is random again. Rows of a batch
    go from long to short, so that a few of them are as short as can be. `group=2` keeps pairs of examples side by side.
    """

    def __init__(self, examples: Sequence[Example], *, batch_size: int, seed: int, pad: int, group: int = 1) -> None:
        if not examples:
            raise ConfigError("there are no examples to make batches of; give some")
        if group < 1 or batch_size < 1 or batch_size % group:
            raise ConfigError(f"the batch size is {batch_size}; it must be a multiple of {group}, and at least 1")
        if len(examples) % group:
            raise ConfigError(f"{len(examples)} examples do not make groups of {group}; give each its partner")
        self.examples, self.batch_size, self.seed, self.pad, self.group = examples, batch_size, seed, pad, group
        lengths = np.array([len(example.ids) for example in examples], dtype=np.int64)
        self._longest = int(lengths.max())
        self._lengths: Ids = lengths.reshape(-1, group).max(axis=1)  # of groups
        self.context = max(1, round(lengths.mean().item()))  # tokens that a row has on average
        self._order: tuple[int, list[Ids]] | None = None  # of the epoch asked for last: remembered, not needed

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every example comes once."""
        return -(-len(self.examples) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        return collate([self.examples[index] for index in self.indices(number)], self.pad, self._longest)

    def indices(self, number: int) -> list[int]:
        """Which examples are the rows of batch `number`."""
        if number < 0:
            raise IndexError(f"batch {number} does not exist; numbers begin at 0")
        epoch, inside = divmod(number, self.batches_per_epoch)
        groups = self._epoch(epoch)[inside]
        return [int(index) for first in groups for index in range(first * self.group, (first + 1) * self.group)]

    def continues(self, number: int) -> bool:  # noqa: ARG002 - lanes of running text do
        """Whether the rows of a batch go on where the batch before it ended."""
        return False

    def _epoch(self, epoch: int) -> list[Ids]:
        """The groups of each batch of an epoch."""
        if self._order is None or self._order[0] != epoch:
            size, count = self.batch_size // self.group, len(self._lengths)
            whole = count // size
            bits = random_bits(np.array([[self.seed % 2**64, epoch]], dtype=np.uint64), count + whole)[0]
            order = np.argsort(bits[:count], kind="stable")
            order, rest = order[: whole * size], order[whole * size :]
            pools = (self._by_length(order[start : start + POOL * size]) for start in range(0, len(order), POOL * size))
            batches = [batch for pool in pools for batch in pool.reshape(-1, size)]
            batches = [batches[at] for at in np.argsort(bits[count:], kind="stable")]
            self._order = epoch, [*batches, self._by_length(rest)] if len(rest) else batches
        return self._order[1]

    def _by_length(self, groups: Ids) -> Ids:
        """Groups from long to short; equal ones as they were."""
        return groups[np.argsort(-self._lengths[groups], kind="stable")]


def sequential_examples(
    examples: Sequence[Example],
    *,
    pad: int,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    any_width: bool = False,
) -> Iterator[tuple[Batch, Ids]]:
    """All examples from long to short, in batches, each with the numbers of its examples [rows].

    A batch has at most `batch_size` rows and, filling included, `batch_tokens` tokens, but always a row. With `any_width` it
    is as wide as its longest row, else of one of few widths.
    """
    if min((limit for limit in (batch_size, batch_tokens) if limit is not None), default=0) < 1:
        raise ConfigError(f"batches of {batch_size} rows and {batch_tokens} tokens make no sense; give one that is at least 1")
    order = np.argsort([-len(example.ids) for example in examples], kind="stable")
    longest = len(examples[order[0]].ids) if len(order) and not any_width else 0
    while len(order):
        size = len(order) if batch_size is None else batch_size
        if batch_tokens is not None:
            width = len(examples[order[0]].ids)
            size = min(size, max(1, batch_tokens // few_widths(width, most=max(width, longest))))
        together, order = order[:size], order[size:]
        yield collate([examples[index] for index in together], pad, longest), together


def collate(examples: Sequence[Example], pad: int, most: int = 0) -> Batch:
    """Examples as the rows of a batch, in their order, filled on the right with `pad`; for few widths, up to `most` tokens."""
    ids = [example.ids for example in examples]
    longest = max(map(len, ids))
    filled = _filled(ids, pad, few_widths(longest, most=max(longest, most)))
    present: Flags = np.arange(filled.shape[1]) < np.array([len(row) for row in ids])[:, None]
    decoder_ids = [example.decoder_ids for example in examples if example.decoder_ids is not None]
    reference = [example.reference for example in examples if example.reference is not None]
    packed = any(example.documents is not None for example in examples)
    documents = [np.zeros_like(e.ids) if e.documents is None else e.documents for e in examples] if packed else None
    return Batch(
        filled,
        _targets([example.target for example in examples], 0 if decoder_ids else filled.shape[1]),
        documents=None if documents is None else _filled(documents, FILLING, filled.shape[1]),
        decoder_ids=_filled(decoder_ids, pad) if decoder_ids else None,
        present=present,
        reference=np.array(reference, dtype=np.float32) if reference else None,
        uneven=True,
    )


def pack(examples: Sequence[Example], context: int) -> list[Example]:
    """Several examples in one row of at most `context` tokens, none of them cut, each a document of its own.

    The longest first, each into the row that it fills best (best fit, decreasing: at most 22 % more rows than the fewest, and
    a row). Only for targets of each token, as of conversations. Raises `ConfigError` for an example that is too long.
    """
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].ids))
    if order and (longest := len(examples[order[0]].ids)) > context:
        raise ConfigError(f"an example has {longest} tokens, more than a context of {context}; cut it, or leave it out")
    rows: list[list[Example]] = []
    spaces: list[tuple[int, int]] = []  # what is free in a row, and its number: sorted
    for index in order:
        length = len(examples[index].ids)
        at = bisect_left(spaces, (length, -1))
        if at == len(spaces):
            rows.append([])
            free, row = context, len(rows) - 1
        else:
            free, row = spaces.pop(at)
        rows[row].append(examples[index])
        insort(spaces, (free - length, row))
    return [_joined(row) for row in rows]


def _joined(examples: Sequence[Example]) -> Example:
    targets = [np.asarray(example.target) for example in examples]
    if any(target.shape != example.ids.shape for target, example in zip(targets, examples, strict=True)):
        raise ConfigError("only examples with a target for each token can share a row; switch packing off")
    if any(e.decoder_ids is not None or e.reference is not None or e.documents is not None for e in examples):
        raise ConfigError("examples of an encoder-decoder, of pairs, or packed already cannot share a row; switch packing off")
    return Example(
        ids=np.concatenate([example.ids for example in examples]),
        target=np.concatenate(targets),
        documents=np.repeat(np.arange(len(examples), dtype=np.int64), [len(example.ids) for example in examples]),
    )


def _targets(targets: Sequence[int | float | Ids | Floats], width: int) -> Ids | Floats:
    first = np.asarray(targets[0])
    if first.ndim and first.dtype == np.int64:
        return _filled([np.asarray(target) for target in targets], IGNORED, width)
    if first.ndim:
        return np.stack([np.asarray(target, dtype=np.float32) for target in targets])
    numbers = np.array(targets)
    return numbers.astype(np.float32)[:, None] if numbers.dtype.kind == "f" else numbers.astype(np.int64)


def _filled(rows: Sequence[Ids], filling: int, width: int = 0) -> Ids:
    """Rows as one array, as wide as the longest, or as `width` if that is more."""
    filled = np.full((len(rows), max(width, *map(len, rows))), filling, dtype=np.int64)
    for row, values in zip(filled, rows, strict=True):
        row[: len(values)] = values
    return filled
