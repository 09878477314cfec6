"""What all networks have in common: token ids in, hidden states and scores out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pellucid.core.errors import ModelError
from pellucid.network.config import ModelConfig
from pellucid.network.layers import Embedding, Head, Pooler, dropped
from pellucid.network.masks import Mask
from pellucid.network.pooling import pool
from pellucid.network.taps import Site, Taps, tap


@dataclass(frozen=True)
class Output:
    """What a forward pass returns."""

    logits: Float[Tensor, "batch *seq scores"] | None  # None: the network has no head
    hidden: Float[Tensor, "batch seq d_model"]  # what the head reads, after the last norm
    pooled: Float[Tensor, "batch d_model"] | None = None  # of a network with a pooler, or with scores of whole texts


@dataclass(frozen=True, kw_only=True)
class Step:
    """A compiled pass, as `generation.compiled` makes it."""

    run: Callable[..., Tensor]
    sizes: tuple[int, ...]  # numbers of rows that give a row the same bits


@dataclass(frozen=True, kw_only=True)
class Held:
    """How `holding.hold` holds a network that will only read."""

    precision: str
    nbytes: int  # of all matrices, which every pass reads
    sizes: tuple[int, ...]  # numbers of rows in a pass that give a row the same bits
    free: int  # so many rows take hardly longer than one
    step: Step | None = None  # in place of passes of one token for each text


class Network(nn.Module, ABC):
    """A language model. `encode` is the forward pass up to the head; `answer` is what the head makes of it."""

    compute_dtype: torch.dtype | None = None  # of activations and matrix products; None: that of the weights
    compiled: bool = False  # whether the blocks are torch.compile's
    held: Held | None = None  # None: in weights that can learn and be saved
    standing: tuple[Taps, ...] = ()  # of every pass, before those that it is given
    recompute: bool = False  # activation checkpointing: hold each block's input only, compute the rest again when needed
    config: ModelConfig
    embedding: Embedding
    head: Head | None
    pooler: Pooler | None  # there if config.pooler

    @abstractmethod
    def encode(self, *inputs: Any, **options: Any) -> Float[Tensor, "batch seq d_model"]:
        """All but the head: what a loss that never builds all scores works on."""

    @abstractmethod
    def sites(self) -> list[Site]:
        """Every place where taps can read or edit, in the order of the forward pass."""

    def look_up(
        self, ids: Int[Tensor, "batch seq"], taps: Taps | None, site: str = "tokens"
    ) -> Float[Tensor, "batch seq d_model"]:
        """The vectors of tokens."""
        return tap(taps, site, self.embedding(ids))

    def padding(self, present: Bool[Tensor, "batch seq"]) -> Mask:
        """Who sees whom in a batch of texts that are filled up on the right."""
        config = self.config
        one_way = config.architecture in ("decoder", "recurrent") or (
            config.architecture == "bag-of-words" and config.head == "lm"
        )
        return Mask.for_padded(present, causal=one_way)

    def answer(self, hidden: Float[Tensor, "batch seq d_model"], mask: Mask | None = None, taps: Taps | None = None) -> Output:
        """The scores of the last hidden states; of whole texts, if the head classifies."""
        config, pooled, read, taps = self.config, None, hidden, self.tapped(taps)
        pooler = self.pooler if config.pooler else None
        if config.head == "classify":
            pooled = pool(hidden, None if mask is None else mask.present, config.pooling)
            read = pooled = tap(taps, "pooled", pooled if pooler is None else pooler(pooled))
        if config.scores_labels:
            read = dropped(read, config.dropout, self.training)
        logits = None if self.head is None else tap(taps, "logits", self.head(read))
        if pooler is not None and pooled is None:
            pooled = tap(taps, "pooled", pooler(hidden[:, 0]))
        return Output(logits=logits, hidden=hidden, pooled=pooled)

    def token_sites(self, prefix: str = "") -> list[Site]:
        """Where `look_up` can be read."""
        return [Site(f"{prefix}tokens", "batch seq d_model", "vectors of the tokens, nothing added yet")]

    def answer_sites(self) -> list[Site]:
        """Where `answer` can be read."""
        config = self.config
        dense = f"{config.pooler_activation} of a dense layer over the first position"
        pooled = [Site("pooled", "batch d_model", dense if config.pooler else f"the text: pooling {config.pooling}")]
        if config.head == "classify":
            return [*pooled, Site("logits", "batch labels", "scores of the labels, for the whole text")]
        shape, scored = {
            "lm": ("batch seq vocab", "the next token"),
            "mlm": ("batch seq vocab", "the token there"),
            "tag": ("batch seq labels", "the labels, for the token there"),
            "none": ("", ""),
        }[config.head]
        return ([Site("logits", shape, f"scores of {scored}")] if scored else []) + (pooled if config.pooler else [])

    def scores(self, hidden: Float[Tensor, "places d_model"]) -> Float[Tensor, "places scores"]:
        """What the head makes of last hidden states; standing taps see each place as a text of one token."""
        logits: Tensor = self.scorer(hidden)
        return tap(self.tapped(None), "logits", logits[:, None])[:, 0] if self.standing else logits

    @property
    def scorer(self) -> Head:
        """The head of a network that must have one."""
        if self.head is None:
            raise ModelError(f"this {self.config.family} model has no language-model head, so it gives vectors but no scores")
        return self.head

    def tie(self) -> None:
        """Make the embedding's weight the head's, where they are one."""
        if self.config.tied and self.head is not None and not self.config.scores_labels:
            self.head.weight = self.embedding.weight

    def compute_in(self, dtype: torch.dtype | None, *, recompute: bool = False) -> None:
        """Set the type of activations and matrix products, and whether activations are held or computed again."""
        for part in self.modules():
            if isinstance(part, Network):
                part.compute_dtype, part.recompute = dtype, recompute

    def hold_in(self, dtype: torch.dtype) -> None:
        """`compute_in`, and hold the blocks' weights in that type too: for a network that will neither learn nor be saved.

        The results are the same, but weights are not converted at each pass.
        """
        self.compute_in(dtype)
        for name, weight in self.named_parameters():
            if "blocks." in name:
                weight.data = weight.data.to(dtype)

    def compile_blocks(self) -> None:
        """Have torch.compile make one kernel after another of every block's forward and backward pass."""
        self.compiled = True
        for name, module in self.named_modules():
            if name.rpartition(".")[0].endswith("blocks"):
                module.compile(dynamic=False)

    def check(self, taps: Taps | None) -> None:
        """Refuse taps on sites that there are not."""
        if taps is not None:
            taps.check(site.name for site in self.sites())

    def tapped(self, taps: Taps | None) -> Taps | None:
        """The taps of a pass: the standing ones, then those that it is given."""
        found = None
        for one in (*self.standing, *([] if taps is None else [taps])):
            found = one if found is None else one.after(found)
        return found

    @property
    def is_edited(self) -> bool:
        """Whether something changes what passes, so that the weights alone are not the network."""
        return any(taps.edit for taps in self.standing)

    def edited(self, taps: Taps) -> "Network":
        """This network with edits in every pass; it shares the weights."""
        self.check(taps)
        return self.view((*(one for one in self.standing if one.edit), taps))

    def view(self, standing: tuple[Taps, ...]) -> "Network":
        """The same modules, with taps of their own: in an encoder-decoder each half has them too."""
        view = copy(self)
        view.standing = standing
        view._modules = {
            name: part.view(standing) if isinstance(part, Network) else part for name, part in self._modules.items()
        }
        return view

    @contextmanager
    def recording(self, taps: Taps) -> Iterator[None]:
        """Let taps stand in every pass, for as long."""
        self.check(taps)
        parts = [part for part in self.modules() if isinstance(part, Network)]
        for part in parts:
            part.standing = (*part.standing, taps)
        try:
            yield
        finally:
            for part in parts:
                part.standing = tuple(one for one in part.standing if one is not taps)

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self.compute_dtype or self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device
