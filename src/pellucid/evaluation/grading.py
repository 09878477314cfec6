"""Grades: every metric with its interval, beside the floors, and one sentence that says who wins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
from markupsafe import Markup

from pellucid.core.errors import ConfigError
from pellucid.core.pages import page
from pellucid.evaluation import calibration, metrics
from pellucid.evaluation.calibration import COLDEST, HOTTEST, Reliability, fit_temperature
from pellucid.evaluation.comparing import MODEL, ClassGrade, Difference, compare
from pellucid.evaluation.examples import Answer, Mistake, Tagging, answers_shown, segments, surest_mistakes, wrong_taggings
from pellucid.evaluation.floors import Predictions, Task
from pellucid.evaluation.intervals import Estimate, Floats, Ints, bootstrap, percentiles

HEADLINE = {
    "classify": "accuracy",
    "multi": "micro_f1",
    "regress": "r2",
    "tag": "span_f1",
    "text": "rouge_l",
    "prefer": "accuracy",
}
NAMES = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "micro_f1": "micro-F1", "matthews": "Matthews correlation",
    "exact_match": "exact match", "strict_match": "same characters", "hamming": "wrong decisions (Hamming)",
    "mse": "mean squared error", "mae": "mean absolute error", "r2": "R2", "pearson": "Pearson correlation",
    "spearman": "Spearman correlation", "span_f1": "span F1", "span_precision": "span precision", "span_recall": "span recall",
    "token_accuracy": "token accuracy", "rouge_l": "ROUGE-L", "mean_margin": "mean margin",
    "ece": "calibration error (ECE)", "brier": "Brier score", "nll": "negative log-likelihood",
}  # fmt: skip
PLAIN = {"matthews", "mse", "mae", "r2", "pearson", "spearman", "mean_margin", "brier", "nll"}  # not shown as per cent
LISTED, WORST, SHOWN, FEW = 10, 5, 20, 50  # names in a note; classes printed; classes not folded away; rows that are too few


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Whether the model is as often right as it says, before and after its logits are divided by the temperature."""

    before: dict[str, Estimate]
    classwise_ece: float | None  # of single labels
    curve: Reliability
    temperature: float | None = None  # None: there were no validation logits to fit it on
    after: dict[str, Estimate] | None = None
    curve_after: Reliability | None = None


