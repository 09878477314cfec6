"""Where the keys and values of texts under way are kept: static buffers, with a slot for each text.

What attention reads of a slot has a power of two as its length, whatever else is under way: the same shapes give the same bits.
A compiled step may see any whole blocks: it adds keys up in their order, so that masked ones behind change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.network.attention import CrossAttention, Seen
from pellucid.network.config import ModelConfig
from pellucid.network.masks import Mask

LEAST = 64  # keys of the smallest bucket
BLOCK = 32  # keys: a compiled step sees a whole number of blocks, at least two

Keys = Float[Tensor, "slots kv_heads length d_head"]


def bucket(length: int) -> int:
    """The power of two, at least `LEAST`, that holds so many keys."""
    return max(LEAST, 1 << (length - 1).bit_length())


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros which on a CPU take memory only where something is written: most texts do not fill their slots."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    try:
        return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(*shape)
    except MemoryError:
        raise ConfigError(
            f"there is not enough memory for {shape[0] - 1} texts of {shape[2]:,} tokens at once; ask for fewer or shorter ones"
        ) from None


class Runs:
    """Which rows of a batch read which slots: neighbours with one slot, or neighbouring ones, and one bucket are a run."""

    def __init__(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self.count, self.widest = len(slots), max(map(bucket, lengths))
        places = [*zip(slots, map(bucket, lengths), strict=True)]
        steps = [t - s if b == c else None for (s, b), (t, c) in pairwise(places)]
        self.runs, first = [], 0
        for row in range(1, self.count + 1):
            if row == self.count or steps[row - 1] not in (0, 1) or steps[row - 1] != steps[first]:
                self.runs.append((slice(first, row), slice(slots[first], slots[row - 1] + 1), places[first][1]))
                first = row

    def seen(self, keys: Keys, values: Keys, mask: Mask) -> list[Seen]:
        """What each run reads of a layer's slots, under its part of the mask."""
        found = []
        for rows, slots, length in self.runs:
            allowed, bias = mask.allowed, mask.bias
            assert allowed is not None, "a mask of slots says what is allowed"
            part = Mask(
                positions=mask.positions[rows],
                allowed=allowed[rows, :, :, :length],
                bias=None if bias is None else bias[rows, :, :, :length],
            )
            k, v = (x[slots, :, :length].expand(rows.stop - rows.start, -1, -1, -1) for x in (keys, values))
            found.append(Seen(rows, k, v, part))
        return found


class LayerSlots:
    """One layer's keys and values."""

    def __init__(self, slots: Slots, layer: int) -> None:
        self.slots, self.layer = slots, layer

    def extend(
        self, k: Float[Tensor, "batch kv_heads seq d_head"], v: Float[Tensor, "batch kv_heads seq d_head"], mask: Mask
    ) -> list[Seen]:
        """Write at the places that `Slots.place` announced; return what the rows there see."""
        slots, keys, values = self.slots, self.slots.keys[self.layer], self.slots.values[self.layer]
        count = slots.runs.count
        keys[slots.rows, :, slots.positions] = k[:count].transpose(1, 2)
        values[slots.rows, :, slots.positions] = v[:count].transpose(1, 2)
        return slots.runs.seen(keys, values, mask)


