"""How good predictions are: pure functions of arrays, each over many weightings of the rows at once.

`weights` [... rows] says how often each row counts (left out: once); a figure has the shape of what stands before the rows.
So the bootstrap of `intervals.py` is one call, and not a thousand.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pellucid.core.errors import ConfigError
from pellucid.evaluation.intervals import Floats, Ints

Bools = npt.NDArray[np.bool_]

# scripts that write no spaces between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


# What is given


def class_numbers(values: Any, classes: int, what: str) -> Ints:
    """Class numbers [rows]; raises `ConfigError` for what is none of 0 ... classes - 1, or for no rows."""
    found = numbers(values, what)
    if found.ndim != 1:
        raise ConfigError(f"{what} must be a list of class numbers, not an array of shape {list(found.shape)}")
    bad = (found != np.floor(found)) | (found < 0) | (found >= classes)
    if bad.any():
        row = int(bad.argmax())
        raise ConfigError(f"{what}, row {row}: {found[row]:g} is none of the {classes} classes, 0 to {classes - 1}")
    return found.astype(np.int64)


def numbers(values: Any, what: str) -> Floats:
    """Finite numbers; raises `ConfigError` for anything else, or for no rows."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} must be numbers in rows of one length, but {error}") from error
    if found.ndim == 0 or len(found) == 0:
        raise ConfigError(f"{what}: there are no rows; give at least one")
    if not np.isfinite(found).all():
        place = np.argwhere(~np.isfinite(found))[0]
        raise ConfigError(f"{what}, row {place[0]}: {found[tuple(place)]} is not a finite number")
    return found


def flags(values: Any, what: str) -> Bools:
    """Which labels hold, [rows labels] of 0 and 1."""
    found = numbers(values, what)
    if found.ndim != 2:
        raise ConfigError(f"{what} must have a column for each label, not the shape {list(found.shape)}")
    if (bad := (found != 0) & (found != 1)).any():
        place = np.argwhere(bad)[0]
        raise ConfigError(f"{what}, row {place[0]}: {found[tuple(place)]:g} must be 0 or 1")
    return found.astype(bool)


def same_length(truth: Sequence[Any] | npt.NDArray[Any], predicted: Sequence[Any] | npt.NDArray[Any]) -> None:
    if len(truth) != len(predicted):
        raise ConfigError(f"there are {len(predicted):,} predictions for {len(truth):,} rows; give one for each")
    if len(truth) == 0:
        raise ConfigError("there are no rows to grade; give at least one")
    if isinstance(truth, np.ndarray) and isinstance(predicted, np.ndarray) and truth.shape != predicted.shape:
        raise ConfigError(f"the predictions have the shape {list(predicted.shape)}, the truth {list(truth.shape)}")


def counted(rows: int, weights: Floats | None) -> Floats:
    return np.ones(rows) if weights is None else weights


