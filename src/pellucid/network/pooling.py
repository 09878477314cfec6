"""One vector for a text out of those of its tokens."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Mode = Literal["mean", "first", "last", "max"]


def pool(
    hidden: Float[Tensor, "batch seq d_model"], present: Bool[Tensor, "batch seq"] | None, mode: Mode
) -> Float[Tensor, "batch d_model"]:
    """The mean over the `present` positions (None: all), that of the first or the last, or the largest value of each feature.

    Padding is on the right. A text of padding only is zeros, its largest values minus infinity.
    """
    if mode == "first":
        return hidden[:, 0]
    if mode == "last":
        if present is None:
            return hidden[:, -1]
        last = present.shape[1] - 1 - present.flip(1).int().argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    if mode == "max":
        return (hidden if present is None else hidden.masked_fill(~present[..., None], -torch.inf)).amax(dim=1)
    if present is None:
        return hidden.mean(dim=1)
    total = hidden.masked_fill(~present[..., None], 0.0).sum(dim=1, dtype=torch.float32)
    return (total / present.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden.dtype)
