"""Direct logit attribution: what each head, each MLP and the embedding put into a difference of logits by themselves.

The stream is a sum of what the parts add, and the head reads it linearly once the norms are held at the scale that they have in
this pass (Elhage et al., 2021). So the shares sum to the difference, exactly. What a part does through later parts is not in
its share; patching shows that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.explanation.contrast import Contrast, contrast_of, stack_of
from pellucid.explanation.question import Question
from pellucid.explanation.rows import scores
from pellucid.network.attention import Attention
from pellucid.network.layers import Linear, RMSNorm
from pellucid.network.network import Network
from pellucid.network.pooling import pool
from pellucid.network.taps import Taps


@dataclass(frozen=True)
class Shares:
    """What each part adds to a difference of logits: `blocks.3.attn.head.5`, `blocks.3.mlp`, `embedding`, `biases`."""

    contrast: Contrast
    difference: float  # as the network computes it
    parts: dict[str, float]

    @property
    def gap(self) -> float:
        """How far the sum of the shares is from the difference: rounding."""
        return sum(self.parts.values()) - self.difference

    def to_json(self) -> dict[str, Any]:
        return {"measure": self.contrast.measure, "difference": self.difference, "parts": self.parts, "gap": self.gap}

    def largest(self, count: int) -> list[tuple[str, float]]:
        """The parts that add or take away most."""
        return sorted(self.parts.items(), key=lambda part: -abs(part[1]))[:count]


Functional = Float[Tensor, "seq d_model"]  # what the difference is, as a sum over the stream times this


@torch.no_grad()
def direct_shares(question: Question) -> Shares:
    """The shares of a question's contrast. Raises `ModelError` for an LSTM or a bag of words, whose parts add to no stream."""
    stack, site = stack_of(question)
    contrast = contrast_of(question)
    network, row = question.network, contrast.row
    taps = Taps([f"{site}{name}" for name in ("embedding", "hidden", "blocks.*.middle", "blocks.*.mlp.out", "blocks.*.after")])
    taps.capture += tuple(f"{site}blocks.*.{part}.{what}" for part in parts_of(stack) for what in ("mixed", "out"))
    logits = scores(network, [row], taps)[0]
    difference = sum(float(logits[one.id]) * one.weight for one in row.asked)
    walk = Walk(network, stack, site, taps)
    walk.down(contrast)
    return Shares(contrast, difference, dict(reversed(walk.found.items())))


def parts_of(stack: Any) -> tuple[str, ...]:
    """The attentions of a block."""
    return ("attn", "cross") if stack.config.cross else ("attn",)