class Slots:
    """Keys and values of all layers for `slots` texts of up to `length` positions each."""

    runs: Runs
    rows: Int[Tensor, "rows 1"]
    positions: Int[Tensor, "rows seq"]

    def __init__(self, config: ModelConfig, *, slots: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        # a slot more takes what filling writes; a position more, since a compiler must know that no bucket is all of a slot
        shape = (slots + 1, config.kv_heads, bucket(length) + 1, config.d_head)
        self.keys, self.values = ([zeros(shape, dtype, device) for _ in range(config.layers)] for _ in range(2))
        self.index = torch.arange(bucket(length), device=device).view(-1, BLOCK)
        self.last = config.context_length - 1
        self.layers = [LayerSlots(self, layer) for layer in range(config.layers)]

    def place(self, slots: Sequence[int], starts: Sequence[int], *, seq: int, batch: int) -> Mask:
        """Announce where the next forward pass stands: rows of `seq` positions of some slots, filled up to `batch` rows.

        A position sees its slot up to itself. What filling wrote beyond a text's end is overwritten before anyone sees it.
        """
        device = self.keys[0].device
        self.runs = Runs(slots, [start + seq for start in starts])
        self.rows = torch.tensor(slots, device=device)[:, None]
        self.positions = torch.tensor(starts, device=device)[:, None] + torch.arange(seq, device=device)
        positions = self.positions.new_zeros(batch, seq)
        positions[: len(slots)] = self.positions
        seen = torch.arange(self.runs.widest, device=device) <= positions[:, None, :, None]
        return Mask(positions=positions.clamp(max=self.last), allowed=seen)

    def rows_for(
        self, tokens: Sequence[int], slots: Sequence[int], starts: Sequence[int]
    ) -> tuple[
        Int[Tensor, " rows"], Int[Tensor, " rows"], Int[Tensor, " rows"], Int[Tensor, "blocks block"], list[Keys], list[Keys]
    ]:
        """What a compiled step takes for a token each of some slots; further tokens are filling, in a slot that is for it."""
        filling = len(tokens) - len(slots)
        spare = len(self.keys[0]) - 1
        rows = torch.tensor([[*tokens], [*slots, *[spare] * filling], [*starts, *[0] * filling]])
        return (*rows, self.index[: max(2, -(-(max(starts) + 1) // BLOCK))], self.keys, self.values)

    def choose(self, slots: Sequence[int]) -> None:
        """Go on in the first slots with what these hold; one may be chosen several times."""
        for buffer in (*self.keys, *self.values):
            buffer[: len(slots)] = buffer[list(slots)]

    def copy(self, source: int, target: int, length: int) -> None:
        """The first positions of one slot, in another too."""
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :length] = buffer[source, :, :length]


class Sources:
    """What the texts in the slots attend to besides themselves: the keys and values that each layer made of a source."""

    runs: Runs
    mask: Mask

    def __init__(self, config: ModelConfig, layers: Sequence[CrossAttention], *, slots: int, length: int, like: Tensor) -> None:
        shape = (len(layers), slots, config.kv_heads, bucket(length), config.d_head)
        self.keys, self.values = (like.new_zeros(shape) for _ in range(2))
        self.layers = {layer.site: number for number, layer in enumerate(layers)}
        self.projections = layers
        self.lengths = [1] * slots

    def keep(self, slot: int, hidden: Float[Tensor, "1 keys d_model"]) -> None:
        """Store what each layer makes of an encoder's output."""
        self.lengths[slot] = hidden.shape[1]
        for number, cross in enumerate(self.projections):
            k, v = cross.project(hidden)
            self.keys[number, slot, :, : hidden.shape[1]] = k[0]
            self.values[number, slot, :, : hidden.shape[1]] = v[0]

    def place(self, slots: Sequence[int]) -> None:
        """Announce whose texts the rows of the next forward pass are."""
        lengths = [self.lengths[slot] for slot in slots]
        self.runs = Runs(slots, lengths)
        there = torch.arange(self.runs.widest) < torch.tensor(lengths)[:, None]
        positions = torch.zeros(len(slots), 1, dtype=torch.long, device=self.keys.device)
        self.mask = Mask(positions=positions, allowed=there[:, None, None].to(self.keys.device))

    def seen(self, cross: CrossAttention) -> list[Seen]:
        number = self.layers[cross.site]
        return self.runs.seen(self.keys[number], self.values[number], self.mask)

    def choose(self, slots: Sequence[int]) -> None:
        """Go on in the first slots with the sources of these."""
        for buffer in (self.keys, self.values):
            buffer[:, : len(slots)] = buffer[:, list(slots)]
        self.lengths[: len(slots)] = [self.lengths[slot] for slot in slots]
