"""How a network goes on with texts token by token: with what it remembers of earlier tokens, or reading all of them again.

Every forward pass has one of few shapes: a tile of one prompt, or a row for each of so many texts, filled up to one of a few
numbers that give a row the same bits. So a text's numbers do not depend on what else is under way. A compiled step takes rows
only, and reads the beginnings of prompts as rows too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pellucid.core.errors import ModelError
from pellucid.generation.slots import Slots, Sources
from pellucid.network.attention import CrossAttention
from pellucid.network.encoder_decoder import EncoderDecoder
from pellucid.network.masks import Mask
from pellucid.network.network import Network
from pellucid.network.recurrent import Recurrent
from pellucid.network.transformer import Transformer

SMALL = 30_000_000  # parameters
TILE = 64  # tokens of a prompt that are read at once
NEAR = 256  # tokens of a prompt that a compiled step reads faster than tiles: it sees all keys for each of them anew


class Decoding(Protocol):
    """Texts under way, each in a slot."""

    tile: int | None  # how many tokens of a prompt are read at once; None: all
    sizes: tuple[int, ...]  # how many rows a pass may have, of which all numbers give a row the same bits
    near: int  # so many first tokens of a prompt are not read in tiles but each in a row of its own, beside those of others

    def begin(self, slot: int, prompt: list[int]) -> list[int]:
        """Make a slot ready for a prompt; return the tokens to read first, which an encoder-decoder has its own of."""

    def read(self, slot: int, tokens: list[int], start: int) -> Float[Tensor, "tokens d_model"]:
        """Read tokens that follow the first `start` ones of a text; return the hidden state at each."""

    def advance(self, slots: list[int], starts: list[int], tokens: list[int]) -> Float[Tensor, "texts d_model"]:
        """Read one more token of each of several texts, of which so many have been read."""

    def choose(self, slots: list[int]) -> None:
        """Go on in the first slots with the texts of these; one may be chosen several times."""


def begin_decoding(network: Network, *, slots: int, length: int, sources: int = 1, cache: bool = True) -> Decoding:
    """What decodes for this network: up to `slots` texts of up to `length` tokens, about sources of up to `sources`."""
    if not network.config.generates:
        raise ModelError(f"a {network.config.family} model of this kind does not continue texts; use fill or embed")
    if network.config.architecture == "bag-of-words" or not cache:
        return Rereading(network, slots)
    if isinstance(network, Recurrent):
        return Recurring(network, slots)
    assert isinstance(network, Transformer | EncoderDecoder), "nothing else generates"
    return Attending(network, slots, length, sources)


def sizes_of(network: Network) -> tuple[int, ...]:
    """How many rows a pass may have: what `hold` has found, or one number for a network in plain weights.

    With these, in bf16 16 rows take as long as one. In fp32 4 take twice as long as 2, which does not matter to a small model,
    where other things take as long.
    """
    if network.held is not None:
        return network.held.sizes
    small = sum(weight.numel() for weight in network.parameters()) < SMALL
    return (16 if network.dtype == torch.bfloat16 else 4 if small else 2,)


def spare(decoding: Decoding, network: Network, rows: int) -> int:
    """How many rows more cost hardly anything."""
    free = max(network.held.free if network.held is not None else 1, filled(decoding.sizes, min(rows, decoding.sizes[-1])))
    return -rows % free


def filled(sizes: tuple[int, ...], rows: int) -> int:
    """The number of rows of a pass that has room for so many."""
    return next(size for size in sizes if size >= rows)


@dataclass(frozen=True)
class Piece:
    """Tokens of a prompt, which follow its first `start` ones."""

    slot: int
    tokens: list[int]
    start: int


def read_pieces(decoding: Decoding, pieces: Sequence[Piece]) -> list[Float[Tensor, "tokens d_model"]]:
    """Read a tile, or what is left, of several prompts. Where a token stands decides how it is read, not what is beside it."""
    near = [piece for piece in pieces if piece.start + TILE <= decoding.near]
    slots = [piece.slot for piece in near for _ in piece.tokens]
    starts = [piece.start + at for piece in near for at in range(len(piece.tokens))]
    tokens = [token for piece in near for token in piece.tokens]
    rows = advance_all(decoding, slots, starts, tokens) if near else torch.empty(0)
    parts = iter(torch.split(rows, [len(piece.tokens) for piece in near]))
    return [next(parts) if piece in near else decoding.read(piece.slot, piece.tokens, piece.start) for piece in pieces]


def read_all(decoding: Decoding, slot: int, tokens: list[int]) -> Float[Tensor, "tokens d_model"]:
    """Read a whole prompt."""
    tile = decoding.tile or len(tokens)
    pieces = [Piece(slot, tokens[at : at + tile], at) for at in range(0, len(tokens), tile)]
    return torch.cat([hidden for piece in pieces for hidden in read_pieces(decoding, [piece])])


def advance_all(decoding: Decoding, slots: list[int], starts: list[int], tokens: list[int]) -> Float[Tensor, "texts d_model"]:
    """Advance any number of texts."""
    most = decoding.sizes[-1]
    parts = [slice(at, at + most) for at in range(0, len(slots), most)]
    return torch.cat([decoding.advance(slots[part], starts[part], tokens[part]) for part in parts])


def scores_of(network: Network, hidden: Float[Tensor, "texts d_model"]) -> Float[Tensor, "texts vocab"]:
    """The scores of the next token, in fp32; filled up as other passes are."""
    found, sizes = [], sizes_of(network)
    for part in torch.split(hidden, sizes[-1]):
        whole = F.pad(part, (0, 0, 0, filled(sizes, len(part)) - len(part)))
        found.append(network.scores(whole)[: len(part)])
    return torch.cat(found).float()


class Attending:
    """Keys and values of earlier tokens are kept, and those that a decoder makes of its source."""

    tile: int | None = TILE

    def __init__(self, network: Transformer | EncoderDecoder, slots: int, length: int, sources: int) -> None:
        self.network = network
        self.step = None if network.held is None or network.standing else network.held.step  # which knows no taps
        self.sizes, self.near = (sizes_of(network), 0) if self.step is None else (self.step.sizes, NEAR)
        self.reader = network if isinstance(network, EncoderDecoder) else None
        self.decoder = network.decoder if isinstance(network, EncoderDecoder) else network
        config = self.decoder.config
        self.slots = Slots(config, slots=slots, length=length, dtype=network.dtype, device=network.device)
        layers = [part for part in network.modules() if isinstance(part, CrossAttention)]
        self.sources = Sources(config, layers, slots=slots, length=sources, like=self.slots.keys[0]) if layers else None

    def begin(self, slot: int, prompt: list[int]) -> list[int]:
        if self.reader is None or self.sources is None:
            return prompt
        self.sources.keep(slot, self.reader.read(torch.tensor([prompt], device=self.network.device)).hidden)
        return [self.network.config.start_token]

    def read(self, slot: int, tokens: list[int], start: int) -> Float[Tensor, "tokens d_model"]:
        mask = self.slots.place([slot], [start], seq=TILE, batch=1)
        return self.encode([tokens + [0] * (TILE - len(tokens))], mask, [slot])[0, : len(tokens)]

    def advance(self, slots: list[int], starts: list[int], tokens: list[int]) -> Float[Tensor, "texts d_model"]:
        rows = filled(self.sizes, len(tokens))
        filled_up = tokens + [0] * (rows - len(tokens))
        if self.step is not None:
            return self.step.run(*self.slots.rows_for(filled_up, slots, starts))[: len(tokens)]
        mask = self.slots.place(slots, starts, seq=1, batch=rows)
        return self.encode([[token] for token in filled_up], mask, slots)[: len(tokens), 0]

    def encode(self, ids: list[list[int]], mask: Mask, slots: list[int]) -> Float[Tensor, "batch seq d_model"]:
        if self.sources is not None:
            self.sources.place(slots)
        tokens = torch.tensor(ids, device=self.network.device)
        return self.decoder.encode(tokens, mask, cache=self.slots.layers, memory=self.sources)

    def copy(self, source: int, target: int, length: int) -> None:
        """The beginning of one slot's text, in another too."""
        self.slots.copy(source, target, length)

    def choose(self, slots: list[int]) -> None:
        self.slots.choose(slots)
        if self.sources is not None:
            self.sources.choose(slots)


