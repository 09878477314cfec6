"""From logits to the next token."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The filters apply in the order of the fields; `temperature` 0 takes the likeliest token."""

    repetition_penalty: float = 1.0  # above 1: logits of tokens already seen shrink (Keskar et al., 2019)
    temperature: float = 1.0
    top_k: int | None = None  # keep the k likeliest
    top_p: float = 1.0  # keep the likeliest that together have this probability (Holtzman et al., 2020)
    min_p: float = 0.0  # keep those at least this share of the likeliest (Nguyen et al., 2024)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p must be from 0 to 1, not {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty must be above 0, not {self.repetition_penalty}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be from 0 to 2^63 - 1, not {self.seed}")
        if self.temperature == 0 and (self.top_k, self.top_p, self.min_p) != (None, 1.0, 0.0):
            raise ConfigError("top_k, top_p and min_p have no effect at temperature 0; leave them out or raise the temperature")


def penalize(
    logits: Float[Tensor, "batch vocab"], seen: list[Int[Tensor, " _tokens"]], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Divide positive logits of seen tokens by `penalty`, multiply negative ones."""
    if penalty == 1.0:
        return logits
    logits = logits.clone()
    for row, ids in zip(logits, seen, strict=True):
        known = row[ids]
        row[ids] = torch.where(known > 0, known / penalty, known * penalty)
    return logits


def distribution(logits: Float[Tensor, "batch vocab"], sampling: Sampling) -> Float[Tensor, "batch vocab"]:
    """The probabilities that a token is drawn from, after temperature, top-k, top-p and min-p."""
    logits = ((logits - logits.amax(dim=-1, keepdim=True)).double() / sampling.temperature).float()
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1.0:
        probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        out = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        logits = logits.masked_fill(out, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if sampling.min_p > 0.0:
        least = sampling.min_p * probabilities.max(dim=-1, keepdim=True).values
        probabilities = torch.where(probabilities < least, 0.0, probabilities)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


def choose(
    logits: Float[Tensor, "batch vocab"], seen: list[Int[Tensor, " _tokens"]], sampling: Sampling, indices: list[int]
) -> Int[Tensor, " batch"]:
    """The next token of every row; `indices` says how many tokens each row has generated.

    The random number is a function of seed and index alone (a counter-based generator: Salmon et al., 2011),
    so a prompt continues the same way alone, in any batch, and with or without a cache.
    """
    logits = penalize(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = distribution(logits, sampling).double().cumsum(dim=-1)
    draws = torch.tensor([uniform(sampling.seed, index) for index in indices], dtype=torch.float64, device=logits.device)
    return torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0].clamp(
        max=logits.shape[-1] - 1
    )


def uniform(seed: int, index: int) -> float:
    """Number `index` of the random stream `seed`, in [0, 1)."""
    return float(np.random.Philox(key=seed, counter=index).random_raw() >> 11) / 2**53
