"""A classifier or a tagger on labelled rows: its grades, beside the floors where there are rows to train these on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from pellucid.core.errors import CorpusError
from pellucid.core.progress import Progress, Silent
from pellucid.evaluation import floors as floors_of
from pellucid.evaluation.floors import Task, Weights
from pellucid.evaluation.grading import Grades, grade
from pellucid.evaluation.predict import TOKENS, check_labels, label_scores, word_tags
from pellucid.network.config import ModelConfig
from pellucid.network.network import Network
from pellucid.text.columns import Columns
from pellucid.text.encoded import Long
from pellucid.text.labelled import Labelled, Reading, classes_of, read_rows
from pellucid.text.labelled import Task as Reads
from pellucid.text.tabular import Sources
from pellucid.text.tags import OUTSIDE
from pellucid.text.tokenizer import Tokenizer

PROBLEMS: dict[str, Task] = {"single": "classify", "multi": "multi", "regression": "regress"}


def evaluate_labels(
    network: Network,
    tokenizer: Tokenizer,
    data: Sources,
    *,
    train: Sources | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    column_names: Sequence[str] = (),
    multi_separator: str | None = None,
    on_empty: Literal["error", "drop"] = "error",
    long: Long = "error",
    encoding: str | None = None,
    on_bad_bytes: Literal["error", "replace"] = "error",
    html_breaks: bool = False,
    batch_tokens: int = TOKENS,
    temperature: float | None = None,
    name: str,
    progress: Progress | None = None,
) -> Grades:
    """The grades on the rows of `data`, with intervals; with `train`, beside floors that learn from its rows.

    With a `temperature` the probabilities are those that it makes. Raises a `PellucidError`, with the place for a row whose
    label the model does not know.
    """
    check_labels(network, "classify", "tag")
    task = task_of(network.config)
    columns = Columns(text=text_column, label=label_column, names=tuple(column_names))
    reading = Reading(
        encoding=encoding,
        on_bad_bytes=on_bad_bytes,
        html_breaks=html_breaks,
        on_empty=on_empty,
        multi_separator=multi_separator,
    )
    reads: Reads = "tag" if task == "tag" else "regress" if task == "regress" else "classify"
    rows, learnt = (
        read_rows(part, columns, reads, reading=reading, few=False).rows if part is not None else [] for part in (data, train)
    )
    (progress or Silent()).say(f"grading on {len(rows):,} rows")
    options: dict[str, Any] = {"long": long, "batch_tokens": batch_tokens, "temperature": temperature}
    found = grade_rows(network, tokenizer, rows, train=learnt, name=name, **options)
    if temperature is None or task in ("tag", "regress"):
        return found
    note = f"Probabilities are those at the temperature {temperature:.2f}, which fine-tuning found on validation data."
    return replace(found, notes=(*found.notes, note))


def grade_rows(
    network: Network,
    tokenizer: Tokenizer,
    rows: Sequence[Labelled],
    *,
    train: Sequence[Labelled] = (),
    validation: Sequence[Labelled] = (),
    longest: int | None = None,
    long: Long = "error",
    class_weights: Weights = "none",
    batch_tokens: int = TOKENS,
    temperature: float | None = None,
    name: str,
) -> Grades:
    """Grades on labelled rows; the floors learn from those of `train`, and a temperature is fitted on those of `validation`."""
    config, parts = network.config, {"test": rows, "train": train, "validation": validation}
    task = task_of(config)
    truth = {part: truth_of(found, config) for part, found in parts.items()}
    options: dict[str, Any] = {"longest": longest, "long": long, "batch_tokens": batch_tokens}
    known: Any = {}
    if task == "tag":
        words = {part: [row.words for row in found if row.words] for part, found in parts.items()}
        listed = {part: [row.words() for row in found] for part, found in words.items()}
        if train:
            known = floors_of.floors("tag", listed["train"], truth["train"], listed["test"])
        predicted = word_tags(network, tokenizer, words["test"], place=lambda number: rows[number].place, **options)
        return grade("tag", truth["test"], predicted=predicted, texts=listed["test"], floors=known, name=name)
    texts = {part: [row.text for row in found] for part, found in parts.items()}
    labels = () if task == "regress" else config.labels
    if train:
        weights: Weights = "none" if task == "regress" else class_weights
        examples = texts["train"], truth["train"], texts["test"]
        known = floors_of.floors(task, *examples, labels=labels, class_weights=weights)

    def scores(part: str) -> Any:
        found = label_scores(network, tokenizer, texts[part], place=lambda number: parts[part][number].place, **options)
        return found.astype(np.float64) / (temperature or 1.0)

    if task == "regress":
        return grade(task, truth["test"], predicted=scores("test")[:, 0], floors=known, name=name)
    return grade(
        task,
        truth["test"],
        labels=labels,
        scores=scores("test"),
        texts=texts["test"],
        floors=known,
        validation=(scores("validation"), truth["validation"]) if validation else None,
        name=name,
    )


def task_of(config: ModelConfig) -> Task:
    """What a network with a head for labels does."""
    return "tag" if config.head == "tag" else PROBLEMS[config.problem]


def truth_of(rows: Sequence[Labelled], config: ModelConfig) -> Any:
    """The labels of rows: class numbers [rows], 0 and 1 [rows labels], numbers [rows], or the tags of each row's words.

    Raises `CorpusError` for a label that the network does not have.
    """
    task, numbers = task_of(config), {name: number for number, name in enumerate(config.labels)}
    if task == "regress":
        return np.array([row.label for row in rows], dtype=np.float64)
    for row in rows:
        if strange := next(
            (label for label in classes_of(row) if label not in numbers and not (task == "tag" and label == OUTSIDE)), None
        ):
            shown = ", ".join(config.labels[:10]) + (", ..." if len(config.labels) > 10 else "")
            raise CorpusError(
                f"{row.place}: the label {strange!r} is none of the model's {len(config.labels)} ({shown}); correct it, or "
                "leave the row out"
            )
    if task == "tag":
        return [list(classes_of(row)) for row in rows]
    if task == "classify":
        if several := next((row for row in rows if isinstance(row.label, tuple)), None):
            raise CorpusError(f"{several.place}: the row has a list of labels, but the model gives each text one; give it one")
        return np.array([numbers[str(row.label)] for row in rows], dtype=np.int64)
    found = np.zeros((len(rows), len(config.labels)), dtype=np.int64)
    for at, row in enumerate(rows):
        found[at, [numbers[name] for name in classes_of(row)]] = 1
    return found
