"""The floor that every large model is compared with: a bag of words, and one or two layers on top of it."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.network.config import ModelConfig
from pellucid.network.layers import ACTIVATIONS, Embedding, Head, Linear
from pellucid.network.masks import Mask
from pellucid.network.network import Network, Output
from pellucid.network.taps import Site, Taps, tap


class BagOfWords(Network):
    """The mean of the tokens' vectors, whatever their order; one layer of scores, or hidden layers before them.

    As a classifier it scores whole texts (Joulin et al., 2017: fastText); else each token is scored by those up to it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.activation = ACTIVATIONS[config.activation]
        self.blocks = nn.ModuleList(Linear(config.d_model, config.d_model, bias=True) for _ in range(config.layers - 1))
        self.head = Head(config)
        self.tie()

    def forward(self, ids: Int[Tensor, "batch seq"], mask: Mask | None = None, taps: Taps | None = None) -> Output:
        """Scores of the next token at every position, or of labels."""
        return self.answer(self.encode(ids, mask, taps), mask, taps)

    def encode(
        self, ids: Int[Tensor, "batch seq"], mask: Mask | None = None, taps: Taps | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        """For each position the mean over the positions that `mask` lets it see, through the hidden layers.

        A classifier's positions see all that is present, so that each holds the whole text.
        """
        self.check(taps)
        taps = self.tapped(taps)
        if mask is None:
            mask = Mask.for_causal(ids.shape[1], ids.device)
        if self.config.head == "classify":
            everything = Mask.for_everything(ids.shape[1], ids.device)
            mask = everything if mask.present is None else Mask.for_bidirectional(mask.present)
        words = tap(taps, "embedding", self.look_up(ids, taps).to(self.dtype))
        if mask.causal and mask.allowed is None:
            x = words.cumsum(dim=1) / (mask.positions[..., None] + 1)
        else:
            seen = mask.dense(ids.shape[1])[:, 0].to(words.dtype)
            x = (seen / seen.sum(dim=-1, keepdim=True).clamp(min=1)).expand(ids.shape[0], -1, -1) @ words
            x = x.expand(-1, ids.shape[1], -1)
        x = tap(taps, "mean", x)
        for i, layer in enumerate(self.blocks):
            x = tap(taps, f"blocks.{i}.after", self.activation(layer(x)))
        return tap(taps, "hidden", x)

    def sites(self) -> list[Site]:
        """Every place where taps can read or edit, in the order of the forward pass."""
        stream = "batch seq d_model"
        layers = [Site(f"blocks.{i}.after", stream, "a hidden layer's activations") for i in range(self.config.layers - 1)]
        return [
            *self.token_sites(),
            Site("embedding", stream, "the same, in the type that the network computes in"),
            Site("mean", stream, "the mean over all tokens that the position sees"),
            *layers,
            Site("hidden", stream, "what the head reads"),
            *self.answer_sites(),
        ]
