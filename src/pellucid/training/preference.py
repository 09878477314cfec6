"""Learning from choices: direct preference optimisation (Rafailov et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pellucid.network.network import Network
from pellucid.network.recurrent import LayerState
from pellucid.text.batches import IGNORED, Batch
from pellucid.text.examples import Example, sequential_examples
from pellucid.training.objectives import mask_of, token_losses


class Preference:
    """Rows come in pairs, the chosen answer and the rejected one; their targets are the answers' tokens.

    The loss of a pair is -log sigmoid(beta ((chosen - its reference) - (rejected - its reference))) of log-probabilities; the
    references are those of the model as it was, which the batch brings.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def loss(self, network: Network, batch: Batch, state: Sequence[LayerState] | None = None) -> Tensor:  # noqa: ARG002
        return -F.logsigmoid(self.margins(network, batch)).sum()

    def margins(self, network: Network, batch: Batch) -> Float[Tensor, " pairs"]:
        """How much more the network now prefers the chosen answers than it did, times beta."""
        assert batch.reference is not None, "a batch of pairs brings its references"
        moved = logprobs(network, batch) - torch.from_numpy(batch.reference).to(network.device)
        return self.beta * (moved[0::2] - moved[1::2])

    def count(self, batch: Batch) -> float:
        return len(batch.ids) / 2


def logprobs(network: Network, batch: Batch) -> Float[Tensor, " batch"]:
    """The log-probability in nats of each row's targets together."""
    hidden = network.encode(torch.from_numpy(batch.ids).to(network.device), mask_of(network, batch))
    targets = torch.from_numpy(batch.targets).to(network.device)
    rows, places = (targets != IGNORED).nonzero(as_tuple=True)
    losses = token_losses(hidden[rows, places], network.scorer, targets[rows, places])
    return torch.zeros(len(targets), device=network.device).index_add(0, rows, -losses)


@torch.no_grad()
def with_references(network: Network, examples: Sequence[Example], *, pad: int, batch_tokens: int) -> list[Example]:
    """The examples with what a network says of them, which is what it should not move far from."""
    training = network.training
    network.eval()
    found = torch.zeros(len(examples))
    for batch, numbers in sequential_examples(examples, pad=pad, batch_tokens=batch_tokens):
        found[torch.from_numpy(numbers)] = logprobs(network, batch).cpu()
    network.train(training)
    return [replace(example, reference=value) for example, value in zip(examples, found.tolist(), strict=True)]
