"""Who may attend to whom, as data: causal, bidirectional, padded, packed documents, prefix, cached."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Positions of the queries, and which keys each query may attend to."""

    positions: Int[Tensor, "#batch seq"]  # what the rotary embedding sees
    allowed: Bool[Tensor, "#batch #heads #seq keys"] | None = None  # None: all keys, or the earlier ones if `causal`
    causal: bool = False  # shorthand for the triangle, which fused kernels need no matrix for
    bias: Float[Tensor, "#batch heads seq keys"] | None = None  # added to the scores: relative positions
    present: Bool[Tensor, "batch seq"] | None = None  # which positions are no padding, for pooling; None: all

    @staticmethod
    def for_causal(seq: int, device: torch.device | None = None, *, present: Bool[Tensor, "batch seq"] | None = None) -> "Mask":
        """Each position attends to itself and to all before it, so that padding on the right needs no other mask."""
        return Mask(positions=torch.arange(seq, device=device)[None], causal=True, present=present)

    @staticmethod
    def for_everything(seq: int, device: torch.device | None = None) -> "Mask":
        """Every position attends to every position."""
        return Mask(positions=torch.arange(seq, device=device)[None])

    @staticmethod
    def for_bidirectional(present: Bool[Tensor, "batch seq"]) -> "Mask":
        """Every position attends to every position that is `present`, that is, not padding."""
        positions = torch.arange(present.shape[1], device=present.device)[None]
        return Mask(positions=positions, allowed=present[:, None, None], present=present)

    @staticmethod
    def for_padded(present: Bool[Tensor, "batch seq"], *, causal: bool) -> "Mask":
        """Texts of several lengths, padded on the right, for a causal or a bidirectional network."""
        causally = Mask.for_causal(present.shape[1], present.device, present=present)
        return causally if causal else Mask.for_bidirectional(present)

    @staticmethod
    def for_documents(documents: Int[Tensor, "batch seq"], *, causal: bool = True) -> "Mask":
        """Inside each document of a packed row only; positions start at 0 in each, so packed equals unpacked."""
        seq = documents.shape[1]
        index = torch.arange(seq, device=documents.device)
        first = torch.ones_like(documents, dtype=torch.bool)
        first[:, 1:] = documents[:, 1:] != documents[:, :-1]
        start = torch.where(first, index, 0).cummax(dim=1).values
        allowed = documents[:, :, None] == documents[:, None, :]
        if causal:
            allowed = allowed & (index[:, None] >= index)
        return Mask(positions=index - start, allowed=allowed[:, None])

    @staticmethod
    def for_prefix(prefix: Int[Tensor, " batch"], seq: int) -> "Mask":
        """Causal, but the first `prefix` positions of each row also attend to one another in both directions."""
        index = torch.arange(seq, device=prefix.device)
        allowed = (index[:, None] >= index) | (index < prefix[:, None, None])
        return Mask(positions=index[None], allowed=allowed[:, None])

    @staticmethod
    def for_cache(positions: Int[Tensor, "batch seq"], slots: int) -> "Mask":
        """Queries at `positions` attend to the cache's `slots` up to and including their own."""
        index = torch.arange(slots, device=positions.device)
        return Mask(positions=positions, allowed=(index <= positions[:, :, None])[:, None])

    @property
    def keys(self) -> int:
        """How many keys the queries look at."""
        return self.positions.shape[1] if self.allowed is None else self.allowed.shape[-1]

    def with_bias(self, bias: Float[Tensor, "#batch heads seq keys"]) -> "Mask":
        """The same mask with something to add to the scores."""
        return replace(self, bias=bias)

    def dense(self, keys: int) -> Bool[Tensor, "#batch #heads #seq keys"]:
        """The mask written out."""
        if self.allowed is not None:
            return self.allowed
        seq = self.positions.shape[1] if self.causal else 1  # whoever asks may look everywhere
        everything = torch.ones(1, 1, seq, keys, dtype=torch.bool, device=self.positions.device)
        return everything.tril(keys - seq) if self.causal else everything

    def added(self, keys: int, dtype: torch.dtype) -> Float[Tensor, "#batch #heads #seq keys"]:
        """What is added to the scores: the bias, and minus infinity where a query may not look."""
        bias = torch.zeros((), dtype=dtype, device=self.positions.device) if self.bias is None else self.bias.to(dtype)
        return bias.masked_fill(~self.dense(keys), -torch.inf)
