"""How a network goes on with texts token by token: with what it remembers of earlier tokens, or reading all of them again."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.errors import ModelError
from pellucid.generation.cache import Cache
from pellucid.network.attention import Memory
from pellucid.network.encoder_decoder import EncoderDecoder
from pellucid.network.masks import Mask
from pellucid.network.network import Network
from pellucid.network.recurrent import LayerState, Recurrent


class Decoding(Protocol):
    """Rows of tokens under way."""

    def advance(self, tokens: list[list[int]]) -> Float[Tensor, "batch d_model"]:
        """Read further tokens of the rows; return the hidden states from which the next ones follow.

        A row without tokens is done: what is returned for it means nothing.
        """

    def choose(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with these rows; one may be chosen several times."""


def begin(
    network: Network, prompts: list[list[int]], limits: list[int], *, cache: bool = True
) -> tuple[Decoding, list[list[int]]]:
    """What decodes for this network, and what it reads first: the prompts, or the start of texts about them.

    `limits` are the numbers of tokens that may be written after each.
    """
    if not network.config.generates:
        raise ModelError(f"a {network.config.family} model of this kind does not continue texts; use fill or embed")
    first = prompts
    memory = None
    if isinstance(network, EncoderDecoder):
        ids, lengths = padded(prompts, network.device)
        memory = network.read(ids, Mask.for_bidirectional(torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]))
        memory.kept = {} if cache else None
        first = [[network.config.start_token] for _ in prompts]
    if isinstance(network, Recurrent) and cache:
        return Recurring(network), first
    if network.config.architecture == "bag-of-words" or not cache:
        return Rereading(network, len(prompts), memory), first
    slots = max(len(row) + limit for row, limit in zip(first, limits, strict=True))
    return Attending(network, len(prompts), slots, memory), first


def padded(rows: list[list[int]], device: torch.device) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, " batch"]]:
    """Rows filled up on the right, and their lengths."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)


def last(hidden: Float[Tensor, "batch seq d_model"], lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch d_model"]:
    """The hidden state at the end of each row."""
    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]


def encode(network: Network, ids: Tensor, memory: Memory | None, mask: Mask | None = None, cache: Any = None) -> Tensor:
    if memory is not None:
        return cast(EncoderDecoder, network).decode(ids, memory, mask, cache=cache)
    return network.encode(ids) if cache is None else network.encode(ids, mask, cache=cache)


class Attending:
    """Keys and values of earlier tokens are kept."""

    def __init__(self, network: Network, batch: int, slots: int, memory: Memory | None) -> None:
        config = network.config.decoder() if network.config.decoder_layers else network.config
        self.network, self.memory = network, memory
        self.cache = Cache(config, batch=batch, slots=slots, dtype=network.dtype, device=network.device)
        self.read = torch.zeros(batch, dtype=torch.long, device=network.device)  # tokens of each row so far

    def advance(self, tokens: list[list[int]]) -> Float[Tensor, "batch d_model"]:
        # a row's filling is overwritten by what it reads next, and seen by nobody before that
        ids, lengths = padded(tokens, self.network.device)
        positions = self.read[:, None] + torch.arange(ids.shape[1], device=ids.device)
        self.read = self.read + lengths
        mask = self.cache.mask(positions.clamp(max=self.cache.slots - 1))
        return last(encode(self.network, ids, self.memory, mask, self.cache.layers), lengths)

    def choose(self, rows: Int[Tensor, " rows"]) -> None:
        self.cache.choose(rows)
        self.read = self.read[rows]
        self.memory = None if self.memory is None else self.memory.rows(rows)


class Recurring:
    """A recurrent network's state is kept. Rows of one length are read together, since filling would change it."""

    def __init__(self, network: Recurrent) -> None:
        self.network = network
        self.state: list[LayerState] | None = None

    def advance(self, tokens: list[list[int]]) -> Float[Tensor, "batch d_model"]:
        self.state = self.network.state(len(tokens)) if self.state is None else self.state
        device, found = self.network.device, self.network.state(len(tokens))[0].hidden
        for length in {len(row) for row in tokens} - {0}:
            rows = torch.tensor([i for i, row in enumerate(tokens) if len(row) == length], device=device)
            part = [layer.rows(rows) for layer in self.state]
            ids = torch.tensor([row for row in tokens if len(row) == length], device=device)
            found[rows] = self.network.encode(ids, cache=part)[:, -1]
            for layer, changed in zip(self.state, part, strict=True):
                layer.put(rows, changed)
        return found

    def choose(self, rows: Int[Tensor, " rows"]) -> None:
        self.state = self.state and [LayerState(layer.hidden[rows], layer.cell[rows]) for layer in self.state]


class Rereading:
    """Nothing is kept: the whole text is read again for every token."""

    def __init__(self, network: Network, batch: int, memory: Memory | None) -> None:
        self.network, self.memory = network, memory
        self.rows: list[list[int]] = [[] for _ in range(batch)]

    def advance(self, tokens: list[list[int]]) -> Float[Tensor, "batch d_model"]:
        # the finished rows go on with their texts as they are
        self.rows = [row + new for row, new in zip(self.rows, tokens, strict=True)]
        ids, lengths = padded(self.rows, self.network.device)
        return last(encode(self.network, ids, self.memory), lengths)  # causal: filling on the right is seen by nobody

    def choose(self, rows: Int[Tensor, " rows"]) -> None:
        self.rows = [self.rows[i] for i in rows.tolist()]
        self.memory = None if self.memory is None else self.memory.rows(rows)
