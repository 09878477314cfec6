"""What a model has to beat: the commonest answer, and TF-IDF with a linear model, trained on the same labels."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from pellucid.core.errors import ConfigError
from pellucid.evaluation.intervals import Floats
from pellucid.evaluation.metrics import class_numbers, flags, numbers, unspaced

Task = Literal["classify", "multi", "regress", "tag", "text", "prefer"]
Weights = Literal["none", "balanced"]

MAJORITY, LINEAR = "majority class", "TF-IDF + logistic regression"
STRENGTHS = (1.0, 10.0, 100.0)  # C, among which cross-validation chooses
PENALTIES = (10.0, 1.0, 0.1)  # of ridge, likewise
FOLDS, TRIED = 3, 4000  # of so many training rows; all of more would take long to say the same


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a system says of each row, in the form of the truth; of classifiers also how probable it holds each label."""

    values: Any
    probabilities: Floats | None = None  # [rows labels]


def floors(
    task: Task,
    train_texts: Sequence[Any],
    train_truth: Any,
    test_texts: Sequence[Any],
    *,
    labels: Sequence[str] = (),
    class_weights: Weights = "none",
    seed: int = 0,
) -> dict[str, Predictions]:
    """The floors' predictions for the test texts, by the floor's name.

    The truth has the forms that `grading.grade` lists. Texts are strings; for `tag` lists of words, for `prefer` pairs of the
    chosen and the rejected answer (nothing is trained for `text` and `prefer`, so there the training rows may be empty).
    Nothing of the test's truth is seen, and strengths of regularisation are chosen by cross-validation on the training rows.
    """
    if task not in get_args(Task):
        raise ConfigError(f"the task {task!r} is not known; choose {', '.join(get_args(Task))}")
    if len(test_texts) == 0:
        raise ConfigError("there are no texts to predict; give at least one")
    if class_weights not in get_args(Weights):
        raise ConfigError(f"class weights {class_weights!r} are not known; choose {' or '.join(get_args(Weights))}")
    if class_weights != "none" and task not in ("classify", "multi"):
        raise ConfigError(f"class weights have no effect on the task {task!r}; leave them out")
    if task == "text":
        return {
            "saying nothing": Predictions(values=[""] * len(test_texts)),
            "copying the input": Predictions(values=[*test_texts]),
        }
    if task == "prefer":
        return {"the longer answer": Predictions(values=np.array([len(a) - len(b) for a, b in test_texts], dtype=np.float64))}
    if len(train_texts) != len(train_truth):
        raise ConfigError(f"there are {len(train_truth):,} labels for {len(train_texts):,} training texts; give one for each")
    if len(train_texts) == 0:
        raise ConfigError("there are no training texts, so nothing can be learnt; give at least one")
    if task == "tag":
        return frequent_tags(train_texts, train_truth, test_texts)
    if task == "regress":
        return regressors(train_texts, numbers(train_truth, "the training targets"), test_texts, seed)
    if task == "multi":
        return labellers(train_texts, flags(train_truth, "the training labels"), test_texts, class_weights, seed)
    if len(labels) < 2:
        raise ConfigError(f"classifying needs two labels or more, not {len(labels)}; name them")
    truth = class_numbers(train_truth, len(labels), "the training labels")
    return classifiers(train_texts, truth, test_texts, len(labels), class_weights, seed)


def frequent_tags(
    train: Sequence[Sequence[str]], truth: Sequence[Sequence[str]], test: Sequence[Sequence[str]]
) -> dict[str, Predictions]:
    """Every word O; and each word's commonest tag, O for words never seen."""
    seen: dict[str, Counter[str]] = {}
    for row, (words, tags) in enumerate(zip(train, truth, strict=True)):
        if len(words) != len(tags):
            raise ConfigError(f"training row {row} has {len(tags)} tags for {len(words)} words; give one for each")
        for word, tag in zip(words, tags, strict=True):
            seen.setdefault(word, Counter())[tag] += 1
    commonest = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
    return {
        "all words O": Predictions(values=[["O"] * len(words) for words in test]),
        "each word's commonest tag": Predictions(values=[[commonest.get(word, "O") for word in words] for words in test]),
    }


