"""What every head looks at in a text, small enough to be sent along with a report."""

from __future__ import annotations

import gzip
from base64 import b64encode
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pellucid.explanation.flow import Flow, attends
from pellucid.explanation.question import Question

WHOLE = 160  # tokens up to which every weight is kept; beyond, the largest of each row
KEPT = 8
LONGEST = 2048  # tokens of which a page can show heads without freezing


@dataclass(frozen=True)
class Patterns:
    """The weights of all heads in bytes, 255 for a weight of 1: [sites heads rows keys].

    Of long texts the `kept` largest of each row, as the key (two bytes, the low one first) and the weight, [... rows kept 3].
    """

    tokens: tuple[str, ...]
    sites: tuple[str, ...]
    heads: int
    kept: int  # of a row; 0: all
    data: bytes

    def to_json(self) -> dict[str, object]:
        """For the page: the weights gzipped, as text."""
        packed = b64encode(gzip.compress(self.data, 6, mtime=0)).decode()
        named = {name: getattr(self, name) for name in ("tokens", "sites", "heads", "kept")}
        return {**named, "data": packed}


def patterns_of(question: Question) -> Patterns | None:
    """The patterns of a pass over the text; None without attention, or where there are too many tokens to be looked at."""
    config = question.network.config
    if not attends(question) or len(question.ids) > LONGEST:
        return None
    flow, decode = Flow(question), question.tokenizer.decode
    tokens = tuple(decode([id], special=True) for id in flow.row.ids)
    sites = [f"{'encoder.' if flow.apart else ''}blocks.{layer}.attn" for layer in range(config.layers)]
    kept = 0 if len(tokens) <= WHOLE else KEPT
    data = b"".join(packed(flow.taps.take(f"{site}.pattern")[0], kept) for site in sites)
    return Patterns(tokens, tuple(sites), config.heads, kept, data)


def packed(weights: Tensor, kept: int) -> bytes:
    """A layer's weights [heads rows keys] as bytes."""
    if not kept:
        return (weights.float() * 255).round().to(torch.uint8).cpu().numpy().tobytes()
    best = weights.float().topk(kept, dim=-1)
    keys = best.indices.to(torch.int32).cpu().numpy()
    shares = (best.values * 255).round().to(torch.uint8).cpu().numpy()
    return np.stack([keys & 255, keys >> 8, shares], axis=-1).astype(np.uint8).tobytes()
