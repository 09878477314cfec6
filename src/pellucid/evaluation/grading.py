"""Grades: every metric with its interval, beside the floors, and one sentence that says who wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pellucid.evaluation.floors import Predictions, Task
from pellucid.evaluation.intervals import Estimate, Floats


@dataclass(frozen=True, kw_only=True)
class Grades:
    """How good a model is at a task."""

    task: Task
    rows: int
    labels: tuple[str, ...]
    metrics: dict[str, dict[str, Estimate]]  # system ("model" first, then the floors) -> metric -> estimate
    verdict: str

    def to_json(self) -> dict[str, Any]:
        raise NotImplementedError

    def lines(self) -> list[str]:
        raise NotImplementedError

    def to_html(self) -> str:
        raise NotImplementedError


def grade(
    task: Task,
    truth: Any,
    *,
    labels: Sequence[str] = (),
    scores: Floats | None = None,
    predicted: Any = None,
    texts: Sequence[Any] = (),
    floors: Mapping[str, Predictions] | None = None,
    validation: tuple[Floats, Any] | None = None,
    name: str = "model",
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

    `validation` are logits and truth of rows that are not the test's: the temperature is fitted there.
    """
    raise NotImplementedError
