"""What a model has to beat: the commonest answer, and TF-IDF with a linear model, trained on the same labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pellucid.evaluation.intervals import Floats

Task = Literal["classify", "multi", "regress", "tag", "text", "prefer"]


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
    class_weights: Literal["none", "balanced"] = "none",
    seed: int = 0,
) -> dict[str, Predictions]:
    """The floors' predictions for the test texts, by the floor's name."""
    raise NotImplementedError