def share(part: Floats, whole: Floats) -> Floats:
    """part / whole, and 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=np.asarray(whole) != 0)


# What is counted class by class: single- and multi-label classification, and spans


@dataclass(frozen=True)
class Tally:
    """For each class how often it was predicted and true at once, predicted, and true; each [... classes]."""

    right: Floats
    predicted: Floats
    true: Floats

    @property
    def precision(self) -> Floats:
        return share(self.right, self.predicted)

    @property
    def recall(self) -> Floats:
        return share(self.right, self.true)

    @property
    def f1(self) -> Floats:
        return share(2 * self.right, self.predicted + self.true)

    @property
    def macro_f1(self) -> Floats:
        """The mean F1 of the classes that are predicted or true at all."""
        return share(self.f1.sum(axis=-1), (self.predicted + self.true > 0).sum(axis=-1).astype(np.float64))

    @property
    def micro(self) -> Tally:
        """All classes taken as one, [... 1]."""
        return Tally(*(part.sum(axis=-1, keepdims=True) for part in (self.right, self.predicted, self.true)))


def sums_by_class(classes: Ints, count: int, weights: Floats) -> Floats:
    """The weights of the rows of each class added up, [... count]."""
    flat = weights.reshape(math.prod(weights.shape[:-1]), weights.shape[-1])
    summed: list[Floats] = [np.bincount(classes, row, count).astype(np.float64) for row in flat]
    return np.stack(summed).reshape(*weights.shape[:-1], count)


def tally(truth: Ints, predicted: Ints, classes: int, weights: Floats | None = None) -> Tally:
    """Of single-label classification, from class numbers [rows]."""
    same_length(truth, predicted)
    weights = counted(len(truth), weights)
    hits = truth == predicted
    return Tally(
        sums_by_class(truth[hits], classes, weights[..., hits]),
        sums_by_class(predicted, classes, weights),
        sums_by_class(truth, classes, weights),
    )


def tally_flags(truth: Bools, predicted: Bools, weights: Floats | None = None) -> Tally:
    """Of multi-label classification, from [rows labels]."""
    same_length(truth, predicted)
    weights = counted(len(truth), weights)
    return Tally(weights @ (truth & predicted), weights @ predicted, weights @ truth)


def accuracy(truth: npt.NDArray[Any], predicted: npt.NDArray[Any], weights: Floats | None = None) -> Floats:
    """The share of rows [rows ...] that are right in every place."""
    same_length(truth, predicted)
    hits = (truth == predicted).reshape(len(truth), -1).all(axis=1)
    return mean(hits.astype(np.float64), weights)


def mean(values: Floats, weights: Floats | None = None) -> Floats:
    """Of values [rows], or of each column of [rows columns]."""
    weights = counted(len(values), weights)
    total = weights.sum(axis=-1)
    return np.asarray(share(weights @ values, total if values.ndim == 1 else total[..., None]))


def matthews(counts: Tally) -> Floats:
    """Matthews correlation for any number of classes (Gorodkin, 2004): 1 perfect, 0 for a constant."""
    rows = counts.true.sum(axis=-1)
    covariance = rows * counts.right.sum(axis=-1) - (counts.true * counts.predicted).sum(axis=-1)
    spreads = [rows**2 - (part**2).sum(axis=-1) for part in (counts.true, counts.predicted)]
    return share(covariance, np.sqrt(spreads[0] * spreads[1]))


def confusion(truth: Ints, predicted: Ints, classes: int) -> Ints:
    """How often each class (row) was taken for each (column), [classes classes]."""
    same_length(truth, predicted)
    return np.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def classification(truth: Ints, predicted: Ints, classes: int, weights: Floats | None = None) -> dict[str, Floats]:
    counts = tally(truth, predicted, classes, weights)
    return {
        "accuracy": share(counts.right.sum(axis=-1), counts.true.sum(axis=-1)),
        "macro_f1": counts.macro_f1,
        "matthews": matthews(counts),
    }


def multi_label(truth: Bools, predicted: Bools, weights: Floats | None = None) -> dict[str, Floats]:
    """`hamming` is the share of wrong decisions: lower is better."""
    counts = tally_flags(truth, predicted, weights)
    return {
        "micro_f1": counts.micro.f1[..., 0],
        "macro_f1": counts.macro_f1,
        "exact_match": accuracy(truth, predicted, weights),
        "hamming": mean((truth != predicted).mean(axis=1), weights),
    }


# Numbers


def regression(truth: Floats, predicted: Floats, weights: Floats | None = None) -> dict[str, Floats]:
    """Squared and absolute error, R2, and the correlations of values (Pearson) and of ranks (Spearman)."""
    same_length(truth, predicted)
    weights = counted(len(truth), weights)
    middle = mean(truth, weights)
    # around a fixed point first: the differences of large squares would lose digits
    spread = mean((truth - truth.mean()) ** 2, weights) - (middle - truth.mean()) ** 2
    squared = mean((truth - predicted) ** 2, weights)
    return {
        "mse": squared,
        "mae": mean(np.abs(truth - predicted), weights),
        "r2": np.where(spread > 0, 1 - share(squared, spread), np.where(squared > 0, 0.0, 1.0)),
        "pearson": correlation(truth, predicted, weights),
        "spearman": correlation(ranks(truth, weights), ranks(predicted, weights), weights),
    }


def ranks(values: Floats, weights: Floats) -> Floats:
    """The mean rank of each row among its equals, where each row stands there as often as it weighs, [... rows]."""
    distinct, group = np.unique(values, return_inverse=True)
    sizes = sums_by_class(group, len(distinct), weights)
    middles = np.cumsum(sizes, axis=-1) - (sizes - 1) / 2
    return np.asarray(middles[..., group])


def correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Pearson's; 0 where either is constant, which says nothing about the other."""
    total = weights.sum(axis=-1, keepdims=True)
    x = x - share((weights * x).sum(axis=-1, keepdims=True), total)
    y = y - share((weights * y).sum(axis=-1, keepdims=True), total)
    xy, xx, yy = ((weights * part).sum(axis=-1) for part in (x * y, x * x, y * y))
    return share(xy, np.where(np.minimum(xx, yy) > 1e-24 * total[..., 0], np.sqrt(xx * yy), 0.0))


# Spans


