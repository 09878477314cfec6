"""Floating-point operations of a network, counted from its matrices."""

from pellucid.network.config import ModelConfig


def forward_flops(config: ModelConfig, context: int) -> float:
    """FLOPs per token of a forward pass over `context` tokens: two per weight and use, and causal attention as it is needed.

    A query at position t meets t + 1 keys, (context + 1) / 2 on average, once for its scores and once for its mixture.
    """
    head = config.vocab_size * config.d_model
    attention = config.layers * 2 * (context + 1) / 2 * config.heads * config.d_head
    return 2 * (config.block_parameters + head + attention)


def training_flops(config: ModelConfig, context: int) -> float:
    """FLOPs per token of learning: the backward pass costs two forward passes (Kaplan et al., 2020)."""
    return 3 * forward_flops(config, context)
