"""What pretraining buys: the same sentences learnt with few and many labels, from a pretrained model and without one."""

from __future__ import annotations

import csv
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pellucid.core.files import atomic_path, write_json, write_text
from pellucid.core.progress import Progress, Silent
from pellucid.evaluation.figures import label_curve
from pellucid.evaluation.floors import LINEAR, MAJORITY
from pellucid.finetuning import Taught, teach
from pellucid.text.tabular import given
from pellucid.training.finetune_recipe import FinetuneRecipe

BUDGETS = (200, 1000)  # labels; and all there are
SCRATCH, TUNED, HEAD = "from scratch", "pretrained, then fine-tuned", "pretrained and frozen, head alone"
SYSTEMS = (SCRATCH, TUNED, HEAD, LINEAR, MAJORITY)

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
    settings: Mapping[str, Any],
    seeds: int,
    progress: Progress,
) -> Table:
    """Fine-tune `model` with few and many labels, and write table and picture, and the model of all labels, into `out`.

    `settings` are the sections of the recipe of each of the three ways to use the network.
    """
    file = out / "test.csv"
    write_rows(file, test)
    found: dict[str, dict[int, list[float]]] = {name: {} for name in SYSTEMS}
    budgets = [budget for budget in BUDGETS if budget < len(train)] + [len(train)]
    with (
        progress.task("fine-tuning", len(budgets) * seeds * len(settings), "runs") as task,
        tempfile.TemporaryDirectory() as tmp,
    ):
        for budget in budgets:
            for seed in range(seeds):
                rows = drawn(train, budget, seed)
                for name, sections in settings.items():
                    last = budget == len(train) and seed == seeds - 1 and name == TUNED
                    folder = out / "classifier" if last else Path(tmp) / f"{name} {budget} {seed}"
                    taught = learnt(model, rows, file, folder, sections, seed)
                    for system, accuracy in accuracies(taught, name):
                        found[system].setdefault(budget, []).append(accuracy)
                    task.advance(1, note=f"{budget:,} labels, {name}")
    table = Table({name: {budget: row[budget] for budget in budgets} for name, row in found.items()})
    write_json(
        out / "labels.json",
        {name: {str(budget): values for budget, values in row.items()} for name, row in table.found.items()},
    )
    write_text(out / "labels.svg", table.picture())
    return table


def learnt(model: Path, rows: Sequence[Row], test: Path, out: Path, sections: Mapping[str, Any], seed: int) -> Taught:
    """One run, whose length is fixed: there are no labels to spare for validation."""
    recipe = FinetuneRecipe.of({**sections, "data": {"test": [str(test)], "validation_fraction": 0.0}})
    recipe = recipe.override({"training": {"seed": seed}})
    texts, labels = zip(*rows, strict=True)
    return teach(recipe, model, out, sources=given(texts, labels), force=out.exists(), progress=Silent())


def accuracies(taught: Taught, name: str) -> Iterator[tuple[str, float]]:
    """The model's accuracy; and the floors', which are the same for all that learn from these labels, once."""
    assert taught.grades is not None
    for system, metrics in taught.grades.metrics.items():
        if system == "model":
            yield name, metrics["accuracy"].value
        elif name == TUNED:
            yield system, metrics["accuracy"].value


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