def spans(tags: Sequence[str], what: str = "tags") -> set[tuple[str, int, int]]:
    """Type, first and last word of each span that tags B-x, I-x and O mark, as conlleval (Tjong Kim Sang, 2000) reads them.

    An I- that continues no span of its type begins one.
    """
    found, begun, before = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        if mark not in ("B", "I", "O") or (mark == "O" and kind):
            raise ConfigError(f"{what}: {tag!r} is no tag of spans; use B-TYPE where one begins, I-TYPE inside it, O elsewhere")
        kind = "" if mark == "O" else kind or "_"
        if before and (mark != "I" or kind != before):
            found.add((before, begun, place - 1))
            before = ""
        if kind and not before:
            begun = place
        before = kind
    return found


@dataclass(frozen=True)
class Tagged:
    """What there is to count in tagged texts, row by row."""

    types: tuple[str, ...]
    counts: Tally  # of spans, each [rows types]
    words: Floats  # [rows]
    right: Floats  # words with the right tag, [rows]


def tagged(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], types: Sequence[str] = ()) -> Tagged:
    """Compare tags with tags. `types` are those of all systems that are to be compared; left out: those that occur here."""
    same_length(truth, predicted)
    pairs = []
    for row, (true, said) in enumerate(zip(truth, predicted, strict=True)):
        if len(true) != len(said):
            raise ConfigError(f"row {row} has {len(said)} predicted tags for {len(true)} words; give one for each")
        pairs.append((spans(true, f"the truth, row {row}"), spans(said, f"the predictions, row {row}")))
    kinds = tuple(types) or span_types(*(span for pair in pairs for span in pair))
    place = {kind: column for column, kind in enumerate(kinds)}
    table = np.zeros((3, len(pairs), len(kinds)))
    for row, (true_spans, said_spans) in enumerate(pairs):
        for layer, some in enumerate((true_spans & said_spans, said_spans, true_spans)):
            for kind, _, _ in some:
                table[layer, row, place[kind]] += 1
    right = [sum(a == b for a, b in zip(true, said, strict=True)) for true, said in zip(truth, predicted, strict=True)]
    return Tagged(kinds, Tally(*table), np.array([len(row) for row in truth], float), np.array(right, float))


def span_types(*rows: Iterable[tuple[str, int, int]]) -> tuple[str, ...]:
    return tuple(sorted({kind for row in rows for kind, _, _ in row}))


def tagging(rows: Tagged, weights: Floats | None = None) -> dict[str, Floats]:
    """Of all spans together (micro), and the share of words whose tag is right."""
    weights = counted(len(rows.words), weights)
    all_types = span_tally(rows, weights).micro
    return {
        "span_f1": all_types.f1[..., 0],
        "span_precision": all_types.precision[..., 0],
        "span_recall": all_types.recall[..., 0],
        "token_accuracy": np.asarray(share(weights @ rows.right, weights @ rows.words)),
    }


def span_tally(rows: Tagged, weights: Floats | None = None) -> Tally:
    """Per type, [... types]."""
    weights = counted(len(rows.words), weights)
    return Tally(weights @ rows.counts.right, weights @ rows.counts.predicted, weights @ rows.counts.true)


# Texts


def written(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, Floats]:
    """Per row [rows]: ROUGE-L, the same answer after SQuAD's normalisation, and the same characters."""
    same_length(truth, predicted)
    pairs = list(zip(truth, predicted, strict=True))
    return {
        "rouge_l": np.array([rouge_l(true, said) for true, said in pairs]),
        "exact_match": np.array([float(normalized(true) == normalized(said)) for true, said in pairs]),
        "strict_match": np.array([float(true == said) for true, said in pairs]),
    }


def normalized(text: str) -> str:
    """As SQuAD compares answers (Rajpurkar et al., 2016): small letters, no punctuation, no articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def words(text: str) -> list[str]:
    """Runs of letters and digits, in small letters; where a script writes no spaces (Chinese, Thai ...) each character.

    For English these are the tokens of Google's rouge_score without stemming, which knows ASCII letters only.
    """
    return WORD.findall(text.lower())


def unspaced(texts: Iterable[str]) -> bool:
    """Whether most letters of these texts belong to scripts without spaces between words."""
    letters = few = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        few += len(re.findall(f"[{UNSPACED}]", text))
    return 2 * few > letters


def rouge_l(truth: str, predicted: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004)."""
    a, b = words(truth), words(predicted)
    return 2 * longest_common(a, b) / (len(a) + len(b)) if a and b else 0.0


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a whole row of its table at a time in the bits of a number (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    full = row = (1 << len(a)) - 1
    for word in b:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & full
    return len(a) - row.bit_count()


# Pairs


def preference(margins: Floats, weights: Floats | None = None) -> dict[str, Floats]:
    """Of margins [rows], the chosen answer's score less the rejected one's: the share above 0 (0 counts half), and the mean."""
    return {"accuracy": mean((np.sign(margins) + 1) / 2, weights), "mean_margin": mean(margins, weights)}
