"""What a batch teaches: small objects that the one loop is given."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from pellucid.network.layers import Head
from pellucid.network.masks import Mask
from pellucid.network.network import Network
from pellucid.network.recurrent import LayerState
from pellucid.text.batches import IGNORED, Batch

MOST = 0.5  # with fewer targets than this share of the positions, only they are scored
LOGITS = 32_768 * 1024  # with more than this many, the logits are computed in pieces


class Objective(Protocol):
    """A loss that is a sum over targets, so that micro-batches add up to the batch exactly."""

    def loss(self, network: Network, batch: Batch, state: Sequence[LayerState] | None = None) -> Tensor:
        """Summed loss in nats over the batch's targets, a scalar.

        `state` is what a recurrent network remembers of the rows before these; it is replaced by what it remembers after them.
        """

    def count(self, batch: Batch) -> float:
        """How many targets a batch has: what its summed loss is divided by."""


class TokenPrediction:
    """Predict the batch's targets: the next tokens, those under the mask, or the spans that were cut out."""

    def loss(self, network: Network, batch: Batch, state: Sequence[LayerState] | None = None) -> Tensor:
        inputs: dict[str, Any] = {"mask": mask_of(network, batch)}
        if batch.decoder_ids is not None:
            inputs["decoder_ids"] = torch.from_numpy(batch.decoder_ids).to(network.device)
        if state is not None:
            inputs["cache"] = state
        hidden = network.encode(torch.from_numpy(batch.ids).to(network.device), **inputs).flatten(0, 1)
        targets = batch.targets.reshape(-1)
        if (targets != IGNORED).mean() < MOST:
            chosen = np.flatnonzero(targets != IGNORED)
            hidden, targets = hidden[torch.from_numpy(chosen).to(network.device)], targets[chosen]
        head = network.scorer
        return cross_entropy(head.prepare(hidden), head.weight, torch.from_numpy(targets).to(network.device), head.bias)

    def count(self, batch: Batch) -> float:
        return int((batch.targets != IGNORED).sum())


def mask_of(network: Network, batch: Batch) -> Mask | None:
    """Who sees whom in a batch; None: what the network does by itself."""
    if batch.documents is not None:
        documents = torch.from_numpy(batch.documents).to(network.device)
        return Mask.for_documents(documents, causal=network.config.causal)
    if batch.present is None:
        return None
    return network.padding(torch.from_numpy(batch.present).to(network.device))


def cross_entropy(
    hidden: Float[Tensor, "tokens d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " tokens"],
    bias: Float[Tensor, " vocab"] | None = None,
) -> Float[Tensor, ""]:
    """Summed cross-entropy in nats of the head's logits, in memory bounded by `LOGITS` whatever the vocabulary.

    The product runs in the type of `hidden`, the softmax in fp32. torch's F.linear_cross_entropy would return the loss itself
    in bf16 for bf16 activations, half a per cent off on two thousand tokens.
    """
    rows = max(1, LOGITS // weight.shape[0])
    if len(hidden) <= rows:
        return summed_loss(hidden, weight, targets, bias)
    if torch.is_grad_enabled():
        return cast(Tensor, PiecewiseCrossEntropy.apply(hidden, weight, bias, targets, rows))  # type: ignore[no-untyped-call]
    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    return torch.stack([summed_loss(part, weight, wanted, bias) for part, wanted in parts]).sum()


def token_losses(
    hidden: Float[Tensor, "tokens d_model"], head: Head, targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Cross-entropy in nats of each token, in memory bounded as above."""

    def piece(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden).float(), targets, reduction="none")

    rows = max(1, LOGITS // head.weight.shape[0])
    if len(hidden) <= rows:
        return piece(hidden, targets)
    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    return torch.cat([checkpoint(piece, *part, use_reentrant=False) for part in parts])


def summed_loss(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    logits = F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
    return cast(Tensor, SummedCrossEntropy.apply(logits, targets))  # type: ignore[no-untyped-call]


class SummedCrossEntropy(torch.autograd.Function):
    """F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORED), in three quarters of the time.

    The gradient, softmax minus one at the target, is made on the way, where the log-probabilities were, and kept in the type
    of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
        ignored = targets == IGNORED
        place = targets.masked_fill(ignored, 0)[:, None]
        loss = -logprobs.gather(1, place)[:, 0].masked_fill(ignored, 0.0).sum()
        if ctx.needs_input_grad[0]:
            gradient = logprobs.exp_()
            gradient.scatter_add_(1, place, -torch.ones_like(place, dtype=torch.float32))
            gradient[ignored] = 0.0
            ctx.save_for_backward(gradient.to(logits.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None


class PiecewiseCrossEntropy(torch.autograd.Function):
    """The sum of `summed_loss` over pieces of `rows` tokens, all of whose gradients are made on the way (Hsu et al., 2024).

    So no piece's logits are held for the backward pass, nor computed again in it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int) -> Tensor:
        needed = ctx.needs_input_grad
        weight = weight.detach().requires_grad_(needed[1])
        bias = None if bias is None else bias.detach().requires_grad_(needed[2])
        parts = [part.detach().requires_grad_(needed[0]) for part in torch.split(hidden, rows)]
        total = torch.zeros((), device=hidden.device)
        for part, wanted in zip(parts, torch.split(targets, rows), strict=True):
            with torch.enable_grad():
                loss = summed_loss(part, weight, wanted, bias)
            if any(needed):
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        gradient = torch.cat([cast(Tensor, part.grad) for part in parts]) if needed[0] else None
        ctx.save_for_backward(gradient, weight.grad, None if bias is None else bias.grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if gradient is None else gradient * scale for gradient in ctx.saved_tensors), None, None
