"""Learning labels: of whole texts or of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pellucid.network.config import Problem
from pellucid.network.network import Network
from pellucid.network.recurrent import LayerState
from pellucid.text.batches import IGNORED, Batch
from pellucid.training.objectives import mask_of


class LabelPrediction:
    """Cross-entropy of one label of several, of each label by itself (`multi`), or the squared error of numbers (`regression`).

    `weights` [labels] says how much a label counts, `smoothing` what share of a target is spread over all labels
    (Szegedy et al., 2016), and `variance` by what a squared error is divided.
    """

    def __init__(
        self, problem: Problem = "single", *, weights: Tensor | None = None, smoothing: float = 0.0, variance: float = 1.0
    ) -> None:
        self.problem, self.weights, self.smoothing, self.variance = problem, weights, smoothing, variance

    def loss(self, network: Network, batch: Batch, state: Sequence[LayerState] | None = None) -> Tensor:  # noqa: ARG002
        """As `Objective` has it; a recurrent network begins every text anew."""
        logits = self.scores(network, batch)
        return self.loss_of(logits, torch.from_numpy(batch.targets).to(logits.device))

    def scores(self, network: Network, batch: Batch) -> Float[Tensor, "batch *seq labels"]:
        """The network's scores of the labels, in fp32."""
        logits = network(torch.from_numpy(batch.ids).to(network.device), mask_of(network, batch)).logits
        found: Tensor = logits.float()
        return found

    def loss_of(self, logits: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        """The summed loss of scores."""
        if self.problem == "regression":
            return (logits - targets).square().sum() / self.variance
        weights = None if self.weights is None else self.weights.to(logits.device)
        if self.problem == "multi":
            return F.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="sum")
        return F.cross_entropy(
            logits.flatten(0, -2),
            targets.flatten(),
            weight=weights,
            reduction="sum",
            ignore_index=IGNORED,
            label_smoothing=self.smoothing,
        )

    def count(self, batch: Batch) -> float:
        targets = torch.from_numpy(batch.targets)
        if self.problem == "regression":
            return float(targets.numel())
        if self.problem == "multi":
            return float(targets.numel() if self.weights is None else len(targets) * self.weights.sum())
        found = targets[targets != IGNORED]
        return float(len(found) if self.weights is None else self.weights[found].sum())

    def right(self, logits: Tensor, targets: Tensor) -> tuple[int, int]:
        """How many targets the scores meet, of how many; of numbers none can be met."""
        if self.problem == "regression":
            return 0, 0
        if self.problem == "multi":
            return int(((logits > 0) == (targets > 0.5)).sum()), targets.numel()
        there = targets != IGNORED
        return int(((logits.argmax(dim=-1) == targets) & there).sum()), int(there.sum())