def features(train: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    """TF-IDF of words and pairs of words; of one to three characters where the script writes no spaces. Sparse [rows terms]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if unspaced(train):
        vectorizer = TfidfVectorizer(
            analyzer="char", ngram_range=(1, 3), sublinear_tf=True, min_df=2 if len(train) >= 100 else 1
        )
    else:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        return vectorizer.fit_transform(train), vectorizer.transform(test)
    except ValueError as error:  # an empty vocabulary
        raise ConfigError("the training texts hold no word; is this the right column?") from error


def classifiers(
    train: Sequence[str], truth: Any, test: Sequence[str], classes: int, class_weights: Weights, seed: int
) -> dict[str, Predictions]:
    counts = np.bincount(truth, minlength=classes)
    shares = np.tile(counts / counts.sum(), (len(test), 1))
    found = {MAJORITY: Predictions(values=shares.argmax(axis=1), probabilities=shares)}
    if (counts > 0).sum() < 2:
        raise ConfigError("all training rows have one label, so nothing can be learnt; give rows of two labels or more")
    known, unknown = features(train, test)
    weight = None if class_weights == "none" else class_weights
    model = best([logistic(strength, weight, seed) for strength in STRENGTHS], known, truth, "accuracy", seed)
    chances = np.zeros((len(test), classes))
    chances[:, model.classes_] = model.predict_proba(unknown)
    return found | {LINEAR: Predictions(values=chances.argmax(axis=1), probabilities=chances)}


def logistic(strength: float, weight: str | None, seed: int) -> Any:
    """Stochastic steps: on 10,000 texts of 77 classes ten times as fast as L-BFGS, and as good on held-out texts."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, solver="saga", tol=0.01, max_iter=200, class_weight=weight, random_state=seed)


def labellers(
    train: Sequence[str], truth: Any, test: Sequence[str], class_weights: Weights, seed: int
) -> dict[str, Predictions]:
    """One against the rest for each label."""
    from sklearn.multiclass import OneVsRestClassifier

    shares = np.tile(truth.mean(axis=0), (len(test), 1))
    known, unknown = features(train, test)
    weight = None if class_weights == "none" else class_weights
    candidates = [OneVsRestClassifier(logistic(strength, weight, seed)) for strength in STRENGTHS]
    model = best(candidates, known, truth.astype(int), "f1_micro", seed)
    chances = np.asarray(model.predict_proba(unknown)).reshape(len(test), -1)
    if truth.shape[1] == 1:
        chances = chances[:, -1:]
    return {
        "majority of each label": Predictions(values=shares > 0.5, probabilities=shares),
        LINEAR: Predictions(values=chances > 0.5, probabilities=chances),
    }


def regressors(train: Sequence[str], truth: Floats, test: Sequence[str], seed: int) -> dict[str, Predictions]:
    from sklearn.linear_model import Ridge

    known, unknown = features(train, test)
    candidates = [Ridge(alpha=penalty, solver="sparse_cg", random_state=seed) for penalty in PENALTIES]
    model = best(candidates, known, truth, "neg_mean_squared_error", seed)
    return {
        "the mean": Predictions(values=np.full(len(test), truth.mean())),
        "TF-IDF + ridge": Predictions(values=np.asarray(model.predict(unknown), dtype=np.float64)),
    }


def best(candidates: list[Any], known: Any, truth: Any, scoring: str, seed: int) -> Any:
    """The candidate that cross-validation on the training rows prefers (of equals the first), fitted to all of them."""
    from sklearn.exceptions import ConvergenceWarning, FitFailedWarning, UndefinedMetricWarning
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score

    some = np.random.default_rng(seed).permutation(len(truth))[:TRIED]
    tried, answers = known[some], truth[some]
    rare = truth.ndim > 1 or truth.dtype.kind == "f" or np.bincount(answers)[np.unique(answers)].min() < FOLDS
    kind = KFold if rare else StratifiedKFold
    folds = kind(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a label that a fold lacks, and steps cut short, cost a floor little; they are no news to the user
        for harmless in (ConvergenceWarning, FitFailedWarning, UndefinedMetricWarning):
            warnings.simplefilter("ignore", harmless)
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples|.*not present in all training")
        if known.shape[0] < 2 * FOLDS:
            return candidates[0].fit(known, truth)  # too few rows to hold any back
        scores = [np.nanmean(cross_val_score(one, tried, answers, cv=folds, scoring=scoring)) for one in candidates]
        return candidates[int(np.argmax(scores))].fit(known, truth)
