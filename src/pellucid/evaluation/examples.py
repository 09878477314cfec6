"""Single rows of a test set for people to read: mistakes, answers, words with their tags."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.core.errors import ConfigError
from pellucid.evaluation import calibration, metrics
from pellucid.evaluation.intervals import Floats
from pellucid.text.tags import spans_of_tags

MISTAKES, ANSWERS = 20, 10


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A row that the model got wrong while it was sure."""

    row: int  # of the rows graded, the first is 0; so in the other kinds of examples
    text: str
    truth: str
    predicted: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question, and what the model made of it."""

    row: int
    question: str
    wanted: str  # of preferences: the answer chosen
    written: str  # of preferences: the answer rejected, which nobody wrote here
    score: float  # ROUGE-L in 0 ... 1; of preferences: the margin


@dataclass(frozen=True, kw_only=True)
class Tagging:
    """A row of which the model took some words for something else."""

    row: int
    words: tuple[str, ...]
    truth: tuple[str, ...]  # a tag for each word
    predicted: tuple[str, ...]


def surest_mistakes(logits: Floats, truth: Any, labels: Sequence[str], texts: Sequence[Any]) -> tuple[Mistake, ...]:
    """The wrong rows of which the model was surest; for multiple labels by the surest of a row's wrong decisions."""
    if len(texts) == 0:
        return ()
    chances = calibration.probabilities(logits, multi=truth.ndim == 2)
    sure, right = calibration.decisions(chances, truth)
    wrongly = np.where(right == 0, sure, -1.0).max(axis=1)
    said = (logits > 0) if truth.ndim == 2 else logits.argmax(axis=1)
    rows = [int(row) for row in np.argsort(-wrongly, kind="stable")[:MISTAKES] if wrongly[row] >= 0]
    return tuple(
        Mistake(
            row=row,
            text=str(texts[row]),
            truth=named(truth[row], labels),
            predicted=named(said[row], labels),
            probability=float(wrongly[row]),
        )
        for row in rows
    )


def named(value: Any, labels: Sequence[str]) -> str:
    """The label of a class number, or the labels of flags."""
    if np.ndim(value) == 0:
        return labels[int(value)]
    return ", ".join(label for label, holds in zip(labels, value, strict=True) if holds) or "none"


def answers_shown(task: str, texts: Sequence[Any], truth: Any, predicted: Any) -> tuple[Answer, ...]:
    """Of answers that were written the first, whether good or bad; of choices the worst."""
    if task == "text":
        return first_answers(texts, truth, predicted) if len(texts) else ()
    return wrongest_choices(texts, predicted) if task == "prefer" and len(texts) else ()


def first_answers(texts: Sequence[str], truth: Sequence[str], predicted: Sequence[str]) -> tuple[Answer, ...]:
    """The first rows, each with its own ROUGE-L."""
    rows = list(zip(texts, truth, predicted, strict=True))[:ANSWERS]
    return tuple(
        Answer(row=row, question=question, wanted=wanted, written=written, score=metrics.rouge_l(wanted, written))
        for row, (question, wanted, written) in enumerate(rows)
    )


def wrongest_choices(texts: Sequence[tuple[str, str, str]], margins: Any) -> tuple[Answer, ...]:
    """The pairs that the model ranks most clearly the other way round. `texts`: question, answer chosen, answer rejected."""
    rows = [int(row) for row in np.argsort(margins, kind="stable")[:ANSWERS] if margins[row] <= 0]
    return tuple(
        Answer(row=row, question=texts[row][0], wanted=texts[row][1], written=texts[row][2], score=float(margins[row]))
        for row in rows
    )


def wrong_taggings(texts: Sequence[Sequence[str]], truth: Any, predicted: Any) -> tuple[Tagging, ...]:
    """The rows with the most words whose tags are wrong."""
    wrong = [sum(a != b for a, b in zip(*tags, strict=True)) for tags in zip(truth, predicted, strict=True)]
    rows = sorted((row for row in range(len(texts)) if wrong[row]), key=lambda row: -wrong[row])[:ANSWERS]
    for row in rows:
        if len(texts[row]) != len(truth[row]):
            raise ConfigError(f"row {row} has {len(texts[row])} words, but {len(truth[row])} tags; give each word one")
    return tuple(
        Tagging(row=row, words=tuple(texts[row]), truth=tuple(truth[row]), predicted=tuple(predicted[row])) for row in rows
    )


def segments(words: Sequence[str], tags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Words joined to spans and what lies between them, each with its kind, or ""."""
    done = 0
    for first, stop, kind in spans_of_tags(tags):
        if done < first:
            yield " ".join(words[done:first]), ""
        yield " ".join(words[first:stop]), kind
        done = stop
    if done < len(words):
        yield " ".join(words[done:]), ""
