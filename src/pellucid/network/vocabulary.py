"""A network with a larger vocabulary: tokens that a tokenizer was given later."""

from dataclasses import replace

import torch

from pellucid.network.build import outline
from pellucid.network.network import Network

ROWS = ("embedding.weight", "head.weight", "head.bias")  # what has a row for each token


def with_vocabulary(network: Network, size: int) -> Network:
    """The same network for `size` tokens, if it has fewer: a new token begins as the mean of all others.

    So its score is about that of an average token, and the first loss is not much worse (Hewitt, 2021). Other weights are
    shared with `network`, not copied.
    """
    if size <= network.config.vocab_size:
        return network
    grown = outline(replace(network.config, vocab_size=size))
    weights = network.state_dict()
    for name, wanted in grown.state_dict().items():
        if name.endswith(ROWS) and wanted.shape != weights[name].shape:
            new = weights[name].float().mean(dim=0, keepdim=True).to(weights[name].dtype)
            weights[name] = torch.cat([weights[name], new.expand(size - len(weights[name]), *new.shape[1:])])
    grown.load_state_dict(weights, assign=True)
    grown.tie()
    grown.compute_in(network.compute_dtype, recompute=network.recompute)
    return grown.train(network.training)
