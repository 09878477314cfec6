"""Shapley values: what each unit adds on average, over all orders in which the text might be put together (Shapley, 1953)."""

from __future__ import annotations

from math import factorial

import numpy as np

from pellucid.core.errors import ConfigError
from pellucid.explanation.removal import Floats, Removal, every_set, orders, prefixes

FEW = 7  # units: of so many every set is read, and the values are exact
BUDGET = 400  # sets that are read otherwise, about
MOST = 64  # orders


def shapley(removal: Removal, *, samples: int | None = None, seed: int = 0) -> tuple[Floats, Floats]:
    """The value of each unit and its standard error, both [units]; they sum to the whole difference less that of no text.

    Of few units the values are exact, with errors of 0, unless `samples` says how many orders are drawn. Orders are drawn in
    pairs, each with its reverse, in which what two units do together cancels out (Castro et al., 2009; Mitchell et al., 2022).
    """
    units = removal.units
    if samples is not None and (samples < 4 or samples % 2):
        raise ConfigError(f"samples must be an even number from 4 on, since orders are drawn in pairs, not {samples}")
    if samples is None and units <= FEW:
        return exact(removal), np.zeros(units)
    drawn = orders(units, sampled(units) if samples is None else samples, seed)
    values = removal(np.concatenate([prefixes(order) for order in drawn])).reshape(len(drawn), units + 1)
    added = np.empty((len(drawn), units))
    np.put_along_axis(added, drawn, np.diff(values, axis=1), axis=1)
    pairs = added.reshape(-1, 2, units).mean(axis=1)
    return pairs.mean(axis=0), pairs.std(axis=0, ddof=1) / len(pairs) ** 0.5


def sampled(units: int) -> int:
    """How many orders are drawn: pairs, at least two of them."""
    return 2 * max(2, min(MOST // 2, BUDGET // (2 * units)))


def exact(removal: Removal) -> Floats:
    """The sum over all sets S without a unit i of |S|! (n - |S| - 1)! / n! (f(S + i) - f(S))."""
    units = removal.units
    sets = every_set(units)
    values, sizes = removal(sets), sets.sum(axis=1)
    weights = np.array([factorial(size) * factorial(units - size - 1) / factorial(units) for size in range(units)])
    found = np.empty(units)
    for unit in range(units):
        without = np.flatnonzero(~sets[:, unit])
        found[unit] = weights[sizes[without]] @ (values[without + 2**unit] - values[without])
    return found
