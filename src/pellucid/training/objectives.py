"""What a batch teaches: small objects that the one loop is given."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.network.masks import Mask
from pellucid.network.transformer import Transformer
from pellucid.text.batches import IGNORED, Batch

LOGITS = 32_768 * 1024  # above this many, the logits of a micro-batch are computed in pieces and never held whole


class Objective(Protocol):
    """A loss that is a sum over targets, so that micro-batches add up to the batch exactly."""

    def loss(self, network: Transformer, batch: Batch) -> Tensor:
        """Summed loss in nats over the batch's targets, a scalar."""


class CausalLM:
    """Predict the next token."""

    def loss(self, network: Transformer, batch: Batch) -> Tensor:
        device = network.embedding.weight.device
        ids, targets = (torch.from_numpy(array).to(device) for array in (batch.ids, batch.targets))
        mask = None if batch.documents is None else Mask.for_documents(torch.from_numpy(batch.documents).to(device))
        hidden = network.encode(ids, mask).flatten(0, 1)
        large = hidden.shape[0] * network.config.vocab_size > LOGITS
        options = torch.nn.LinearCrossEntropyOptions() if large and torch.is_grad_enabled() else None
        return F.linear_cross_entropy(
            hidden, network.head.weight, targets.flatten(), reduction="sum", ignore_index=IGNORED, options=options
        )