@dataclass(frozen=True, kw_only=True)
class Grades:
    """How good a model is at a task; as JSON the fields have these names.

    An estimate is a value with its 95 % interval: {"value", "low", "high"}. Metrics have the names that are keys of `NAMES`;
    shares are in 0 ... 1. What does not apply to the task is null or empty.
    """

    task: Task  # a classifier of several labels is "multi", a writer of answers "text"
    name: str  # what a page calls the model
    rows: int  # graded
    labels: tuple[str, ...]  # in the order of the logits
    metrics: dict[str, dict[str, Estimate]]  # system (MODEL first, then the floors) -> metric -> estimate
    headline: str  # the metric that the verdict is about
    difference: Difference | None  # None: there are no floors
    verdict: str
    classes: tuple[ClassGrade, ...] = ()  # the model's, in the order of `labels`; of tags the types of spans
    confusion: Ints | None = None  # [true predicted], rows; of single labels
    calibration: Calibration | None = None  # of classifiers
    mistakes: tuple[Mistake, ...] = ()  # of classifiers
    answers: tuple[Answer, ...] = ()  # of texts the first ones, of preferences the worst
    taggings: tuple[Tagging, ...] = ()  # of tags the worst rows
    notes: tuple[str, ...] = ()  # what a reader should know before believing the figures

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and finite numbers."""
        found: dict[str, Any] = plain(asdict(self))
        return found

    def lines(self) -> list[str]:
        """What a command prints: the verdict, the metrics beside the floors, the worst classes, calibration."""
        systems = list(self.metrics)
        rows = [["", *systems]] + [
            [NAMES[metric], *(shown(metric, self.metrics[system][metric]) for system in systems)]
            for metric in self.metrics[MODEL]
        ]
        lines = [self.verdict, "", f"{self.rows:,} rows; in brackets 95 % intervals", *aligned(rows)]
        if self.classes:
            worst = self.worst()
            kind, counted = ("type", "spans") if self.task == "tag" else ("class", "rows")
            title = f"{kind}, the worst {WORST} of {len(worst)}" if len(worst) > WORST else f"{kind}, worst first"
            lines += ["", *aligned([[title, "F1", "precision", "recall", counted], *map(class_cells, worst[:WORST])])]
        if self.calibration:
            before, after = self.calibration.before, self.calibration.after
            head = ["", "as it is", *([f"temperature {self.calibration.temperature:.2f}"] if after else [])]
            body = [[NAMES[m], shown(m, before[m]), *([shown(m, after[m])] if after else [])] for m in before]
            lines += ["", *aligned([head, *body])]
        return [*lines, *([""] if self.notes else []), *self.notes]

    def worst(self) -> list[ClassGrade]:
        """The classes by F1, worst first; of equals the larger first."""
        return sorted(self.classes, key=lambda one: (one.f1.value, -one.support))

    def to_html(self) -> str:
        """One self-contained page."""
        return page("graded", name=self.name, rows=self.rows, section=self.section())

    def section(self) -> Markup:
        """The verdict, figures, pictures and examples, as a part of a page."""
        from pellucid.evaluation.figures import confusion_picture, reliability_picture

        confusion = reliability = None
        if self.confusion is not None:
            confusion = Markup(confusion_picture(self.confusion, self.labels))  # our own SVG
        if self.calibration:
            curves = {"as it is": self.calibration.curve}
            if self.calibration.curve_after:
                curves[f"temperature {self.calibration.temperature:.2f}"] = self.calibration.curve_after
            reliability = Markup(reliability_picture(curves))
        tools: dict[str, Any] = {"names": NAMES, "shown": shown, "cells": class_cells, "segments": segments, "few": SHOWN}
        return Markup(page("grades", grades=self, confusion=confusion, reliability=reliability, **tools))


def grade(
    task: Task,
    truth: Any,
    *,
    labels: Sequence[str] = (),
    scores: Any = None,
    predicted: Any = None,
    texts: Sequence[Any] = (),
    floors: Mapping[str, Predictions] | None = None,
    validation: tuple[Any, Any] | None = None,
    name: str = MODEL,
    seed: int = 0,
) -> Grades:
    """Grade predictions on a test set.

    What `truth` and the predictions are depends on the task:
    - classify: class numbers [rows], and `scores` as logits [rows labels];
    - multi: 0 and 1 [rows labels], and `scores` as logits [rows labels], of which those above 0 are predicted;
    - regress: numbers [rows], and `predicted`;
    - tag: tags "B-x", "I-x", "O" of each row's words, and `predicted`;
    - text: strings, and `predicted`;
    - prefer: None, and `scores` as margins [rows] (the chosen answer's score less the rejected one's).

    `validation` are logits and truth of rows that are not the test's: the temperature is fitted there. With `texts`, single
    rows are shown: of a classifier (a text for each row) the surest mistakes, of a tagger (the words of each row) the rows with
    the most wrong words, of a writer (the question of each) the first answers, of preferences (question, answer chosen,
    answer rejected) those ranked most clearly the other way round. `name` is what a page calls the model. Raises `ConfigError`
    for what does not fit.
    """
    check_asked(task, labels, scores, predicted, texts, validation)
    others = {key: one.values for key, one in (floors or {}).items()}
    logits = None
    if task in ("classify", "multi"):
        logits, truth = calibration.checked(scores, truth)
        if validation is not None and np.shape(validation[0])[1:] != logits.shape[1:]:
            raise ConfigError(
                f"validation logits of shape {list(np.shape(validation[0]))} are not for the {logits.shape[1]} labels graded"
            )
        if logits.shape[1] != len(labels) or (truth.ndim == 2) != (task == "multi"):
            raise ConfigError(
                f"the task {task!r} with {len(labels)} labels does not fit logits of shape {list(logits.shape)} and a truth of "
                f"shape {list(truth.shape)}"
            )
        predicted = logits > 0 if task == "multi" else logits.argmax(axis=1)
    elif task == "prefer":
        predicted = scores
    comparison = compare(task, truth, {MODEL: predicted, **others}, tuple(labels))
    if len(texts) not in (0, comparison.rows):
        raise ConfigError(f"there are {len(texts):,} texts for {comparison.rows:,} rows; give one for each")
    estimates, class_f1, difference = comparison.estimate(HEADLINE[task], seed)
    temperature = None if validation is None else fit_temperature(*validation)
    classes = comparison.class_grades(class_f1)
    return Grades(
        task=task,
        name=name,
        rows=comparison.rows,
        labels=tuple(labels),
        metrics=estimates,
        headline=HEADLINE[task],
        difference=difference,
        verdict=verdict(task, comparison.rows, estimates[MODEL][HEADLINE[task]], difference),
        classes=classes,
        confusion=metrics.confusion(truth, predicted, len(labels)) if task == "classify" else None,
        calibration=None if logits is None else calibrate(logits, truth, temperature, seed),
        mistakes=() if logits is None else surest_mistakes(logits / (temperature or 1), truth, labels, texts),
        answers=answers_shown(task, texts, truth, predicted),
        taggings=wrong_taggings(texts, truth, predicted) if task == "tag" else (),
        notes=tuple(notes(comparison.rows, classes, temperature)),
    )


def check_asked(
    task: str, labels: Sequence[str], scores: Any, predicted: Any, texts: Sequence[Any], validation: tuple[Any, Any] | None
) -> None:
    """Raises `ConfigError` for what a task needs and has not, or has and cannot use."""
    if task not in get_args(Task):
        raise ConfigError(f"the task {task!r} is not known; choose {', '.join(get_args(Task))}")
    scored, labelled = task in ("classify", "multi", "prefer"), task in ("classify", "multi")
    if (scores is None) == scored or (predicted is None) != scored:
        raise ConfigError(
            f"the task {task!r} is graded from {'scores' if scored else 'predicted'}; give these and nothing else"
        )
    if labelled != bool(labels):
        raise ConfigError(
            f"the task {task!r} {'needs the names of its labels' if labelled else 'has no labels; leave them out'}"
        )
    for what, given, useful in (("texts", texts, task != "regress"), ("validation", validation, labelled)):
        if given is not None and len(given) and not useful:
            raise ConfigError(f"{what} have no effect on the grades of the task {task!r}; leave them out")


def verdict(task: Task, rows: int, own: Estimate, difference: Difference | None) -> str:
    """One plain sentence."""
    metric = HEADLINE[task]
    if difference is None:
        if task == "prefer":
            better = "better than" if own.low > 0.5 else "worse than" if own.high < 0.5 else "no better than"
            return f"The model ranks {shown(metric, own)} of the pairs rightly, {better} tossing a coin."
        return f"The model reaches {shown(metric, own)} {NAMES[metric]}; no floor was given to compare it with."
    floor, by = difference.floor, difference.estimate
    scale, digits, unit = (1, 3, "") if metric in PLAIN else (100, 1, "points of ")
    gap, low, high = (f"{scale * value:.{digits}f}" for value in (by.value, by.low, by.high))
    if by.low > 0:
        return f"The model beats {floor} by {gap} {unit}{NAMES[metric]} (95 % interval {low} to {high})."
    if by.high < 0:
        gap, low, high = (f"{-scale * value:.{digits}f}" for value in (by.value, by.high, by.low))
        lost = f"{gap} {unit}{NAMES[metric]} (95 % interval {low} to {high})"
        return f"The floor wins: {floor} beats the model by {lost}; use it instead, or give more labels."
    between = f"the difference, {gap} {unit}{NAMES[metric]}, has a 95 % interval that contains 0 ({low} to {high})"
    return f"{floor[0].upper()}{floor[1:]} is as good, as far as {rows:,} rows can tell: {between}."


def calibrate(logits: Floats, truth: Any, temperature: float | None, seed: int) -> Calibration:
    """The figures as they are, and with the temperature, on the same resamples."""
    scaled = [logits, *([] if temperature is None else [logits / temperature])]
    tables = [calibration.row_figures(one, truth) for one in scaled]

    def statistic(weights: Floats) -> Floats:
        return np.stack([figure for rows in tables for figure in calibration.figures(rows, weights).values()], axis=-1)

    drawn = iter(bootstrap(statistic, np.ones(len(logits), dtype=np.int64), seed=seed).T)
    estimates = [
        {metric: percentiles(float(value), next(drawn)) for metric, value in calibration.figures(rows).items()}
        for rows in tables
    ]
    chances = [calibration.probabilities(one, multi=truth.ndim == 2) for one in scaled]
    curves = [calibration.reliability(*calibration.decisions(one, truth)) for one in chances]
    return Calibration(
        before=estimates[0],
        classwise_ece=float(calibration.classwise_error(chances[0], truth).mean()) if truth.ndim == 1 else None,
        curve=curves[0],
        temperature=temperature,
        after=None if temperature is None else estimates[1],
        curve_after=None if temperature is None else curves[1],
    )


def notes(rows: int, classes: Sequence[ClassGrade], temperature: float | None) -> list[str]:
    """What a reader should know before believing the figures."""
    found = []
    if rows < FEW:
        found.append(f"There are only {rows} rows: intervals from so few are too narrow.")
    if missing := [one.label for one in classes if one.support == 0]:
        named = ", ".join(missing[:LISTED]) + (" ..." if len(missing) > LISTED else "")
        found.append(f"{len(missing)} of {len(classes)} classes have no row in the test set: {named}.")
    if temperature is not None and temperature <= 1.01 * COLDEST:
        found.append(
            f"The temperature {temperature:.2f} is at its limit: the model is right far more often than it says, as after too "
            "short a training, or there are too few validation rows."
        )
    if temperature is not None and temperature >= 0.99 * HOTTEST:
        found.append(
            f"The temperature {temperature:.2f} is at its limit: the model's probabilities say nothing about its labels."
        )
    return found


def shown(metric: str, estimate: Estimate) -> str:
    """A figure and its interval: 81.2 % [79.0, 83.4]."""
    if metric in PLAIN:
        size = max(map(abs, (estimate.value, estimate.low, estimate.high)))
        digits = 4 if size < 10 else 2 if size < 1000 else 0
        return f"{estimate.value:,.{digits}f} [{estimate.low:,.{digits}f}, {estimate.high:,.{digits}f}]"
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def class_cells(one: ClassGrade) -> list[str]:
    return [one.label, shown("f1", one.f1), f"{100 * one.precision:.1f} %", f"{100 * one.recall:.1f} %", f"{one.support:,}"]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width on a terminal, where some letters take two places."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [" " * (width - cell_len(cell)) + cell for width, cell in zip(widths[1:], others, strict=True)]
        lines.append("  ".join([first + " " * (widths[0] - cell_len(first)), *cells]).rstrip())
    return lines


def plain(value: Any) -> Any:
    """As JSON has it; what is no finite number, such as the accuracy of no rows, is null."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
