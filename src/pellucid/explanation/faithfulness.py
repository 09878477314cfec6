"""How far an attribution can be trusted: does taking away what it names first take the difference away?

Measured beside orders that know nothing. An attribution that is no better than those is a picture, not an explanation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np
import numpy.typing as npt

from pellucid.evaluation.intervals import Estimate
from pellucid.explanation.removal import Floats, Kept, Removal, every_set, orders, prefixes
from pellucid.explanation.shapley import FEW

Order = npt.NDArray[np.int64]  # [units]
Orders = npt.NDArray[np.int64]  # [orders units]

MANY, FEWER, LONG = 64, 16, 64  # random orders, where not all can be tried; fewer of more units than the last
SHARES = (0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95)  # of the units taken away or put back: symmetric, so that reversed orders share
EARLY = SHARES[:4]  # as DeYoung et al., but for 1 %
MEASURES = ("comprehensiveness", "sufficiency", "deletion", "insertion", "score")
CERTAIN = 0.05


@dataclass(frozen=True)
class Faithfulness:
    """What an order of units, most important first, does to the difference f, in its unit (nats).

    `comprehensiveness` is how much of f goes when the first 5, 10, 20 and 50 % of units are taken away, on average, and
    `sufficiency` how much is missing when only those are there (DeYoung et al., 2020). `deletion` and `insertion` are the
    areas under f while units are taken away, or put into an empty text, one after the other (Petsiuk et al., 2018);
    `score` is insertion - deletion: the area between. More is better, but for sufficiency and deletion.
    """

    comprehensiveness: float
    sufficiency: float
    deletion: float
    insertion: float
    score: float
    probability: float  # that a random order has so high a score
    beats_chance: bool  # even if as many random orders had been tried as methods


class Chance:
    """What random orders of the same units do: the ground that every attribution stands on."""

    def __init__(self, removal: Removal, *, seed: int = 0) -> None:
        self.removal, units = removal, removal.units
        self.counts = steps(units)
        self.exact = units <= FEW
        drawn = np.array([*permutations(range(units))]) if self.exact else orders(units, FEWER if units > LONG else MANY, seed)
        self.figures = self.measure(drawn)
        self.orders = len(drawn)

    def sets(self, order: Order) -> Kept:
        """What stays while the order's first units are taken away, and what is there while they are put back."""
        made = prefixes(order)[self.counts]
        return np.concatenate([~made, made])

    def curves(self, drawn: Orders) -> tuple[Floats, Floats]:
        """The difference while units are taken away, and while they are put back, both [orders counts]."""
        if self.exact:
            values = self.removal(every_set(self.removal.units))
            there = np.cumsum(2**drawn, axis=1)
            made = np.concatenate([np.zeros((len(drawn), 1), np.int64), there], axis=1)[:, self.counts]
            return values[len(values) - 1 - made], values[made]
        both = self.removal(np.concatenate([self.sets(order) for order in drawn])).reshape(len(drawn), 2, -1)
        return both[:, 0], both[:, 1]

    def measure(self, drawn: Orders) -> Floats:
        """The figures of orders, [orders measures]."""
        away, back = self.curves(drawn)
        along = self.counts / self.removal.units
        deletion, insertion = np.trapezoid(away, along), np.trapezoid(back, along)
        early = np.searchsorted(self.counts, [count_at(share, self.removal.units) for share in EARLY])
        missing = [self.removal.whole - curve[:, early].mean(axis=1) for curve in (away, back)]
        return np.stack([*missing, deletion, insertion, insertion - deletion], axis=1)

    def judge(self, tried: Sequence[Floats]) -> list[Faithfulness]:
        """How faithful some attributions are, [units] each; the more are tried, the better one must be to beat chance."""
        judged = []
        for figures in self.measure(np.array([np.argsort(-values, kind="stable") for values in tried])).tolist():
            named, probability = dict(zip(MEASURES, figures, strict=True)), self.probability(figures[-1])
            judged.append(Faithfulness(**named, probability=probability, beats_chance=probability * len(tried) < CERTAIN))
        return judged

    def probability(self, score: float) -> float:
        """How likely a random order is to have such a score: counted, or where few are drawn by Student's t."""
        scores = self.figures[:, -1]
        if self.exact:
            return float((scores >= score - 1e-9 * max(1.0, abs(score))).mean())
        from scipy.stats import t

        return float(t.sf((score - scores.mean()) / max(self.spread, 1e-12), len(scores) // 2))

    def needed(self, tried: int) -> float:
        """The score that one of so many methods must pass to be better than chance."""
        scores = self.figures[:, -1]
        if self.exact:
            return float(np.quantile(scores, 1 - CERTAIN / tried, method="higher"))
        from scipy.stats import t

        return float(scores.mean() + t.ppf(1 - CERTAIN / tried, len(scores) // 2) * self.spread)

    @property
    def spread(self) -> float:
        """By how much a further order's score differs from the mean of those drawn: one standard error."""
        scores = self.figures[:, -1]
        return float(scores.std(ddof=1) * (1 + 1 / len(scores)) ** 0.5)

    @cached_property
    def intervals(self) -> dict[str, Estimate]:
        """The mean of each measure over random orders, and where 95 % of them lie."""
        found = {}
        for name, figures in zip(MEASURES, self.figures.T, strict=True):
            mean = float(figures.mean())
            if self.exact:
                low, high = np.percentile(figures, [2.5, 97.5])
            else:
                from scipy.stats import t

                half = t.ppf(0.975, len(figures) // 2) * figures.std(ddof=1) * (1 + 1 / len(figures)) ** 0.5
                low, high = mean - half, mean + half
            found[name] = Estimate(mean, float(low), float(high))
        return found


def count_at(share: float, units: int) -> int:
    """How many units a share of them is: at least one, and not all."""
    return min(max(1, round(share * units)), max(1, units - 1))


def steps(units: int) -> npt.NDArray[np.int64]:
    """The numbers of units at which curves are read: all where there are few."""
    some = range(units + 1) if units <= FEW else sorted({0, units, *(count_at(share, units) for share in SHARES)})
    symmetric = {*some, *(units - count for count in some)}
    return np.array(sorted(symmetric))