class Walk:
    """From the head down to the embedding, with the functional that the difference is of the stream at each height."""

    def __init__(self, network: Network, stack: Any, site: str, taps: Taps) -> None:
        self.network, self.stack, self.site, self.taps = network, stack, site, taps
        self.found: dict[str, float] = {}
        self.biases = 0.0
        self.functional: Functional = torch.zeros_like(self.at("hidden"))

    def at(self, name: str) -> Tensor:
        """What passed at a site, of the one text."""
        return self.taps[f"{self.site}{name}"][0].float()

    def down(self, contrast: Contrast) -> None:
        """All parts, the last first."""
        self.from_head(contrast)
        last = self.stack.config.layers - 1
        if self.stack.norm is not None:
            self.functional = self.through_norm(self.stack.norm, self.at(f"blocks.{last}.after"), self.functional)
        for layer in range(last, -1, -1):
            self.through_block(layer)
        self.found["embedding"] = self.share(self.at("embedding"))
        self.found["biases"] = self.biases

    def share(self, added: Float[Tensor, "seq d_model"]) -> float:
        return float((added.to(self.functional) * self.functional).sum())

    def from_head(self, contrast: Contrast) -> None:
        """What the head makes of the last hidden states."""
        head, config, hidden = self.network.scorer, self.network.config, self.at("hidden")
        weights = torch.zeros(head.out_features, device=hidden.device)
        for one in contrast.row.asked:
            weights[one.id] += one.weight
        direction = self.rows_of(head, weights)
        if head.bias is not None:
            self.biases += float(head.bias.float() @ weights)
        if config.head == "classify":
            self.functional = self.through_pooling(direction * head.scale, hidden)
            return
        assert contrast.place is not None, "the scores of a token are read off somewhere"
        if head.dense is not None and head.norm is not None:
            x = hidden[contrast.place]
            direction = self.through_norm(head.norm, head.activation(self.led(head.dense, x)), direction)
            direction = self.through_dense(head.dense, head.activation, x, direction)
        self.functional[contrast.place] = direction * head.scale

    def through_pooling(self, direction: Float[Tensor, " d_model"], hidden: Float[Tensor, "seq d_model"]) -> Functional:
        """What the difference is of the last hidden states, where the head reads one vector for the text."""
        mode, functional = self.network.config.pooling, torch.zeros_like(hidden)
        pooler = self.network.pooler
        if pooler is not None:
            direction = self.through_dense(pooler, pooler.activation, pool(hidden[None], None, mode)[0], direction)
        if mode == "mean":
            return functional + direction / len(hidden)
        functional[0 if mode == "first" else -1] = direction
        return functional

    def led(self, layer: Linear, x: Float[Tensor, " inputs"]) -> Float[Tensor, " outputs"]:
        """What a layer makes of x, before any activation of its own."""
        return Linear.forward(layer, x.to(self.network.dtype)).float()

    def through_dense(
        self,
        layer: Linear,
        activation: Callable[[Tensor], Tensor],
        x: Float[Tensor, " d_model"],
        direction: Float[Tensor, " d_model"],
    ) -> Float[Tensor, " d_model"]:
        """Through a layer and its activation, which is held at the ratio of what comes out of it to what goes in."""
        z = self.led(layer, x)
        z = torch.where(z.abs() < 1e-6, 1e-6, z)
        held = direction * activation(z) / z
        if layer.bias is not None:
            self.biases += float(layer.bias.float() @ held)
        return self.rows_of(layer, held)

    def through_norm(self, norm: Any, x: Float[Tensor, "*seq d_model"], v: Float[Tensor, "*seq d_model"]) -> Tensor:
        """Through a norm, held at the scale that it has for x."""
        gain: Tensor = v * norm.weight.float()
        if isinstance(norm, RMSNorm):
            return gain * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + norm.eps)
        self.biases += float((v * norm.bias.float()).sum())
        gain = gain * torch.rsqrt(x.var(dim=-1, correction=0, keepdim=True) + norm.eps)
        return gain - gain.mean(dim=-1, keepdim=True)

    def through_block(self, layer: int) -> None:
        """A block's MLP and attentions, and the norms behind them where the norm is not first."""
        block, name = self.stack.blocks[layer], f"blocks.{layer}"
        crossed = self.stack.config.cross
        parts = [("mlp", block.norm_mlp, "crossed" if crossed else "middle")]
        parts += [("cross", block.norm_cross, "middle")] if crossed else []
        below = f"blocks.{layer - 1}.after" if layer else "embedding"
        for part, norm, before in [*parts, ("attn", block.norm_attn, below)]:
            added = self.at(f"{name}.{part}.out")
            if not block.norm_first:
                stream = self.at(before if before == below else f"{name}.{before}")
                self.functional = self.through_norm(norm, stream + added, self.functional)
            if part == "mlp":
                self.found[f"{name}.mlp"] = self.share(added)
                continue
            for head, share in reversed(list(enumerate(self.heads(getattr(block, part), f"{name}.{part}.mixed")))):
                self.found[f"{name}.{part}.head.{head}"] = share

    def heads(self, attention: Attention, site: str) -> list[float]:
        """What each head adds; the bias of what leads out is nobody's."""
        rows = self.functional.any(dim=-1)
        mixed, functional = self.taps[f"{self.site}{site}"][0][:, rows], self.functional[rows]
        heads, seq, size = mixed.shape
        alone = torch.zeros(heads, seq, heads, size, dtype=mixed.dtype, device=mixed.device)
        index = torch.arange(heads, device=mixed.device)
        alone[index, :, index] = mixed
        nothing = attention.output(torch.zeros_like(alone[:1, :1]).flatten(2))[0].float()
        self.biases += float((nothing * functional).sum())
        led = attention.output(alone.flatten(2)).float() - nothing
        return (led * functional).sum(dim=(1, 2)).tolist()  # type: ignore[no-any-return]

    def rows_of(self, layer: Linear, weights: Float[Tensor, " outputs"]) -> Float[Tensor, " inputs"]:
        """The weighted sum of a layer's rows, however they are held."""
        if layer.held is None:
            return weights @ layer.weight.float()
        basis = torch.eye(layer.in_features + 1, layer.in_features, dtype=self.network.dtype)  # and zeros, for the bias
        found = layer.held(basis).float()
        return (found[:-1] - found[-1]) @ weights
