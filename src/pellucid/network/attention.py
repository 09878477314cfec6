"""Scaled dot-product attention over several heads (Vaswani et al., 2017), keys and values in groups (Ainslie et al., 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pellucid.network.config import ModelConfig
from pellucid.network.layers import Linear, joined, norm
from pellucid.network.masks import Mask
from pellucid.network.positions import Rotation, rotate
from pellucid.network.taps import Edit, Taps, tap

# On a CPU, batched products beat the fused kernel up to this length, above all in the backward pass: a tenth of a training step
# at 256. Beyond it their memory, which grows with the square of the length, would matter.
SHORT = 512
ROWS = 128  # queries at a time: 64 or all of them take 1.4 to 1.7 times as long


class Seen(NamedTuple):
    """What some rows of a batch attend to."""

    rows: slice
    k: Float[Tensor, "rows kv_heads keys d_head"]
    v: Float[Tensor, "rows kv_heads keys d_head"]
    mask: Mask


@runtime_checkable
class LayerCache(Protocol):
    """The keys and values that one layer has computed for earlier positions."""

    def extend(
        self, k: Float[Tensor, "batch kv_heads seq d_head"], v: Float[Tensor, "batch kv_heads seq d_head"], mask: Mask
    ) -> Sequence[Seen]:
        """Store those of new positions; return what the rows see. Rows of which nothing is said are filling."""


@runtime_checkable
class Memory(Protocol):
    """What a decoder attends to besides its own text: an encoder's output."""

    def seen(self, cross: "CrossAttention") -> Sequence[Seen]:
        """The keys and values that one layer makes of it."""


@dataclass(frozen=True)
class Encoded:
    """An encoder's output, of which each layer makes keys and values whenever they are asked for."""

    hidden: Float[Tensor, "batch keys d_model"]
    mask: Mask  # which of its positions are there

    def seen(self, cross: "CrossAttention") -> Sequence[Seen]:
        return [Seen(slice(None), *cross.project(self.hidden), self.mask)]


