"""The transformer: an embedding, a stack of equal blocks, a norm and a head. Decoders and encoders alike."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pellucid.network.attention import Attention, CrossAttention, LayerCache, Memory
from pellucid.network.config import ModelConfig
from pellucid.network.layers import MLP, Embedding, Head, Pooler, dropped, norm
from pellucid.network.masks import Mask
from pellucid.network.network import Network, Output
from pellucid.network.positions import RelativeBias, Rotary, Rotation
from pellucid.network.taps import Site, Taps, tap


class Block(nn.Module):
    """Attention, perhaps to an encoder's output too, and an MLP, each added to the stream x.

    With the norm first, x + part(norm(x)), the stream is a plain sum of what the parts add; else it is norm(x + part(x)).
    """

    def __init__(self, config: ModelConfig, site: str) -> None:
        super().__init__()
        self.site, self.norm_first, self.dropout = site, config.norm_first, config.dropout
        self.norm_attn = norm(config)
        self.attn = Attention(config, f"{site}.attn")
        if config.cross:
            self.norm_cross = norm(config)
            self.cross = CrossAttention(config, f"{site}.cross")
        self.norm_mlp = norm(config)
        self.mlp = MLP(config, f"{site}.mlp")

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        mask: Mask,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
        taps: Taps | None = None,
        memory: Memory | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        mixed = self.attn(self.read(x, self.norm_attn), mask, rotation, cache, taps)
        x = tap(taps, f"{self.site}.middle", self.add(x, mixed, self.norm_attn))
        if memory is not None:
            mixed = self.cross(self.read(x, self.norm_cross), memory, taps)
            x = tap(taps, f"{self.site}.crossed", self.add(x, mixed, self.norm_cross))
        added = self.mlp(self.read(x, self.norm_mlp), taps)
        return tap(taps, f"{self.site}.after", self.add(x, added, self.norm_mlp))

    def read(self, x: Float[Tensor, "batch seq d_model"], norm: nn.Module) -> Float[Tensor, "batch seq d_model"]:
        return norm(x) if self.norm_first else x

    def add(
        self, x: Float[Tensor, "batch seq d_model"], part: Float[Tensor, "batch seq d_model"], norm: nn.Module
    ) -> Float[Tensor, "batch seq d_model"]:
        x = x + dropped(part, self.dropout, self.training)
        return x if self.norm_first else norm(x)


class Since(NamedTuple):
    """Where a pass begins when what comes before is known: a block, and the stream that it reads."""

    block: int
    stream: Float[Tensor, "batch seq d_model"]


class Transformer(Network):
    """A decoder, an encoder, or one half of both. The names of an encoder-decoder's sites begin with `site`."""

    def __init__(self, config: ModelConfig, site: str = "") -> None:
        super().__init__()
        self.config, self.site = config, site
        self.embedding = Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.positions = Embedding(config.context_length + config.position_offset, config.d_model)
        if config.token_types:
            self.types = Embedding(config.token_types, config.d_model)
        self.norm_embedding = norm(config) if config.norm_embedding else None
        self.rotary = Rotary(config) if config.positions == "rotary" else None
        self.relative = RelativeBias(config) if config.positions == "relative" else None
        self.blocks = nn.ModuleList(Block(config, f"{site}blocks.{i}") for i in range(config.layers))
        self.norm = norm(config) if config.norm_first else None
        self.pooler = Pooler(config) if config.pooler else None
        self.head = Head(config) if config.head != "none" else None
        self.tie()

    def forward(
        self,
        ids: Int[Tensor, "batch seq"],
        mask: Mask | None = None,
        taps: Taps | None = None,
        cache: Sequence[LayerCache] | None = None,
        types: Int[Tensor, "batch seq"] | None = None,
    ) -> Output:
        """Scores of the next token at every position (an encoder: of the token there), or of labels.

        A decoder's positions see those before them, an encoder's see all, unless `mask` says otherwise. `types` are the
        token types of a network that has them; without, all are 0.
        """
        return self.answer(self.encode(ids, mask, taps, cache, types), mask, taps)

    def encode(
        self,
        ids: Int[Tensor, "batch seq"],
        mask: Mask | None = None,
        taps: Taps | None = None,
        cache: Sequence[LayerCache] | None = None,
        types: Int[Tensor, "batch seq"] | None = None,
        memory: Memory | None = None,
        since: Since | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """The last stream, normed; `since` some block only, with the stream that it is given there."""
        if not self.site:
            self.check(taps)
        taps = self.tapped(taps)
        if mask is None:
            mask = (Mask.for_causal if self.config.causal else Mask.for_everything)(ids.shape[1], ids.device)
        if since is None:
            since = Since(0, tap(taps, f"{self.site}embedding", self.embed(ids, mask, types, taps)))
        x = since.stream
        rotation = None if self.rotary is None else self.rotary(mask.positions, x.dtype)
        if self.relative is not None:
            mask = mask.with_bias(self.relative(mask, mask.keys))
        for i, block in list(enumerate(self.blocks))[since.block :]:
            inputs = (x, mask, rotation, None if cache is None else cache[i], taps, memory)
            recompute = self.recompute and torch.is_grad_enabled()
            x = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
        if self.norm is not None:
            x = self.norm(x)
        return tap(taps, f"{self.site}hidden", x)

    def embed(
        self, ids: Int[Tensor, "batch seq"], mask: Mask, types: Int[Tensor, "batch seq"] | None, taps: Taps | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        """The stream before the first block: tokens, and what the family adds to them."""
        x = self.look_up(ids, taps, f"{self.site}tokens")
        if self.config.positions == "learned":
            x = x + self.positions(mask.positions + self.config.position_offset)
        if self.config.token_types:
            x = x + self.types(torch.zeros_like(ids) if types is None else types)
        if self.norm_embedding is not None:
            x = self.norm_embedding(x)
        return dropped(x, self.config.dropout, self.training).to(self.dtype)

    def sites(self) -> list[Site]:
        """Every place where taps can read or edit, in the order of the forward pass."""
        stream, kv, at = "batch seq d_model", "batch kv_heads seq d_head", self.site
        found = [*self.token_sites(at), Site(f"{at}embedding", stream, "the stream before the first block")]
        turned = ", rotated" if self.rotary is not None else ""
        scores = "q k^T / sqrt(d_head)" if self.config.scaled else "q k^T"
        weights = f"softmax({scores})" if self.relative is None else f"softmax({scores} + a bias for each distance)"
        for i in range(self.config.layers):
            block = f"{at}blocks.{i}"
            found += attention_sites(f"{block}.attn", kv, turned, weights)
            found.append(Site(f"{block}.middle", stream, "the stream after attention"))
            if self.config.cross:
                found += attention_sites(f"{block}.cross", "batch kv_heads keys d_head", "", f"softmax({scores})")
                found.append(Site(f"{block}.crossed", stream, "the stream after attention to the encoder"))
            found += [
                Site(f"{block}.mlp.neurons", "batch seq d_mlp", "activations of the MLP"),
                Site(f"{block}.mlp.out", stream, "what the MLP adds to the stream"),
                Site(f"{block}.after", stream, "the stream after the block"),
            ]
        found.append(Site(f"{at}hidden", stream, "the last stream, normed: what the head reads"))
        return found + self.answer_sites()


def attention_sites(site: str, kv: str, turned: str, weights: str) -> list[Site]:
    """Where attention can be read."""
    head = "batch heads seq d_head"
    return [
        Site(f"{site}.q", head, f"queries{turned}"),
        Site(f"{site}.k", kv, f"keys{turned}"),
        Site(f"{site}.v", kv, "values"),
        Site(f"{site}.pattern", "batch heads seq keys", f"attention weights, {weights}"),
        Site(f"{site}.mixed", head, "values mixed by each head, before the output projection"),
        Site(f"{site}.out", "batch seq d_model", "what attention adds to the stream"),
    ]
