"""Where attention looks: the baseline that people expect, and its flow through the layers. Neither knows what is done there."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.explanation.question import Question
from pellucid.explanation.removal import Floats
from pellucid.explanation.rows import scores
from pellucid.network.taps import Taps


class Flow:
    """One pass over the text, whose attention patterns are worked out one layer after another."""

    def __init__(self, question: Question) -> None:
        self.question, self.config = question, question.network.config
        self.apart = self.config.architecture == "encoder-decoder"
        self.taps = Taps(["*.cross.pattern", "encoder.*.attn.pattern"] if self.apart else "*.attn.pattern")
        self.row = question.rows(question.ids)[0]
        with torch.no_grad():
            scores(question.network, [self.row], self.taps)

    @property
    def attention(self) -> Floats:
        """What the last layer's heads look at on average from where the answer is read off, [tokens]."""
        if self.apart:
            return self.of_text(self.crossing(self.config.decoder_layers - 1))
        return self.of_text(self.reader @ self.mean(f"blocks.{self.config.layers - 1}.attn"))

    @property
    def rollout(self) -> Floats:
        """The same through all layers, each half attention and half the stream that goes past it (Abnar and Zuidema, 2020).

        In an encoder-decoder, from what the decoder's layers look at on average through the encoder's layers.
        """
        if self.apart:
            layers = self.config.decoder_layers
            weights = torch.stack([self.crossing(layer) for layer in range(layers)]).mean(dim=0)
        else:
            weights = self.reader
        for layer in reversed(range(self.config.layers)):
            weights = (weights + weights @ self.mean(f"{'encoder.' if self.apart else ''}blocks.{layer}.attn")) / 2
        return self.of_text(weights)

    @property
    def reader(self) -> Float[Tensor, " seq"]:
        """How much of the answer is read off at each position."""
        seq, at = len(self.row.ids), self.question.at
        weights = torch.zeros(seq)
        if self.config.head == "classify" and self.config.pooling == "mean":
            return weights + 1 / seq
        first = self.config.head == "classify" and self.config.pooling == "first"
        weights[at if at is not None else 0 if first else len(self.question.ids) - 1] = 1
        return weights

    def crossing(self, layer: int) -> Float[Tensor, " keys"]:
        """What a decoder's layer looks at in the text when it writes the answer's first token."""
        return self.mean(f"decoder.blocks.{layer}.cross")[0]

    def mean(self, site: str) -> Float[Tensor, "seq keys"]:
        """A layer's pattern, the mean over its heads; worked out anew, since all of them would not fit into memory."""
        return self.taps[f"{site}.pattern"][0].mean(dim=0).float().cpu()

    def of_text(self, weights: Float[Tensor, " keys"]) -> Floats:
        return weights[: len(self.question.ids)].double().numpy()


def attends(question: Question) -> bool:
    """Whether there is attention at all."""
    return question.network.config.architecture in ("decoder", "encoder", "encoder-decoder")
