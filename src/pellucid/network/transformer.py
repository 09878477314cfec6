"""The network: an embedding, a stack of equal blocks, a norm and a head."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pellucid.network.attention import Attention, LayerCache
from pellucid.network.config import ModelConfig
from pellucid.network.layers import MLP, Embedding, Linear, RMSNorm, Rotary, Rotation
from pellucid.network.masks import Mask
from pellucid.network.taps import Site, Taps, tap


@dataclass(frozen=True)
class Output:
    """What a forward pass returns."""

    logits: Float[Tensor, "batch seq vocab"]
    hidden: Float[Tensor, "batch seq d_model"]  # what the head reads, after the last norm


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): pre-norm, so that the residual stream is a plain sum."""

    def __init__(self, config: ModelConfig, site: str) -> None:
        super().__init__()
        self.site = site
        self.norm_attn = RMSNorm(config.d_model, config.norm_eps)
        self.attn = Attention(config, f"{site}.attn")
        self.norm_mlp = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config, f"{site}.mlp")

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        mask: Mask,
        rotation: Rotation,
        cache: LayerCache | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        x = tap(taps, f"{self.site}.middle", x + self.attn(self.norm_attn(x), mask, rotation, cache, taps))
        return tap(taps, f"{self.site}.after", x + self.mlp(self.norm_mlp(x), taps))


class Transformer(nn.Module):
    """A decoder language model."""

    compute_dtype: torch.dtype | None = None  # of activations and matrix products; None: that of the weights
    compiled: bool = False  # whether the blocks are torch.compile's
    recompute: bool = False  # activation checkpointing: hold each block's input only, compute the rest again when needed

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.rotary = Rotary(config.d_head, config.rope_theta)
        self.blocks = nn.ModuleList(Block(config, f"blocks.{i}") for i in range(config.layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = Linear(config.d_model, config.vocab_size)
        if config.tied:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        ids: Int[Tensor, "batch seq"],
        mask: Mask | None = None,
        taps: Taps | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Output:
        """Logits of the next token at every position; causal unless `mask` says otherwise."""
        hidden = self.encode(ids, mask, taps, cache)
        return Output(logits=tap(taps, "logits", self.head(hidden)), hidden=hidden)

    def encode(
        self,
        ids: Int[Tensor, "batch seq"],
        mask: Mask | None = None,
        taps: Taps | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """All but the head: what a loss that never builds the logits works on."""
        if taps is not None:
            taps.check(site.name for site in self.sites())
        mask = mask or Mask.for_causal(ids.shape[1], ids.device)
        x = tap(taps, "embedding", self.embedding(ids).to(self.dtype))
        rotation = self.rotary(mask.positions, x.dtype)
        for i, block in enumerate(self.blocks):
            inputs = (x, mask, rotation, None if cache is None else cache[i], taps)
            recompute = self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
        return tap(taps, "hidden", self.norm(x))

    def compile_blocks(self) -> None:
        """Have torch.compile make one kernel after another of every block's forward and backward pass."""
        self.compiled = True
        for block in self.blocks:
            block.compile(dynamic=False)

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self.compute_dtype or self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def sites(self) -> list[Site]:
        """Every place where taps can read or edit, in the order of the forward pass."""
        stream, head = "batch seq d_model", "batch heads seq d_head"
        found = [Site("embedding", stream, "token embeddings: the residual stream before the first block")]
        for i in range(self.config.layers):
            found += [
                Site(f"blocks.{i}.attn.q", head, "queries, normed and rotated"),
                Site(f"blocks.{i}.attn.k", "batch kv_heads seq d_head", "keys, normed and rotated"),
                Site(f"blocks.{i}.attn.v", "batch kv_heads seq d_head", "values"),
                Site(f"blocks.{i}.attn.pattern", "batch heads seq keys", "attention weights, softmax(q k^T / sqrt(d_head))"),
                Site(f"blocks.{i}.attn.mixed", head, "values mixed by each head, before the output projection"),
                Site(f"blocks.{i}.attn.out", stream, "what attention adds to the residual stream"),
                Site(f"blocks.{i}.middle", stream, "the residual stream between attention and MLP"),
                Site(f"blocks.{i}.mlp.neurons", "batch seq d_mlp", "gated activations of the MLP"),
                Site(f"blocks.{i}.mlp.out", stream, "what the MLP adds to the residual stream"),
                Site(f"blocks.{i}.after", stream, "the residual stream after the block"),
            ]
        return [
            *found,
            Site("hidden", stream, "the last residual stream, normed"),
            Site("logits", "batch seq vocab", "scores of the next token"),
        ]


def build(config: ModelConfig, *, seed: int, device: str = "cpu") -> Transformer:
    """A new network with fresh weights, the same for the same seed. On device `meta` it has shapes but no memory."""
    if device == "meta":
        with torch.device("meta"):
            return Transformer(config)
    network = Transformer(config)
    initialize(network, torch.Generator().manual_seed(seed))
    return network.to(device)


@torch.no_grad()
def initialize(network: Transformer, generator: torch.Generator) -> None:
    """Normal weights for the matrices, zeros for what leads out of a block and for an untied head, ones for the gains.

    So every block starts as the identity (Zhang et al., 2019: Fixup), and the first loss is that of a uniform guess.
    """
    for name, weight in network.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0)
        elif name.endswith(("attn.output.weight", "mlp.down.weight")) or name == "head.weight":
            weight.zero_()
        elif name == "embedding.weight":
            weight.normal_(0.0, 0.02 if network.config.tied else 0.3, generator=generator)
        else:
            weight.normal_(0.0, 0.5 * weight.shape[1] ** -0.5, generator=generator)
