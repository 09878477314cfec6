"""Scaled dot-product attention over several heads (Vaswani et al., 2017), keys and values in groups (Ainslie et al., 2023)."""

import math
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.network.config import ModelConfig
from pellucid.network.layers import Linear, RMSNorm, Rotation, rotate
from pellucid.network.masks import Mask
from pellucid.network.taps import Edit, Taps, tap

# On a CPU, batched products beat the fused kernel up to this length, above all in the backward pass: a tenth of a training step
# at 256. Beyond it their memory, which grows with the square of the length, would matter.
SHORT = 512
ROWS = 128  # queries at a time: 64 or all of them take 1.4 to 1.7 times as long


@runtime_checkable
class LayerCache(Protocol):
    """The keys and values that one layer has computed for earlier positions."""

    def extend(
        self, k: Float[Tensor, "batch kv_heads seq d_head"], v: Float[Tensor, "batch kv_heads seq d_head"]
    ) -> tuple[Float[Tensor, "batch kv_heads keys d_head"], Float[Tensor, "batch kv_heads keys d_head"]]:
        """Store those of new positions; return all, slot by slot, as the mask counts them."""


class Attention(nn.Module):
    """Mixes positions: each head attends with softmax(q k^T / sqrt(d_head)) v."""

    def __init__(self, config: ModelConfig, site: str) -> None:
        super().__init__()
        self.site, self.d_head = site, config.d_head
        self.q = Linear(config.d_model, config.heads * config.d_head)
        self.k = Linear(config.d_model, config.kv_heads * config.d_head)
        self.v = Linear(config.d_model, config.kv_heads * config.d_head)
        self.output = Linear(config.heads * config.d_head, config.d_model)
        self.norm_q = RMSNorm(config.d_head, config.norm_eps)
        self.norm_k = RMSNorm(config.d_head, config.norm_eps)

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        mask: Mask,
        rotation: Rotation,
        cache: LayerCache | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        q, k = rotate(self.norm_q(q), rotation), rotate(self.norm_k(k), rotation)
        q, k, v = tap(taps, f"{self.site}.q", q), tap(taps, f"{self.site}.k", k), tap(taps, f"{self.site}.v", v)
        if cache is not None:
            k, v = cache.extend(k, v)
        mixed = tap(taps, f"{self.site}.mixed", self.attend(q, k, v, mask, taps))
        return tap(taps, f"{self.site}.out", self.output(mixed.transpose(1, 2).flatten(2)))

    def split(self, x: Float[Tensor, "batch seq features"]) -> Float[Tensor, "batch heads seq d_head"]:
        return x.view(*x.shape[:2], -1, self.d_head).transpose(1, 2)

    def attend(
        self,
        q: Float[Tensor, "batch heads seq d_head"],
        k: Float[Tensor, "batch kv_heads keys d_head"],
        v: Float[Tensor, "batch kv_heads keys d_head"],
        mask: Mask,
        taps: Taps | None,
    ) -> Float[Tensor, "batch heads seq d_head"]:
        """Attention through the fused kernel, unless the pattern itself is edited."""
        edit = None
        if taps is not None:
            edit = taps.edit.get(f"{self.site}.pattern")
            taps.keep(f"{self.site}.pattern", lambda: pattern(q, k, mask, edit))
        return attend(q, k, v, mask, edit)


def attend(
    q: Float[Tensor, "batch heads seq d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    v: Float[Tensor, "batch kv_heads keys d_head"],
    mask: Mask,
    edit: Edit | None = None,
) -> Float[Tensor, "batch heads seq d_head"]:
    """softmax(q k^T / sqrt(d_head)) v under the mask; with `edit`, of the edited pattern."""
    if edit is not None:
        return pattern(q, k, mask, edit).to(v.dtype) @ spread(v, q.shape[1])
    if q.device.type == "cpu" and 1 < q.shape[2] == k.shape[2] <= SHORT:
        return attend_by_products(q, k, v, mask)
    causal, grouped = mask.causal and mask.allowed is None, q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.allowed, is_causal=causal, enable_gqa=grouped)


def attend_by_products(
    q: Float[Tensor, "batch heads seq d_head"],
    k: Float[Tensor, "batch kv_heads seq d_head"],
    v: Float[Tensor, "batch kv_heads seq d_head"],
    mask: Mask,
) -> Float[Tensor, "batch heads seq d_head"]:
    """The same through batched products, some queries at a time: under a causal mask they skip the keys of later ones."""
    batch, heads, seq, d_head = q.shape
    bias = torch.zeros((), dtype=q.dtype).masked_fill(~mask.dense(seq), -torch.inf)
    if bias.shape[0] * bias.shape[1] > 1:
        bias = bias.expand(batch, heads, seq, seq)
    bias = bias.flatten(0, 1)
    q, k, v = (x.reshape(batch * heads, seq, d_head) for x in (q, spread(k, heads), spread(v, heads)))
    triangle = mask.causal and mask.allowed is None
    mixed = []
    for start in range(0, seq, ROWS):
        rows = slice(start, min(start + ROWS, seq))
        seen = slice(rows.stop if triangle else seq)
        scores = torch.baddbmm(bias[:, rows, seen], q[:, rows], k[:, seen].mT, alpha=d_head**-0.5)
        mixed.append(torch.bmm(scores.softmax(dim=-1), v[:, seen]))
    return torch.cat(mixed, dim=1).view(batch, heads, seq, d_head)


def spread(x: Float[Tensor, "batch kv_heads seq d_head"], heads: int) -> Float[Tensor, "batch heads seq d_head"]:
    """Keys or values once for every query head that they serve."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def pattern(
    q: Float[Tensor, "batch heads seq d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    mask: Mask,
    edit: Edit | None = None,
) -> Float[Tensor, "batch heads seq keys"]:
    """The attention weights themselves, softmax(q k^T / sqrt(d_head)) in fp32; each row sums to 1."""
    k = spread(k, q.shape[1])
    scores = (q.float() @ k.float().transpose(-1, -2)) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask.dense(k.shape[2]), -torch.inf).softmax(dim=-1)
    return weights if edit is None else edit(weights)
