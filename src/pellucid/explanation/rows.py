"""Reading many variants of a text, and what the network scores in each: in batches, the head only where it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.progress import Silent, Task
from pellucid.network.masks import Mask
from pellucid.network.network import Network
from pellucid.network.taps import Edit, Taps
from pellucid.network.transformer import Since

BATCH_TOKENS = 2048  # that are read at once, filling included: memory stays bounded whatever is asked


class Asked(NamedTuple):
    """A score that counts: of a token or label `id` at a `place` (None: of the whole text), times a weight."""

    place: int | None
    id: int
    weight: float


@dataclass(frozen=True, slots=True)
class Row:
    """One text to read: its ids, the decoder's where it has one, which tokens are blank, and which scores are asked."""

    ids: tuple[int, ...]
    asked: tuple[Asked, ...]
    decoder_ids: tuple[int, ...] | None = None
    blank: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return len(self.ids) + len(self.decoder_ids or ())


@torch.no_grad()
def differences(
    network: Network,
    rows: Sequence[Row],
    *,
    vector: Float[Tensor, " d_model"] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    task: Task | None = None,
) -> Float[Tensor, " rows"]:
    """The weighted sum of what is asked of each row, in their order. Blank tokens have the `vector`."""
    found, task = torch.empty(len(rows)), task or Silent()
    order = sorted(range(len(rows)), key=lambda number: -rows[number].length)
    while order:
        size = max(1, batch_tokens // rows[order[0]].length)
        together, order = order[:size], order[size:]
        batch = [rows[number] for number in together]
        found[together] = difference(network, batch, blanks(network, batch, vector)).cpu()
        task.advance(len(together))
    return found


def difference(
    network: Network, rows: Sequence[Row], taps: Taps | None = None, since: Since | None = None
) -> Float[Tensor, " rows"]:
    """The same of one batch, with taps; differentiable where the pass is."""
    logits = scores(network, rows, taps, since)
    where = torch.tensor([number for number, row in enumerate(rows) for _ in row.asked], device=logits.device)
    ids = torch.tensor([one.id for row in rows for one in row.asked], device=logits.device)
    weights = torch.tensor([one.weight for row in rows for one in row.asked], device=logits.device)
    if network.config.generates or network.config.head == "mlm":
        logits = logits.log_softmax(dim=-1)  # cancels where two tokens of one place are compared
    picked = logits.gather(1, ids[:, None])[:, 0] * weights
    return torch.zeros(len(rows), device=logits.device).index_add(0, where, picked)


def logits_at(network: Network, row: Row) -> Float[Tensor, "asked scores"]:
    """All scores at each place that a row asks about."""
    with torch.no_grad():
        return scores(network, [row]).cpu()


def scores(
    network: Network, rows: Sequence[Row], taps: Taps | None = None, since: Since | None = None
) -> Float[Tensor, "asked scores"]:
    """The scores at each place that is asked about, row by row.

    A transformer's pass may begin `since` a block. The head computes in fp32 whatever the blocks do, unless its matrix is held
    in something else: differences of logits have few digits to lose.
    """
    config, device = network.config, network.device
    ids, present = padded([row.ids for row in rows], device)
    apart = config.architecture == "encoder-decoder"
    mask = network.padding(present)
    if apart:
        decoder_ids, there = padded([row.decoder_ids or () for row in rows], device)
        hidden = network.encode(ids, mask, taps, decoder_ids=decoder_ids, decoder_mask=Mask.for_padded(there, causal=True))
    else:
        hidden = network.encode(ids, mask, taps) if since is None else network.encode(ids, mask, taps, since=since)
    exact = hidden if network.held is not None else hidden.float()
    where = [number for number, row in enumerate(rows) for _ in row.asked]
    places = [one.place for row in rows for one in row.asked]
    if config.head == "classify":
        logits = network.answer(exact, mask, taps).logits
        assert logits is not None, "a head for labels"
        return logits[where].float()
    return network.scores(exact[where, [place or 0 for place in places]]).float()


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [rows longest], filled up on the right, and which of them are there."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]


def blanks(network: Network, rows: Sequence[Row], vector: Float[Tensor, " d_model"] | None) -> Taps | None:
    """Taps that put the vector in the place of blank tokens."""
    if not any(row.blank for row in rows):
        return None
    assert vector is not None, "blank tokens have a vector"
    where = [number for number, row in enumerate(rows) for _ in row.blank]
    places = [place for row in rows for place in row.blank]

    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        x[where, places] = vector.to(x)
        return x

    return at_tokens(network, edit)


@contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """Without dropout, and afterwards as before."""
    was = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was)


def token_site(network: Network) -> str:
    """Where the vectors of the text's tokens pass."""
    return "encoder.tokens" if network.config.architecture == "encoder-decoder" else "tokens"


def at_tokens(network: Network, edit: Edit) -> Taps:
    """Taps that change the vectors of the text's tokens."""
    return Taps(edit={token_site(network): edit})
