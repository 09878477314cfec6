"""Whether a classifier is as often right as it says: calibration error, reliability, and one temperature that mends both.

Logits are [rows labels]. For single labels probabilities are their softmax and the truth [rows] is class numbers; for multiple
labels they are sigmoids, the truth [rows labels] is 0 and 1, and each decision counts by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import ConfigError
from pellucid.evaluation.intervals import Floats, Ints
from pellucid.evaluation.metrics import class_numbers, flags, mean, numbers, share, sums_by_class

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0  # temperatures outside would say that validation is too small or the logits are no logits


@dataclass(frozen=True)
class Reliability:
    """In each bin of confidence: rows, what was said on average, and how often it was so; each [bins]."""

    rows: Floats
    confidence: Floats
    accuracy: Floats


def checked(logits: Any, truth: Any) -> tuple[Floats, npt.NDArray[Any]]:
    """Logits [rows labels] and the truth that fits them: class numbers [rows] or flags [rows labels]."""
    logits = numbers(logits, "the logits")
    if logits.ndim != 2 or logits.shape[1] < 2 - (np.ndim(truth) == 2):
        raise ConfigError(f"the logits must have a column for each of two labels or more, not the shape {list(logits.shape)}")
    found: npt.NDArray[Any]
    found = flags(truth, "the truth") if np.ndim(truth) == 2 else class_numbers(truth, logits.shape[1], "the truth")
    if len(found) != len(logits) or (found.ndim == 2 and found.shape != logits.shape):
        raise ConfigError(f"logits of shape {list(logits.shape)} do not fit a truth of shape {list(found.shape)}")
    return logits, found


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def probabilities(logits: Floats, *, multi: bool) -> Floats:
    """Softmax over the labels, or a sigmoid for each."""
    return np.exp(-np.logaddexp(0, -logits)) if multi else np.exp(log_softmax(logits))


def surprise(logits: Floats, truth: npt.NDArray[Any]) -> Floats:
    """Negative log-likelihood of each row in nats, [rows]; for multiple labels the mean over them."""
    if truth.ndim == 2:
        return np.asarray(np.logaddexp(0, np.where(truth, -logits, logits)).mean(axis=1))
    return np.asarray(-log_softmax(logits)[np.arange(len(truth)), truth])


def brier(chances: Floats, truth: npt.NDArray[Any]) -> Floats:
    """Squared distance of each row's probabilities from the truth (Brier, 1950: summed over classes, 0 to 2), [rows].

    For multiple labels the mean over them, 0 to 1.
    """
    if truth.ndim == 2:
        return np.asarray(((chances - truth) ** 2).mean(axis=1))
    target = np.zeros_like(chances)
    target[np.arange(len(truth)), truth] = 1
    return np.asarray(((chances - target) ** 2).sum(axis=1))


def decisions(chances: Floats, truth: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """How sure each decision was, and 1 where it was right: [rows 1], for multiple labels [rows labels]."""
    if truth.ndim == 2:
        return np.maximum(chances, 1 - chances), ((chances > 0.5) == truth).astype(np.float64)
    right = chances.argmax(axis=1) == truth
    return chances.max(axis=1)[:, None], right[:, None].astype(np.float64)


def bins_of(confidence: Floats) -> Ints:
    """Number of each value's bin among `BINS` of equal width, (0, 1/15], (1/15, 2/15] ..."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def gaps(confidence: Floats, right: Floats) -> Floats:
    """By how much each row's decisions [rows decisions] were surer than right, by bin, mean over decisions, [rows bins]."""
    rows, each = confidence.shape
    place = bins_of(confidence) + BINS * np.arange(rows)[:, None]
    summed: Floats = np.bincount(place.ravel(), (confidence - right).ravel() / each, rows * BINS).astype(np.float64)
    return summed.reshape(rows, BINS)


def calibration_error(confidence: Floats, right: Floats) -> float:
    """Expected calibration error (Guo et al., 2017) of decisions [rows decisions]: how far confidence and accuracy are apart,
    bin by bin, on average."""
    return float(np.abs(gaps(confidence, right).mean(axis=0)).sum())


def classwise_error(chances: Floats, truth: Ints) -> Floats:
    """The same for the probability of each class by itself (Kull et al., 2019), [classes]; its mean is the classwise ECE."""
    target = (truth[:, None] == np.arange(chances.shape[1])).astype(np.float64)
    return np.array([calibration_error(chances[:, [one]], target[:, [one]]) for one in range(chances.shape[1])])


def reliability(confidence: Floats, right: Floats) -> Reliability:
    confidence, right = confidence.ravel(), right.ravel()
    bins = bins_of(confidence)
    size = sums_by_class(bins, BINS, np.ones(len(bins)))
    return Reliability(size, share(sums_by_class(bins, BINS, confidence), size), share(sums_by_class(bins, BINS, right), size))


def row_figures(logits: Floats, truth: npt.NDArray[Any]) -> Floats:
    """What the figures below are means of, for each row, [rows bins + 2]: the gaps of each bin, Brier score, surprise."""
    chances = probabilities(logits, multi=truth.ndim == 2)
    return np.column_stack([gaps(*decisions(chances, truth)), brier(chances, truth), surprise(logits, truth)])


def figures(rows: Floats, weights: Floats | None = None) -> dict[str, Floats]:
    """Calibration error, Brier score and negative log-likelihood, of `row_figures`: of all three less is better.

    An error near 0 is overestimated by resampling, as by any small sample: its interval then lies above it.
    """
    means = mean(rows, weights)
    return {"ece": np.abs(means[..., :BINS]).sum(axis=-1), "brier": means[..., -2], "nll": means[..., -1]}


def fit_temperature(logits: Any, truth: Any) -> float:
    """What to divide logits by so that their likelihood on these rows is greatest (Guo et al., 2017), in [0.05, 20].

    Give rows that the model was not trained on and is not graded on. The likelihood is concave in 1 / temperature, so its slope
    is 0 at one place, which halving finds.
    """
    logits, truth = checked(logits, truth)
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(40):
        middle = (low + high) / 2
        if too_sure(logits / math.exp(middle), truth, logits):
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def too_sure(scaled: Floats, truth: npt.NDArray[Any], logits: Floats) -> bool:
    """Whether a higher temperature would be likelier: the mean logit that probabilities expect exceeds that of the truth."""
    chances = probabilities(scaled, multi=truth.ndim == 2)
    if truth.ndim == 2:
        return bool(((chances - truth) * logits).sum() > 0)
    return bool(((chances * logits).sum(axis=1) - logits[np.arange(len(truth)), truth]).sum() > 0)
