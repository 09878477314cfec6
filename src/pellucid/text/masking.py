"""Masked language modelling (Devlin et al., 2019), with new masks in every epoch (Liu et al., 2019)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from pellucid.core.errors import ConfigError
from pellucid.text.batches import IGNORED, Batch, Bits, Flags, Ids, random_bits

MASKED, REPLACED = 0.8, 0.1  # of the chosen tokens; the rest stays as it is


class Masking:
    """Chooses `rate` of the ordinary tokens as targets and shows the mask in most of their places.

    With `word_starts`, which says of each token of the vocabulary whether it begins a word, words are chosen whole. A row with
    an ordinary token has a target. Special tokens are never chosen, nor put in the place of others.
    """

    def __init__(
        self, *, mask: int, special: Collection[int], vocab: int, rate: float = 0.15, word_starts: Flags | None = None
    ) -> None:
        if not 0 < rate < 1:
            raise ConfigError(f"the masking rate is {rate}; it must lie between 0 and 1")
        if not 0 <= mask < vocab:
            raise ConfigError(f"the mask token is {mask}, which is not among the {vocab} of the vocabulary; name one that is")
        if word_starts is not None and len(word_starts) != vocab:
            raise ConfigError(f"word_starts is about {len(word_starts)} tokens, the vocabulary has {vocab}; give one for each")
        self.mask, self.rate = mask, rate
        self._special = np.isin(np.arange(vocab), [mask, *special])
        self._ordinary = np.flatnonzero(~self._special)
        self._starts = self._special | (True if word_starts is None else word_starts)
        if not self._ordinary.size:
            raise ConfigError(f"all {vocab} tokens of the vocabulary are special; masking needs ordinary ones")

    def lengths(self, context: int) -> tuple[int, int]:
        return context, context

    def __call__(self, tokens: Ids, present: Flags, keys: Bits) -> Batch:
        rows, context = tokens.shape
        order, fate, other = random_bits(keys, 3 * context).reshape(rows, 3, context).swapaxes(0, 1)
        chosen = self._choose(tokens, present & ~self._special[tokens], order)
        share = fate / 2.0**64
        ids = np.where(chosen & (share < MASKED), self.mask, tokens)
        replaced = chosen & (share >= 1 - REPLACED)
        ids[replaced] = self._ordinary[other[replaced] % np.uint64(self._ordinary.size)]
        return Batch(ids, np.where(chosen, tokens, IGNORED), present=present)

    def _choose(self, tokens: Ids, ordinary: Flags, random: Bits) -> Flags:
        """The first words in random order up to `rate` of the ordinary tokens, to the nearest word; one in any case."""
        rows, context = tokens.shape
        starts = self._starts[tokens]
        starts[:, 0] = True
        words = np.cumsum(starts, axis=1) - 1  # the number in its row of each token's word
        places = words + np.arange(rows)[:, None] * context
        sizes = np.bincount(places[ordinary], minlength=rows * context).reshape(rows, context)
        order = np.argsort(random, axis=1, kind="stable")
        sizes = np.take_along_axis(sizes, order, axis=1)
        before = np.cumsum(sizes, axis=1) - sizes
        wanted = self.rate * ordinary.sum(axis=1, keepdims=True)
        taken = np.empty_like(ordinary)
        np.put_along_axis(taken, order, (before == 0) | (before + sizes / 2 < wanted), axis=1)
        return ordinary & np.take_along_axis(taken, words, axis=1)
