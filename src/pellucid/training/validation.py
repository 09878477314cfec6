"""How good a network is on text that it does not learn from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pellucid.network.network import Network
from pellucid.network.recurrent import Recurrent
from pellucid.text.batches import IGNORED, Batch, Corruption, Lanes, sequential
from pellucid.text.store import TokenView
from pellucid.training.objectives import Objective

PARTS = 8  # of a text that a recurrent network reads side by side


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Loss on held-out text."""

    loss: float  # nats per target
    bytes_per_token: float
    whole: bool = True  # whether every token was a target, so that the loss tells how well the text is compressed

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.loss / math.log(2) / self.bytes_per_token

    def metrics(self) -> dict[str, float]:
        """The figures of an evaluation."""
        found = {"validation_loss": self.loss, "perplexity": self.perplexity}
        return found | ({"bits_per_byte": self.bits_per_byte} if self.whole else {})

    def __str__(self) -> str:
        last = f"{self.bits_per_byte:.3f} bits per byte" if self.whole else f"perplexity {self.perplexity:.1f}"
        return f"validation loss {self.loss:.4f}, {last}"


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
    corruption: Corruption | None = None,
) -> Validation:
    """Mean loss over `windows` sequences of the held-out text (None: all of it), evenly spaced.

    A recurrent network reads as many from the beginning of each of the text's `PARTS`, carrying on what it remembers. The
    loss depends on `batch_size` in neither case.
    """
    network.eval()  # nothing is dropped
    total, tokens = 0.0, 0
    if isinstance(network, Recurrent):
        lanes = Lanes(view, context=min(context, view.tokens), batch_size=min(PARTS, -(-view.tokens // context)))
        count = lanes.batches_per_epoch if windows is None else min(lanes.batches_per_epoch, -(-windows // lanes.batch_size))
        batches: Iterator[Batch] = (lanes[n] for n in range(count))
        memory = network.state(lanes.batch_size)
    else:
        batches = sequential(
            view, context=context, batch_size=batch_size, limit=windows, documents=documents, corruption=corruption
        )
        memory = None
    for batch in batches:
        total += float(objective.loss(network, batch, memory))
        tokens += int((batch.targets != IGNORED).sum())
    network.train()
    return Validation(loss=total / tokens, bytes_per_token=view.bytes / view.tokens, whole=corruption is None)
