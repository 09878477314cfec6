"""What pretraining buys: the same sentences learnt with few and many labels, from a pretrained model and without one."""

from __future__ import annotations

import csv
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from pellucid.core.files import atomic_path, write_json, write_text
from pellucid.core.progress import Progress, Silent
from pellucid.evaluation.figures import label_curve
from pellucid.evaluation.floors import LINEAR, MAJORITY, floors
from pellucid.evaluation.predict import label_scores
from pellucid.finetuning import teach, trained
from pellucid.loading import open_model
from pellucid.text.tabular import Records, given
from pellucid.training.finetune_recipe import FinetuneRecipe

BUDGETS = (200, 1000)  # labels; and all there are
SCRATCH, TUNED, HEAD = "from scratch", "pretrained, then fine-tuned", "pretrained and frozen, head alone"
HELD_OUT = {"validation_fraction": 0.0, "test_fraction": 0.0}  # all labels are to learn from, and lengths are fixed

Row = tuple[str, str]  # a text and its label


@dataclass(frozen=True)
class Table:
    """Accuracies on the test rows: of each system, for each number of labels, one for each seed."""

    found: Mapping[str, Mapping[int, Sequence[float]]]

    def lines(self) -> list[str]:
        """The table as text: mean and standard deviation over seeds."""
        budgets = list(next(iter(self.found.values())))
        width = max(map(len, self.found)) + 2
        lines = [" " * width + "".join(f"{f'{budget:,} labels':>16}" for budget in budgets)]
        for name, row in self.found.items():
            cells = (f"{mean(values):.1%} ± {spread(values):.1%}".replace("%", "") for values in row.values())
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>16}" for cell in cells))
        return lines

    def picture(self) -> str:
        """The learning curves, as SVG."""
        budgets = list(next(iter(self.found.values())))
        rows = {name: ([mean(v) for v in row.values()], [spread(v) for v in row.values()]) for name, row in self.found.items()}
        return label_curve(budgets, rows)


def spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def held_out(rows: Sequence[Row], count: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and `count` to test on, no text in both."""
    order = list(dict(rows).items())  # a text that is there twice, once
    random.Random(seed).shuffle(order)
    return order[count:], order[:count]


def compare(
    model: Path,
    train: Sequence[Row],
    test: Sequence[Row],
    out: Path,
    *,
    settings: Mapping[str, Mapping[str, Any]],
    seeds: int,
    progress: Progress,
) -> Table:
    """Fine-tune `model` with few and many labels, and write table and picture, and the graded model of all labels, into `out`.

    `settings` are the sections of the recipe of each way to use the network; `TUNED` is the one that is kept.
    """
    file = out / "test.csv"
    write_rows(file, test)
    found: dict[str, dict[int, list[float]]] = {name: {} for name in (*settings, LINEAR, MAJORITY)}
    budgets = [budget for budget in BUDGETS if budget < len(train)] + [len(train)]
    with (
        progress.task("fine-tuning", len(budgets) * seeds * len(settings), "runs") as task,
        tempfile.TemporaryDirectory() as tmp,
    ):
        for budget, seed in product(budgets, range(seeds)):
            rows = drawn(train, budget, seed)
            for name, sections in settings.items():
                recipe = FinetuneRecipe.of({**sections, "data": HELD_OUT}).override({"training": {"seed": seed}})
                folder = Path(tmp) / f"{name} {budget} {seed}"
                trained(recipe, model, folder, sources=in_memory(rows), progress=Silent())
                found[name].setdefault(budget, []).append(accuracy(folder, test))
                task.advance(1, note=f"{budget:,} labels, {name}")
            for name, share in floor_accuracies(rows, test).items():
                found[name].setdefault(budget, []).append(share)
    table = Table({name: {budget: row[budget] for budget in budgets} for name, row in found.items()})
    write_json(out / "labels.json", {name: {str(n): values for n, values in row.items()} for name, row in table.found.items()})
    write_text(out / "labels.svg", table.picture())
    kept = FinetuneRecipe.of({**settings[TUNED], "data": {"test": [str(file)], "validation_fraction": 0.0}})
    teach(kept, model, out / "classifier", sources=in_memory(train), force=(out / "classifier").exists(), progress=Silent())
    return table


def in_memory(rows: Sequence[Row]) -> Records:
    return given([text for text, _ in rows], [label for _, label in rows])


def accuracy(model: Path, test: Sequence[Row]) -> float:
    """The share of test rows whose label a model predicts."""
    network, tokenizer, _ = open_model(model)
    best = label_scores(network, tokenizer, [text for text, _ in test]).argmax(axis=1)
    return float(mean(network.config.labels[at] == label for at, (_, label) in zip(best, test, strict=True)))


def floor_accuracies(rows: Sequence[Row], test: Sequence[Row]) -> dict[str, float]:
    """The same of the floors that learn from these rows."""
    labels = sorted({label for _, label in rows})
    texts, truth = [text for text, _ in rows], np.array([labels.index(label) for _, label in rows])
    wanted = np.array([labels.index(label) for _, label in test])
    found = floors("classify", texts, truth, [text for text, _ in test], labels=labels)
    return {name: float((np.asarray(one.values) == wanted).mean()) for name, one in found.items()}


def drawn(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """As many rows of each label, chosen by the seed."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    if count == len(order):
        return order
    labels = sorted({label for _, label in order})
    return [row for label in labels for row in [r for r in order if r[1] == label][: count // len(labels)]]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