class Attention(nn.Module):
    """Mixes positions: each head attends with softmax(q k^T / sqrt(d_head)) v."""

    JOINED: tuple[str, ...] = ("q", "k", "v")

    def __init__(self, config: ModelConfig, site: str) -> None:
        super().__init__()
        self.site, self.d_head, self.scale = site, config.d_head, config.d_head**-0.5 if config.scaled else 1.0
        biased = config.attention_bias
        self.q = Linear(config.d_model, config.heads * config.d_head, bias=biased)
        self.k = Linear(config.d_model, config.kv_heads * config.d_head, bias=biased)
        self.v = Linear(config.d_model, config.kv_heads * config.d_head, bias=biased)
        self.output = Linear(config.heads * config.d_head, config.d_model, bias=config.output_bias)
        self.norm_q = norm(config, config.d_head) if config.qk_norm else nn.Identity()
        self.norm_k = norm(config, config.d_head) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        mask: Mask,
        rotation: Rotation | None,
        cache: LayerCache | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        q, k, v = map(self.split, joined(x, (self.q, self.k, self.v)))
        q, k = self.norm_q(q), self.norm_k(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k, v = tap(taps, f"{self.site}.q", q), tap(taps, f"{self.site}.k", k), tap(taps, f"{self.site}.v", v)
        return self.mix(q, [Seen(slice(None), k, v, mask)] if cache is None else cache.extend(k, v, mask), taps)

    def mix(
        self, q: Float[Tensor, "batch heads seq d_head"], seen: Sequence[Seen], taps: Taps | None
    ) -> Float[Tensor, "batch seq d_model"]:
        """Attend through the fused kernel, unless the pattern itself is edited, and lead out."""
        edit = None
        if taps is not None:
            edit = taps.edit_at(f"{self.site}.pattern")
            taps.keep(f"{self.site}.pattern", lambda: patterns(q, seen, edit, self.scale))
        if len(seen) == 1 and seen[0].k.shape[0] == q.shape[0]:
            mixed = attend(q, *seen[0][1:], edit, self.scale)
        else:
            mixed = torch.zeros_like(q)
            for rows, k, v, mask in seen:
                mixed[rows] = attend(q[rows], k, v, mask, edit, self.scale)
        mixed = tap(taps, f"{self.site}.mixed", mixed)
        return tap(taps, f"{self.site}.out", self.output(mixed.transpose(1, 2).flatten(2)))

    def split(self, x: Float[Tensor, "batch seq features"]) -> Float[Tensor, "batch heads seq d_head"]:
        return x.view(*x.shape[:2], -1, self.d_head).transpose(1, 2)


class CrossAttention(Attention):
    """Attention from a decoder's positions to an encoder's output."""

    JOINED = ("k", "v")

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch seq d_model"], memory: Memory, taps: Taps | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        q = tap(taps, f"{self.site}.q", self.norm_q(self.split(self.q(x))))
        seen = [
            Seen(rows, tap(taps, f"{self.site}.k", k), tap(taps, f"{self.site}.v", v), mask)
            for rows, k, v, mask in memory.seen(self)
        ]
        return self.mix(q, seen, taps)

    def project(
        self, hidden: Float[Tensor, "batch keys d_model"]
    ) -> tuple[Float[Tensor, "batch kv_heads keys d_head"], Float[Tensor, "batch kv_heads keys d_head"]]:
        """The keys and values of an encoder's output."""
        k, v = map(self.split, joined(hidden, (self.k, self.v)))
        return self.norm_k(k), v


def attend(
    q: Float[Tensor, "batch heads seq d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    v: Float[Tensor, "batch kv_heads keys d_head"],
    mask: Mask,
    edit: Edit | None = None,
    scale: float | None = None,
) -> Float[Tensor, "batch heads seq d_head"]:
    """softmax(q k^T scale) v under the mask, scale 1 / sqrt(d_head) unless given; with `edit`, of the edited pattern."""
    if edit is not None:
        return pattern(q, k, mask, edit, scale).to(v.dtype) @ spread(v, q.shape[1])
    if torch.compiler.is_compiling() and q.shape[2] == 1 and mask.allowed is not None and mask.bias is None:
        return attend_by_sums(q, k, v, mask.allowed, scale)
    if q.device.type == "cpu" and 1 < q.shape[2] <= SHORT and k.shape[2] <= SHORT:
        return attend_by_products(q, k, v, mask, scale)
    causal, grouped = mask.causal and mask.allowed is None and mask.bias is None, q.shape[1] != k.shape[1]
    added = mask.allowed if mask.bias is None else mask.added(k.shape[2], q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added, is_causal=causal, scale=scale, enable_gqa=grouped)


def attend_by_sums(
    q: Float[Tensor, "batch heads 1 d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    v: Float[Tensor, "batch kv_heads keys d_head"],
    allowed: Bool[Tensor, "batch 1 1 keys"],
    scale: float | None = None,
) -> Float[Tensor, "batch heads 1 d_head"]:
    """The same for one query a row, written out for a compiler, which makes loops of it that add up keys in their order.

    So keys at the end that are not allowed add zeros, and change no bit.
    """
    batch, heads, _, d_head = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, 1, d_head).float() * (d_head**-0.5 if scale is None else scale)
    scores = (grouped * k[:, :, None].float()).sum(dim=-1).masked_fill(~allowed, -torch.inf)
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    mixed = (weights[..., None] * v[:, :, None].float()).sum(dim=-2) / weights.sum(dim=-1, keepdim=True)
    return mixed.view(batch, heads, 1, d_head).to(v.dtype)


def attend_by_products(
    q: Float[Tensor, "batch heads seq d_head"],
    k: Float[Tensor, "batch kv_heads keys d_head"],
    v: Float[Tensor, "batch kv_heads keys d_head"],
    mask: Mask,
    scale: float | None = None,
) -> Float[Tensor, "batch heads seq d_head"]:
    """The same through batched products, some queries at a time: under a causal mask they skip the keys of later ones."""
    batch, heads, seq, d_head = q.shape
    keys = k.shape[2]
    added = mask.added(keys, q.dtype)
    if added.shape[0] * added.shape[1] > 1 or added.shape[2] < seq:
        added = added.expand(batch, heads, seq, keys)
    added = added.flatten(0, 1)
    q, k, v = (x.reshape(batch * heads, -1, d_head) for x in (q, spread(k, heads), spread(v, heads)))
    triangle = mask.causal and mask.allowed is None
    mixed = []
    for start in range(0, seq, ROWS):
        rows = slice(start, min(start + ROWS, seq))
        seen = slice(rows.stop + keys - seq if triangle else keys)
        scores = torch.baddbmm(added[:, rows, seen], q[:, rows], k[:, seen].mT, alpha=d_head**-0.5 if scale is None else scale)
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
    scale: float | None = None,
) -> Float[Tensor, "batch heads seq keys"]:
    """The attention weights themselves, softmax(q k^T scale) in fp32; each row sums to 1.

    An edit cannot let a query look where the mask forbids it: what lies there may be another text's.
    """
    k = spread(k, q.shape[1])
    scores = (q.float() @ k.float().transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = (scores + mask.added(k.shape[2], scores.dtype)).softmax(dim=-1)
    return weights if edit is None else edit(weights).masked_fill(~mask.dense(k.shape[2]), 0)


def patterns(
    q: Float[Tensor, "batch heads seq d_head"], seen: Sequence[Seen], edit: Edit | None, scale: float
) -> Float[Tensor, "batch heads seq keys"]:
    """The weights of all rows; of those that see fewer keys than others the rest are 0."""
    found = [pattern(q[rows], k, mask, edit, scale) for rows, k, _, mask in seen]
    widest = max(one.shape[-1] for one in found)
    return found[0] if len(found) == 1 else torch.cat([F.pad(one, (0, widest - one.shape[-1])) for one in found])
