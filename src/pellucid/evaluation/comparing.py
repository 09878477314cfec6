"""Several systems on one test set: what each task measures, and how sure the figures and their differences are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pellucid.core.errors import ConfigError
from pellucid.evaluation import metrics
from pellucid.evaluation.floors import Task
from pellucid.evaluation.intervals import Estimate, Floats, Ints, bootstrap, percentiles, wilson
from pellucid.evaluation.metrics import Tally

Measure = Callable[[Floats], dict[str, Floats]]  # of weights [... rows]: metric -> its value for each weighting

MODEL = "model"
RATES = {"accuracy", "exact_match", "strict_match"}  # each row is right or wrong


@dataclass(frozen=True, kw_only=True)
class ClassGrade:
    """How one class, or type of span, fares."""

    label: str
    precision: float
    recall: float
    f1: Estimate
    support: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The model's headline metric less that of the best floor, on the same resamples."""

    floor: str
    metric: str
    estimate: Estimate


@dataclass(frozen=True)
class Comparison:
    """What there is to measure on a test set whose rows are counted by kind."""

    counts: Ints  # rows of each kind
    measures: dict[str, Measure]  # system, the model first
    classes: tuple[str, ...] = ()
    tally: Callable[[Floats], Tally] | None = None  # the model's, by class

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    def estimate(self, headline: str, seed: int) -> tuple[dict[str, dict[str, Estimate]], list[Estimate], Difference | None]:
        """Every system's metrics, the F1 of the model's classes, its headline less the best floor's: on the same resamples."""
        counts = self.counts.astype(np.float64)
        whole = {system: measure(counts) for system, measure in self.measures.items()}
        columns = [(system, metric) for system, found in whole.items() for metric in found]
        drawn = bootstrap(self.figures, self.counts, seed=seed)
        values = self.figures(counts)
        estimates: dict[str, dict[str, Estimate]] = {system: {} for system in whole}
        for column, (system, metric) in enumerate(columns):
            estimates[system][metric] = estimate(metric, values[column], drawn[:, column], self.rows)
        by_class = [percentiles(values[column], drawn[:, column]) for column in range(len(columns), len(values))]
        floors = [system for system in whole if system != MODEL]
        if not floors:
            return estimates, by_class, None
        best = max(floors, key=lambda system: estimates[system][headline].value)
        model, floor = columns.index((MODEL, headline)), columns.index((best, headline))
        gap = percentiles(values[model] - values[floor], drawn[:, model] - drawn[:, floor])
        return estimates, by_class, Difference(floor=best, metric=headline, estimate=gap)

    def figures(self, weights: Floats) -> Floats:
        """All metrics of all systems, then the F1 of the model's classes, [... figures]."""
        found = [figure for measure in self.measures.values() for figure in measure(weights).values()]
        together = np.stack(found, axis=-1)
        return together if self.tally is None else np.concatenate([together, self.tally(weights).f1], axis=-1)

    def class_grades(self, f1: list[Estimate]) -> tuple[ClassGrade, ...]:
        if self.tally is None:
            return ()
        found = self.tally(self.counts.astype(np.float64))
        columns = zip(self.classes, found.precision, found.recall, f1, found.true, strict=True)
        return tuple(
            ClassGrade(label=label, precision=float(precision), recall=float(recall), f1=one, support=int(support))
            for label, precision, recall, one, support in columns
        )


def estimate(metric: str, value: float, drawn: Floats, rows: int) -> Estimate:
    """By the bootstrap; where every row is right, or none, all resamples are alike, and Wilson's interval takes its place."""
    return wilson(value * rows, rows) if metric in RATES and value in (0, 1) else percentiles(value, drawn)


def compare(task: Task, truth: Any, systems: Mapping[str, Any], labels: tuple[str, ...]) -> Comparison:
    """What the task measures of each system's predictions, which have the form of the truth. Raises `ConfigError`."""
    if task == "classify":
        return classified(truth, systems, labels)
    if task == "multi":
        return labelled(truth, systems, labels)
    return {"regress": regressed, "tag": marked, "text": wrote, "prefer": preferred}[task](truth, systems)


def classified(truth: Ints, systems: Mapping[str, Any], labels: tuple[str, ...]) -> Comparison:
    said = {name: metrics.class_numbers(one, len(labels), f"the predictions of {name}") for name, one in systems.items()}
    for one in said.values():
        metrics.same_length(truth, one)
    # rows with the same truth and the same predictions are one kind
    kinds, counts = np.unique(np.stack([truth, *said.values()]), axis=1, return_counts=True)

    def measure(row: int) -> Measure:
        return lambda weights: metrics.classification(kinds[0], kinds[row], len(labels), weights)

    measures = {name: measure(row) for row, name in enumerate(said, start=1)}
    return Comparison(counts, measures, labels, partial(metrics.tally, kinds[0], kinds[1], len(labels)))


def labelled(truth: Any, systems: Mapping[str, Any], labels: tuple[str, ...]) -> Comparison:
    said = {name: metrics.flags(one, f"the predictions of {name}") for name, one in systems.items()}
    for one in said.values():
        metrics.same_length(truth, one)
    measures: dict[str, Measure] = {name: partial(metrics.multi_label, truth, one) for name, one in said.items()}
    return Comparison(ones(truth), measures, labels, partial(metrics.tally_flags, truth, said[MODEL]))


def regressed(truth: Any, systems: Mapping[str, Any]) -> Comparison:
    truth = column(truth, "the truth")
    said = {name: column(one, f"the predictions of {name}") for name, one in systems.items()}
    for one in said.values():
        metrics.same_length(truth, one)
    return Comparison(ones(truth), {name: partial(metrics.regression, truth, one) for name, one in said.items()})


def marked(truth: Any, systems: Mapping[str, Any]) -> Comparison:
    types = metrics.span_types(*(metrics.spans(row) for rows in (truth, *systems.values()) for row in rows))
    found = {name: metrics.tagged(truth, one, types) for name, one in systems.items()}
    measures: dict[str, Measure] = {name: partial(metrics.tagging, one) for name, one in found.items()}
    return Comparison(ones(truth), measures, types, partial(metrics.span_tally, found[MODEL]) if types else None)


def wrote(truth: Any, systems: Mapping[str, Any]) -> Comparison:
    def measure(predicted: Any) -> Measure:
        each = metrics.written(truth, predicted)
        return lambda weights: {metric: metrics.mean(values, weights) for metric, values in each.items()}

    return Comparison(ones(truth), {name: measure(one) for name, one in systems.items()})


def preferred(truth: Any, systems: Mapping[str, Any]) -> Comparison:
    if truth is not None:
        raise ConfigError("preferences have no truth: a margin above 0 is right; give None")
    said = {name: column(one, f"the margins of {name}") for name, one in systems.items()}
    for one in said.values():
        metrics.same_length(said[MODEL], one)
    return Comparison(ones(said[MODEL]), {name: partial(metrics.preference, one) for name, one in said.items()})


def column(values: Any, what: str) -> Floats:
    """Finite numbers [rows]."""
    found = metrics.numbers(values, what)
    if found.ndim != 1:
        raise ConfigError(f"{what} must be a list of numbers, not an array of shape {list(found.shape)}")
    return found


def ones(rows: Any) -> Ints:
    """Each row is a kind of its own."""
    return np.ones(len(rows), dtype=np.int64)
