"""An encoder reads a text, and a decoder that attends to its output writes another (Sutskever, 2014; Vaswani, 2017)."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from pellucid.network.attention import Encoded, LayerCache, Memory
from pellucid.network.config import ModelConfig
from pellucid.network.layers import Embedding, Head
from pellucid.network.masks import Mask
from pellucid.network.network import Network, Output
from pellucid.network.taps import Site, Taps
from pellucid.network.transformer import Transformer


class EncoderDecoder(Network):
    """Two transformers that share their embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Transformer(config.encoder(), "encoder.")
        self.decoder = Transformer(config.decoder(), "decoder.")
        self.decoder.embedding = self.encoder.embedding
        self.tie()

    @property
    def embedding(self) -> Embedding:  # type: ignore[override]
        return self.encoder.embedding

    @property
    def head(self) -> Head | None:  # type: ignore[override]
        return self.decoder.head

    def forward(
        self,
        ids: Int[Tensor, "batch keys"],
        mask: Mask | None = None,
        taps: Taps | None = None,
        *,
        decoder_ids: Int[Tensor, "batch seq"],
        decoder_mask: Mask | None = None,
    ) -> Output:
        """Scores of the token after each of `decoder_ids`, given the text `ids`; `mask` says which of `ids` are there."""
        return self.answer(self.encode(ids, mask, taps, decoder_ids=decoder_ids, decoder_mask=decoder_mask), None, taps)

    def encode(
        self,
        ids: Int[Tensor, "batch keys"],
        mask: Mask | None = None,
        taps: Taps | None = None,
        *,
        decoder_ids: Int[Tensor, "batch seq"],
        decoder_mask: Mask | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        self.check(taps)
        return self.decode(decoder_ids, self.read(ids, mask, taps), decoder_mask, taps)

    def read(self, ids: Int[Tensor, "batch keys"], mask: Mask | None = None, taps: Taps | None = None) -> Encoded:
        """The text that the decoder will attend to."""
        mask = mask or Mask.for_everything(ids.shape[1], ids.device)
        return Encoded(self.encoder.encode(ids, mask, taps), mask)

    def decode(
        self,
        ids: Int[Tensor, "batch seq"],
        memory: Memory,
        mask: Mask | None = None,
        taps: Taps | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """The decoder's hidden states at the positions of `ids`."""
        return self.decoder.encode(ids, mask, taps, cache, memory=memory)

    def sites(self) -> list[Site]:
        """Every place where taps can read or edit, in the order of the forward pass."""
        return self.encoder.sites() + self.decoder.sites()
