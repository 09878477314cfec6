"""From a network that scores tokens, or other labels, to one that scores these labels."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from pellucid.core.errors import ConfigError
from pellucid.network.build import initialize, outline
from pellucid.network.config import Pooling, Problem
from pellucid.network.network import Network


def with_labels(
    network: Network,
    *,
    head: Literal["classify", "tag"],
    labels: Sequence[str],
    problem: Problem = "single",
    pooling: Pooling = "mean",
    seed: int,
) -> Network:
    """The same network with a head for labels: its weights are shared with `network`, not copied.

    A head that already scores these labels in this order, for the same problem and from the same pooling, is kept; else a fresh
    one is made from `seed`. So is a pooler where the pooling is `first` and the network has none; another pooling drops it.
    Raises `ConfigError` for labels and settings that do not go together, and for an encoder-decoder.
    """
    if head not in ("classify", "tag"):
        raise ConfigError(f"a head for labels must be one of classify, tag, not {head!r}")
    before, pooler = network.config, head == "classify" and pooling == "first"
    config = replace(before, head=head, labels=tuple(labels), problem=problem, pooling=pooling, pooler=pooler)
    labelled = outline(config)
    kept = network.state_dict()
    if (before.head, before.labels, before.problem, before.pooling) != (head, config.labels, problem, pooling):
        kept = {name: weight for name, weight in kept.items() if not name.startswith("head.")}
    expected = labelled.state_dict()
    if strangers := [name for name in kept if name not in expected and not name.startswith(("head.", "pooler."))]:
        raise ConfigError(
            f"a network with adapters gets no other head: {strangers[0]} is no weight of its own; merge them first"
        )
    like = network.embedding.weight
    weights, fresh = {}, set[str]()
    for name, weight in expected.items():
        if name in kept:
            weights[name] = kept[name]
        else:
            weights[name] = torch.empty(weight.shape, dtype=like.dtype)
            fresh.add(name)
    labelled.load_state_dict(weights, assign=True)
    initialize(labelled, torch.Generator().manual_seed(seed), fresh)
    labelled.compute_in(network.compute_dtype, recompute=network.recompute)
    return labelled.to(like.device).train(network.training)