class Recurring:
    """A recurrent network's state is kept. A prompt is read at once, since filling would change it."""

    tile: int | None = None
    near: int = 0

    def __init__(self, network: Recurrent, slots: int) -> None:
        self.network, self.sizes, self.state = network, sizes_of(network), network.state(slots)

    def begin(self, slot: int, prompt: list[int]) -> list[int]:
        for layer, fresh in zip(self.state, self.network.state(1), strict=True):
            layer.put(torch.tensor([slot]), fresh)
        return prompt

    def read(self, slot: int, tokens: list[int], start: int) -> Float[Tensor, "tokens d_model"]:  # noqa: ARG002 - in the state
        return self.encode([slot], [tokens])[0]

    def advance(self, slots: list[int], starts: list[int], tokens: list[int]) -> Float[Tensor, "texts d_model"]:  # noqa: ARG002
        filling = filled(self.sizes, len(tokens)) - len(tokens)
        return self.encode(slots, [[token] for token in tokens] + [[0]] * filling)[: len(tokens), 0]

    def encode(self, slots: list[int], ids: list[list[int]]) -> Float[Tensor, "batch seq d_model"]:
        rows = torch.tensor(slots, device=self.network.device)
        state = self.network.state(len(ids))
        for part, layer in zip(state, self.state, strict=True):
            part.put(torch.arange(len(slots)), layer.rows(rows))
        hidden = self.network.encode(torch.tensor(ids, device=self.network.device), cache=state)
        for part, layer in zip(state, self.state, strict=True):
            layer.put(rows, part.rows(torch.arange(len(slots))))
        return hidden

    def choose(self, slots: list[int]) -> None:
        for layer in self.state:
            layer.put(torch.arange(len(slots)), layer.rows(torch.tensor(slots)))


