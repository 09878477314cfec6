"""From a configuration to a network: shapes only, or with fresh weights."""

from collections.abc import Container
from functools import cache

import torch
from torch import nn

from pellucid.network.baselines import BagOfWords
from pellucid.network.config import Architecture, ModelConfig
from pellucid.network.encoder_decoder import EncoderDecoder
from pellucid.network.network import Network
from pellucid.network.recurrent import Recurrent
from pellucid.network.transformer import Transformer

KINDS: dict[Architecture, type[Network]] = {
    "decoder": Transformer,
    "encoder": Transformer,
    "encoder-decoder": EncoderDecoder,
    "recurrent": Recurrent,
    "bag-of-words": BagOfWords,
}


def outline(config: ModelConfig) -> Network:
    """The network with shapes and no memory, on device `meta`."""
    with torch.device("meta"):
        return KINDS[config.architecture](config)


def build(config: ModelConfig, *, seed: int, device: str = "cpu") -> Network:
    """A new network with fresh weights, the same for the same seed."""
    network = KINDS[config.architecture](config)
    initialize(network, torch.Generator().manual_seed(seed))
    return network.to(device)


@torch.no_grad()
def initialize(network: Network, generator: torch.Generator, only: Container[str] | None = None) -> None:
    """Normal weights for the matrices, zeros for what leads out of a block and for an untied head, ones for the gains.

    So every block starts as the identity (Zhang et al., 2019: Fixup), and the first loss is that of a uniform guess.
    What the head scales down begins as much larger. An LSTM begins by remembering: the biases of its forget gates are 1
    (Jozefowicz et al., 2015). `only` are the names of the weights to set; without, all.
    """
    tied = network.config.tied and not network.config.scores_labels
    for name, weight in network.named_parameters():
        if only is not None and name not in only:
            continue
        if name.endswith("inputs_bias"):
            weight.zero_()[weight.shape[0] // 4 : weight.shape[0] // 2] = 1.0
        elif name.endswith("bias"):
            weight.zero_()
        elif weight.ndim == 1:
            weight.fill_(1.0)
        elif name.endswith((".output.weight", "mlp.down.weight", "head.weight", "relative.weight")):
            weight.zero_()
        elif isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Embedding):
            weight.normal_(0.0, 0.02 / network.config.head_scale if tied else 0.3, generator=generator)
        else:
            weight.normal_(0.0, 0.5 * weight.shape[1] ** -0.5, generator=generator)


@cache
def parameters(config: ModelConfig) -> int:
    """All weights; a tied head is counted once."""
    return sum(weight.numel() for weight in outline(config).parameters())


@cache
def block_parameters(config: ModelConfig) -> int:
    """Weights in the matrices of all blocks: what 6 N D counts."""
    return sum(w.numel() for name, w in outline(config).named_parameters() if is_block_matrix(name, w.ndim))


def is_block_matrix(name: str, dimensions: int) -> bool:
    """Whether a parameter is a matrix inside a block: what Muon moves."""
    return dimensions == 2 and "blocks." in name
