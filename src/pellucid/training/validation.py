"""How good a network is on text that it does not learn from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pellucid.network.network import Network
from pellucid.text.batches import IGNORED, sequential
from pellucid.text.store import TokenView
from pellucid.training.objectives import Objective


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Loss on held-out text."""

    loss: float  # nats per token
    bytes_per_token: float

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.loss / math.log(2) / self.bytes_per_token


@torch.no_grad()
def validate(
    network: Network,
    objective: Objective,
    view: TokenView,
    *,
    context: int,
    documents: bool,
    batch_size: int,
    windows: int | None,
) -> Validation:
    """Mean loss over `windows` evenly spaced sequences of the held-out text (None: all of it)."""
    total, tokens = 0.0, 0
    for batch in sequential(view, context=context, batch_size=batch_size, limit=windows, documents=documents):
        total += float(objective.loss(network, batch))
        tokens += int((batch.targets != IGNORED).sum())
    return Validation(loss=total / tokens, bytes_per_token=view.bytes / view.tokens)