class Rereading:
    """Nothing is kept: the whole text is read again for every token, and its source too."""

    tile: int | None = None
    near: int = 0
    sizes: tuple[int, ...] = (1,)

    def __init__(self, network: Network, slots: int) -> None:
        self.network = network
        self.texts: list[list[int]] = [[] for _ in range(slots)]
        self.sources: list[list[int]] = [[] for _ in range(slots)]

    def begin(self, slot: int, prompt: list[int]) -> list[int]:
        self.texts[slot], self.sources[slot] = [], prompt
        return [self.network.config.start_token] if isinstance(self.network, EncoderDecoder) else prompt

    def read(self, slot: int, tokens: list[int], start: int) -> Float[Tensor, "tokens d_model"]:
        self.texts[slot] = self.texts[slot][:start] + tokens
        text, source = (torch.tensor([ids], device=self.network.device) for ids in (self.texts[slot], self.sources[slot]))
        apart = isinstance(self.network, EncoderDecoder)
        hidden = self.network.encode(source, decoder_ids=text) if apart else self.network.encode(text)
        return hidden[0, start:]

    def advance(self, slots: list[int], starts: list[int], tokens: list[int]) -> Float[Tensor, "texts d_model"]:
        return torch.cat([self.read(*one) for one in zip(slots, [[token] for token in tokens], starts, strict=True)])

    def choose(self, slots: list[int]) -> None:
        self.texts[: len(slots)] = [self.texts[slot] for slot in slots]
        self.sources[: len(slots)] = [self.sources[slot] for slot in slots]
