"""Learning labels: classes of texts, numbers, and tags of their words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.network.config import ModelConfig, Pooling, Problem
from pellucid.network.labels import with_labels
from pellucid.network.layers import Head
from pellucid.network.network import Network
from pellucid.text.alignment import encode_words
from pellucid.text.columns import Columns
from pellucid.text.encoded import encode_texts
from pellucid.text.examples import Example, ExampleBatches
from pellucid.text.labelled import Labelled, LabelledRows, Reading, classes_of, label_names, read_rows
from pellucid.text.splits import Part, split
from pellucid.text.tabular import Sources
from pellucid.text.tokenizer import Tokenizer
from pellucid.training.finetune_recipe import FinetuneRecipe
from pellucid.training.label_objective import LabelPrediction
from pellucid.training.lesson import PARTS, Lesson, Start, digest
from pellucid.training.loop import Score
from pellucid.training.scores import score_examples


def label_lesson(recipe: FinetuneRecipe, start: Start, sources: Sources | None) -> Lesson:
    """Texts with classes, numbers, or tags of their words."""
    data, task, training = recipe.data, recipe.task, recipe.training
    assert task.name in ("classify", "tag", "regress")
    kind = task.name
    columns = Columns(data.text_column, data.label_column, data.split_column, tuple(data.column_names))
    reading = Reading(
        encoding=data.encoding,
        on_bad_bytes=data.on_bad_bytes,
        html_breaks=data.html_breaks,
        on_empty=data.on_empty,
        multi_separator=data.multi_separator,
    )

    def read(given: Sources, few: bool) -> LabelledRows:
        return read_rows(given, columns, kind, reading=reading, max_labels=data.max_labels, few=few)

    read_of_train = read(data.train if sources is None else sources, True)
    others: dict[str, Part] = {
        "validation": read(data.validation, False).rows if data.validation else data.validation_fraction,
        "test": read(data.test, False).rows if data.test else data.test_fraction,
    }
    splits = split(
        read_of_train.rows, **others, seed=data.split_seed, empty=read_of_train.empty, repaired=read_of_train.repaired
    )
    rows = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    labels = (read_of_train.label_column,) if kind == "regress" else in_order(label_names(splits.train), start.config)
    problem: Problem = "regression" if kind == "regress" else "multi" if read_of_train.multi else "single"
    refuse_idle(recipe, start.config, problem)
    coded = coder(labels, problem)
    examples: dict[str, list[Example]] = {}
    findings = list(splits.findings.sentences())
    for part, members in rows.items():
        examples[part], long = encoded(start.tokenizer, members, coded, recipe, start.config)
        findings += [f"{long:,} texts in {part} exceed the context; they are {data.long}"] if long else []
    weights = balanced(examples["train"], len(labels), problem) if task.class_weights == "balanced" else None
    numbers = np.array([row.label for row in splits.train], dtype=np.float64) if kind == "regress" else np.zeros(1)
    if kind == "regress":
        check_numbers(numbers, read_of_train.label_column)
    objective = LabelPrediction(
        problem, weights=weights, smoothing=task.smoothing, variance=float(numbers.var()) if kind == "regress" else 1.0
    )
    pooling = usual_pooling(start.config) if task.pooling is None else task.pooling

    def fit(network: Network) -> Network:
        head = "tag" if kind == "tag" else "classify"
        before = network.head
        network = with_labels(network, head=head, labels=labels, problem=problem, pooling=pooling, seed=training.seed)  # type: ignore[arg-type]
        if kind == "regress":
            standardise(network.scorer, before, numbers)
        return network

    size = min(training.batch_size, len(examples["train"]))
    batches = ExampleBatches(examples["train"], batch_size=size, seed=training.seed, pad=start.pad)
    held_out = examples["validation"]

    def validated(network: Network) -> Score:
        return score_examples(network, objective, held_out, pad=start.pad, batch_tokens=training.micro_tokens)

    return Lesson(
        tokenizer=start.tokenizer,
        objective=objective,
        batches=batches,
        batches_per_epoch=batches.batches_per_epoch,
        validate=validated if held_out else None,
        fit=fit,
        rows=rows,
        labels=labels,
        multi=problem == "multi",
        unit=float(numbers.std()) if kind == "regress" else 1.0,
        findings=tuple(findings),
        fingerprint={
            "labelled data": digest([[(row.text, row.label) for row in rows[part]] for part in PARTS]),
            "set of labels": digest(labels),
        },
    )


def check_numbers(numbers: np.ndarray[Any, np.dtype[np.float64]], column: str) -> None:
    """Raise `CorpusError` for numbers that fp32 does not tell apart, or cannot square."""
    with np.errstate(over="ignore", under="ignore"):
        largest, spread = float(np.abs(numbers).max()), float(numbers.std())
    if not max(1e-15, 1e-5 * largest) < spread < 1e15:
        raise CorpusError(
            f"the numbers of column {column!r} go up to {largest:g} and differ by {spread:g} (standard deviation), which "
            "single precision cannot work with; subtract a number from all of them, or divide them by one"
        )


def standardise(head: Head, before: Head | None, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """Let a new head begin with the mean of the numbers, and with scores as far apart as they are; one that is kept stays."""
    if before is None or head.weight.data_ptr() != before.weight.data_ptr():
        with torch.no_grad():
            head.weight.mul_(float(numbers.std()))
            if head.bias is not None:
                head.bias.fill_(float(numbers.mean()))


def in_order(names: Sequence[str], config: ModelConfig) -> tuple[str, ...]:
    """The labels in the order of the model's own head, if it has one for them; a head that is there is kept."""
    return config.labels if set(names) == set(config.labels) else tuple(names)


