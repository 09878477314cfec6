"""Span corruption (Raffel et al., 2020): an encoder reads a text with gaps, a decoder writes what was in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pellucid.core.errors import ConfigError
from pellucid.text.batches import IGNORED, Batch, Bits, Flags, Ids, random_bits


class SpanCorruption:
    """Shows each hidden span as a sentinel: inputs `the <0> sat <1> mat end`, targets `<0> cat <1> on the <2> end`.

    Every window of one length has as many hidden tokens in as many spans, so all batches have the same shape. As in T5, windows
    begin with text and end with a span.
    """

    def __init__(
        self, *, sentinels: Sequence[int], start: int, end_of_text: int, density: float = 0.15, mean_span: float = 3.0
    ) -> None:
        if not 0 < density < 1:
            raise ConfigError(f"the noise density is {density}; it must lie between 0 and 1")
        if not mean_span >= 1:
            raise ConfigError(f"the mean span length is {mean_span}; it must be at least 1")
        self.sentinels = np.array(sentinels, dtype=np.int64)
        self.start, self.end_of_text, self.density, self.mean_span = start, end_of_text, density, mean_span

    def lengths(self, context: int) -> tuple[int, int]:
        hidden, spans = self._noise(context)
        if spans >= len(self.sentinels):
            raise ConfigError(
                f"windows of {context} tokens need {spans + 1} sentinels, but there are {len(self.sentinels)}; "
                "choose a smaller context or longer spans, or a tokenizer with more sentinels"
            )
        return context - hidden + spans + 1, hidden + spans + 2

    def __call__(self, tokens: Ids, present: Flags, keys: Bits) -> Batch:
        inputs, outputs = self.lengths(tokens.shape[1])
        ids = np.full((len(tokens), inputs), self.end_of_text, dtype=np.int64)
        targets = np.full((len(tokens), outputs), IGNORED, dtype=np.int64)
        shown = np.zeros(ids.shape, dtype=bool)
        sizes = present.sum(axis=1)
        for size in np.unique(sizes).tolist():  # one, but for the last window of an epoch
            rows, (inputs, outputs) = sizes == size, self.lengths(size)
            ids[rows, :inputs], targets[rows, :outputs] = self._corrupt(tokens[rows, :size], keys[rows])
            shown[rows, :inputs] = True
        decoder_ids = np.roll(np.where(targets == IGNORED, self.end_of_text, targets), 1, axis=1)
        decoder_ids[:, 0] = self.start
        return Batch(ids, targets, decoder_ids=decoder_ids, present=shown)

    def _noise(self, length: int) -> tuple[int, int]:
        """How many tokens are hidden of a window of a length, and in how many spans."""
        hidden = max(1, min(round(length * self.density), length - 1))
        return hidden, max(1, min(round(hidden / self.mean_span), length - hidden))

    def _corrupt(self, tokens: Ids, keys: Bits) -> tuple[Ids, Ids]:
        """Inputs and targets of windows without filling."""
        rows, length = tokens.shape
        hidden, spans = self._noise(length)
        bits = random_bits(keys, length)
        gaps, texts = pieces(bits[:, 1:hidden], hidden, spans), pieces(bits[:, hidden + 1 :], length - hidden, spans)
        noise, one = alternate(texts, gaps), np.ones_like(gaps)
        end = np.full((rows, 1), self.end_of_text)
        inputs = self._with_sentinels(tokens[~noise], alternate(texts, one))
        targets = self._with_sentinels(tokens[noise], ~alternate(one, gaps))
        return np.hstack([inputs, end]), np.hstack([targets, np.full((rows, 1), self.sentinels[spans]), end])

    def _with_sentinels(self, tokens: Ids, places: Flags) -> Ids:
        """Tokens with the sentinels, in order, in some places of each row."""
        out = np.empty(places.shape, dtype=np.int64)
        out[~places] = tokens
        out[places] = self.sentinels[np.cumsum(places, axis=1)[places] - 1]
        return out


def pieces(random: Bits, length: int, count: int) -> Ids:
    """`length` tokens divided into `count` pieces, all ways equally likely: cut where the lowest of `length` - 1 bits are."""
    cuts = 1 + np.sort(np.argsort(random, axis=1, kind="stable")[:, : count - 1], axis=1)
    return np.diff(cuts, axis=1, prepend=0, append=length)


def alternate(off: Ids, on: Ids) -> Flags:
    """Rows of flags: as many off and as many on, in turns, as the columns say."""
    turns = np.stack([off, on], axis=-1)
    return np.repeat(np.tile([False, True], off.size), turns.ravel()).reshape(len(off), -1)
