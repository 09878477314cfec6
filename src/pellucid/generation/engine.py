"""The engine: many texts at once, each going on as if it were alone.

A step reads a tile of some prompts and then writes one more token of every text whose prompt is read, so that long prompts
do not hold up others. What a text becomes is a function of its request alone: not of its slot, of company or of what is
remembered (see `decoding` for how).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.generation.decoding import TILE, Attending, Piece, advance_all, begin_decoding, read_pieces, scores_of, spare
from pellucid.generation.sampling import choose
from pellucid.generation.text import Text
from pellucid.network.network import Network

READING = 4  # prompts of which a step reads a tile


@dataclass
class Place:
    """Where a text stands in its slot."""

    text: Text
    slot: int
    first: list[int]  # tokens to read before the first one is written
    read: int  # tokens in the slot
    guesses: list[int] = field(default_factory=list)  # further ones in the slot, which may be what comes next

    @property
    def unread(self) -> int:
        """How many tokens must be read before one can be written."""
        return max(0, len(self.first) - self.read)

    def follows(self, token: int) -> bool:
        """Whether the text goes on as was guessed, so that what follows the token is known already."""
        if self.text.finish_reason or not self.guesses or self.guesses.pop(0) != token:
            self.guesses = []
            return False
        self.read += 1
        return True


@dataclass
class Remembered:
    """What a slot holds of prompts, of texts that are under way or done: tile by tile, as they were read."""

    tiles: list[list[int]] = field(default_factory=list)

    def common(self, prompt: list[int]) -> int:
        """How many of its tiles a prompt begins with; its last token is always read again, for what follows from it."""
        most, found = min(len(self.tiles), (len(prompt) - 1) // TILE), 0
        while found < most and prompt[found * TILE : (found + 1) * TILE] == self.tiles[found]:
            found += 1
        return found


class Engine:
    """Up to `slots` texts at once of up to `length` tokens, prompt and continuation; more of them wait.

    An encoder-decoder's texts are about sources of up to `sources` tokens. Add texts, and call `step` while it is `busy`.
    """

    def __init__(self, network: Network, *, known: int, slots: int, length: int, sources: int = 1, cache: bool = True) -> None:
        self.network, self.known = network, known  # so many tokens a tokenizer knows: others are never written
        self.decoding = begin_decoding(network, slots=slots, length=length, sources=sources, cache=cache)
        self.free = deque(range(slots))  # the longest free first
        self.remembered = [Remembered() for _ in range(slots)]
        self.waiting: deque[Text] = deque()
        self.places: list[Place] = []

    @property
    def busy(self) -> bool:
        return bool(self.places or self.waiting)

    def add(self, text: Text) -> None:
        """Let a text begin as soon as a slot is free."""
        self.waiting.append(text)

    def cancel(self, text: Text) -> None:
        """Forget a text, wherever it stands."""
        if text in self.waiting:
            self.waiting.remove(text)
        for place in [place for place in self.places if place.text is text]:
            self.release(place)

    @torch.inference_mode()
    def step(self) -> None:
        """Read a tile of some prompts, and write one more token of every text whose prompt is read."""
        while self.waiting and self.free:
            self.admit(self.waiting.popleft())
        writing = [place for place in self.places if not place.unread]
        reading = [place for place in self.places if place.unread][:READING]
        hidden = self.read(reading)
        ready = [(place, last) for place, last in zip(reading, hidden, strict=True) if not place.unread]
        if writing:
            ready += self.advance(writing)
        if ready:
            self.write(ready)

    def advance(self, places: list[Place]) -> list[tuple[Place, Float[Tensor, "rows d_model"]]]:
        """Read the last token of each text and, in rows that would be filling, how it may go on; the hidden states at each."""
        left_over = spare(self.decoding, self.network, len(places)) if isinstance(self.decoding, Attending) else 0
        for number, place in enumerate(places):
            left = place.text.request.max_tokens - len(place.text.tokens) - 1  # a guess after the last token is for nothing
            place.guesses = place.text.lookup.guess(min(left, -(-left_over // (len(places) - number))))
            left_over -= len(place.guesses)
        rows = [
            (place.slot, place.read + at, token)
            for place in places
            for at, token in enumerate([place.text.tokens[-1], *place.guesses])
        ]
        slots, starts, tokens = ([*each] for each in zip(*rows, strict=True))
        hidden = advance_all(self.decoding, slots, starts, tokens)
        ends = [*accumulate(1 + len(place.guesses) for place in places)]
        for place in places:
            place.read += 1
        return [(place, hidden[end - 1 - len(place.guesses) : end]) for place, end in zip(places, ends, strict=True)]

    def admit(self, text: Text) -> None:
        """Give a text a slot: best one that holds the beginning of its prompt already."""
        request, kept = text.request, 0
        slot = self.free[0]
        if isinstance(self.decoding, Attending) and not (request.apart or request.prompt_logprobs):
            held = [remembered.common(request.prompt) for remembered in self.remembered]
            source = max([*self.free, *range(len(held))], key=lambda slot: held[slot])  # a free one, if one holds as much
            kept = held[source]
            if kept and source in self.free:
                slot = source
            elif kept:
                self.decoding.copy(source, slot, kept * TILE)
            self.remembered[slot].tiles = self.remembered[source].tiles[:kept]
        else:
            self.remembered[slot].tiles = []
        self.free.remove(slot)
        text.cached = kept * TILE
        self.places.append(Place(text, slot, self.decoding.begin(slot, request.prompt), read=text.cached))
        self.places.sort(key=lambda place: place.slot)

    def read(self, places: list[Place]) -> list[Float[Tensor, "1 d_model"]]:
        """Read the next tile of some prompts; return the hidden state at the end of each."""
        ends = [place.read + (self.decoding.tile or place.unread) for place in places]
        pieces = [Piece(place.slot, place.first[place.read : end], place.read) for place, end in zip(places, ends, strict=True)]
        found = read_pieces(self.decoding, pieces)
        for place, piece, hidden in zip(places, pieces, found, strict=True):
            self.keep(place, piece.tokens, hidden)
        return [hidden[-1:] for hidden in found]

    def keep(self, place: Place, tokens: list[int], hidden: Float[Tensor, "tokens d_model"]) -> None:
        """Note that some more of a prompt has been read, and what that says of it."""
        text = place.text
        if len(tokens) == self.decoding.tile and not text.request.apart:
            self.remembered[place.slot].tiles.append(tokens)
        if text.request.prompt_logprobs:
            after = place.first[place.read + 1 : place.read + 1 + len(tokens)]
            scores = scores_of(self.network, hidden)[: len(after)].log_softmax(dim=-1)
            text.prompt_logprobs += scores.gather(1, torch.tensor(after, device=scores.device)[:, None])[:, 0].tolist()
            if count := text.request.top_logprobs:
                best = scores.topk(count)
                tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                text.prompt_top_logprobs += [dict(zip(*top, strict=True)) for top in tops]
        place.read += len(tokens)

    def write(self, ready: list[tuple[Place, Float[Tensor, "rows d_model"]]]) -> None:
        """Choose the next token of some texts, and go on where it is what was guessed; release the slots of those that end.

        What is chosen is what would be chosen without guesses: from the same bits, with the same random numbers.
        """
        logits = scores_of(self.network, torch.cat([hidden for _, hidden in ready]))
        logprobs = logits.log_softmax(dim=-1)
        logits[:, self.known :] = -torch.inf
        first = [0, *accumulate(len(hidden) for _, hidden in ready)]
        going = [(place, row) for (place, _), row in zip(ready, first, strict=False)]
        while going:
            for place, row in going:
                place.text.restrict(logits[row])
            chosen = choose(logits[[row for _, row in going]], [place.text.draw for place, _ in going]).tolist()
            for (place, row), token in zip(going, chosen, strict=True):
                text = place.text
                if not text.finish_reason:
                    text.take(token, float(logprobs[row, token]), likeliest(logprobs[row], text.request.top_logprobs))
            going = [(place, row + 1) for (place, row), token in zip(going, chosen, strict=True) if place.follows(token)]
        for place, _ in ready:
            if place.text.finish_reason:
                self.release(place)

    def release(self, place: Place) -> None:
        self.places.remove(place)
        self.free.append(place.slot)


def likeliest(logprobs: Float[Tensor, " vocab"], count: int) -> dict[int, float] | None:
    """So many of the likeliest tokens, with their log-probabilities."""
    if not count:
        return None
    best = logprobs.topk(count)
    return dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
