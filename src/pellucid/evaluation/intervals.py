"""How sure a figure is: 95 % intervals of any metric, by drawing the rows again (Efron and Tibshirani, 1993)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import ConfigError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Statistic = Callable[[Floats], Floats]  # weights [resamples rows] -> figures [resamples figures]

RESAMPLES = 1000
PORTION = 4_000_000  # weights that are held at once: 32 MB
Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(statistic: Statistic, counts: Ints, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """The figures of every resample, [resamples figures].

    `counts` says how many rows of the test set there are of each kind (all ones, where each row is its own). Drawing as many
    rows with replacement is drawing such counts, so `statistic` gets them as weights and thousands of rows that look alike
    cost as much as one. Figures that one statistic returns are of the same resamples: their differences are paired.
    """
    if len(counts) == 0 or counts.sum() == 0:
        raise ConfigError("there are no rows to draw from; give at least one")
    if resamples < 1:
        raise ConfigError(f"{resamples} resamples make no interval; draw at least 1")
    random = np.random.default_rng(seed)
    size = max(1, PORTION // len(counts))
    portions = [min(size, resamples - start) for start in range(0, resamples, size)]
    return np.concatenate([statistic(draws(counts, portion, random)) for portion in portions])


def draws(counts: Ints, resamples: int, random: np.random.Generator) -> Floats:
    """How often each kind of row is drawn, [resamples kinds]. Two ways to the same distribution, each the faster one."""
    total = int(counts.sum())
    if 8 * len(counts) < total:
        return random.multinomial(total, counts / total, size=resamples).astype(np.float64)
    kinds = np.repeat(np.arange(len(counts)), counts)
    chosen = (np.bincount(kinds[random.integers(total, size=total)], minlength=len(counts)) for _ in range(resamples))
    return np.stack([row.astype(np.float64) for row in chosen])


def percentiles(value: float, figures: Floats) -> Estimate:
    """A figure with the middle 95 % of what it was in the resamples, [resamples]."""
    low, high = np.percentile(figures, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def wilson(successes: float, rows: int) -> Estimate:
    """A share with Wilson's interval (1927), which still has a width where every row is right, or none."""
    if rows < 1 or not 0 <= successes <= rows:
        raise ConfigError(f"{successes:g} of {rows} rows is no share; give 0 to {rows}, and at least one row")
    share, z2 = successes / rows, Z * Z / rows
    middle = (share + z2 / 2) / (1 + z2)
    half = Z * math.sqrt(share * (1 - share) / rows + z2 / rows / 4) / (1 + z2)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))
