"""Floating-point operations of a network, counted from its matrices."""

from pellucid.network.build import block_parameters
from pellucid.network.config import ModelConfig


def forward_flops(config: ModelConfig, context: int, *, scored: float = 1.0, decoded: int = 0) -> float:
    """FLOPs per token of a forward pass over `context` tokens: two per weight and use, and attention as it is needed.

    A query at position t of a decoder meets t + 1 keys, (context + 1) / 2 on average, once for its scores and once for its
    mixture; an encoder's meets all. `scored` is the share of positions that the head scores (a classifier's scores one vector
    for each text, whatever it says), `decoded` how many tokens an encoder-decoder writes.
    """
    if config.architecture == "encoder-decoder":
        encoder, decoder = config.encoder(), config.decoder()
        share = decoded / context
        crossed = 2 * 2 * decoder.layers * context * decoder.heads * decoder.d_head * share
        keys = decoder.layers * 2 * decoder.d_model * decoder.kv_heads * decoder.d_head  # of the encoder's output, not the text
        own = forward_flops(decoder, decoded) * share - 2 * keys * share + 2 * keys if decoded else 0.0
        return forward_flops(encoder, context) + own + crossed
    scored = 1 / context if config.head == "classify" else scored
    head = 0.0 if config.head == "none" else (len(config.labels) or config.vocab_size) * config.d_model * scored
    head += config.d_model**2 * scored if config.head == "classify" and config.pooler else 0.0
    head += config.d_model**2 * scored if config.head == "mlm" else 0.0
    attention = 0.0
    if config.architecture in ("decoder", "encoder"):
        met = (context + 1) / 2 if config.causal else context
        attention = config.layers * 2 * met * config.heads * config.d_head
    return 2 * (block_parameters(config) + head + attention)


def training_flops(config: ModelConfig, context: int, *, scored: float = 1.0, decoded: int = 0) -> float:
    """FLOPs per token of learning: the backward pass costs two forward passes (Kaplan et al., 2020)."""
    return 3 * forward_flops(config, context, scored=scored, decoded=decoded)