def usual_pooling(config: ModelConfig) -> Pooling:
    """What a classifier reads, unless a user says: what its head reads already, else the mean."""
    return config.pooling if config.head == "classify" else "mean"


def refuse_idle(recipe: FinetuneRecipe, config: ModelConfig, problem: Problem) -> None:
    """Raise `ConfigError` for settings that have no effect on such labels, or in such a network."""
    if recipe.task.smoothing and problem == "multi":
        raise ConfigError("task.smoothing has no effect on texts that can have several labels; leave it out")
    if recipe.task.pooling is not None and config.architecture == "bag-of-words":
        raise ConfigError("task.pooling has no effect on a bag of words, which is a mean already; leave it out")


def coder(labels: Sequence[str], problem: Problem) -> Callable[[Labelled], Any]:
    """From a row's label to a target."""
    numbers = {name: number for number, name in enumerate(labels)}

    def code(row: Labelled) -> Any:
        if problem == "regression":
            return row.label
        if row.words is not None:
            return [numbers[name] for name in classes_of(row)]
        if problem == "multi":
            target = np.zeros(len(labels), dtype=np.float32)
            target[[numbers[name] for name in classes_of(row)]] = 1.0
            return target
        return numbers[str(row.label)]

    return code


def encoded(
    tokenizer: Tokenizer, rows: Sequence[Labelled], code: Callable[[Labelled], Any], recipe: FinetuneRecipe, config: ModelConfig
) -> tuple[list[Example], int]:
    """Rows as tokens with their targets, and how many were too long."""
    longest = recipe.training.context_length or config.context_length
    options: dict[str, Any] = {"longest": longest, "long": recipe.data.long, "place": lambda number: rows[number].place}
    if recipe.task.name == "tag":
        words = [row.words for row in rows if row.words is not None]
        found = encode_words(tokenizer, words, **options)
        return [Example(window.ids, window.targets(code(rows[window.row]))) for window in found.windows], found.long
    texts = encode_texts(tokenizer, [row.text for row in rows], **options)
    return [Example(ids, code(rows[number])) for ids, number in zip(texts.windows, texts.texts, strict=True)], texts.long


def balanced(examples: Sequence[Example], labels: int, problem: Problem) -> torch.Tensor:
    """Weights [labels] that give each label the same share in the loss: targets / (labels x those of this label)."""
    if problem == "multi":
        counts = np.sum([np.asarray(example.target) for example in examples], axis=0)
    else:
        targets = np.concatenate([np.atleast_1d(example.target) for example in examples])
        counts = np.bincount(targets[targets >= 0].astype(np.int64), minlength=labels)
    return torch.tensor(counts.sum() / (labels * np.maximum(counts, 1)), dtype=torch.float32)
