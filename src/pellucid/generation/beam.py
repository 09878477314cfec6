"""Beam search: the likeliest whole continuations, as far as keeping a few at a time finds them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.generation.decoding import advance_all, begin_decoding, read_all, scores_of
from pellucid.network.network import Network


@dataclass(frozen=True)
class Beam:
    """A finished continuation."""

    tokens: list[int]
    logprobs: list[float]
    score: float  # summed log-probability over length ** length_penalty
    ended: bool  # whether it ended by itself


@torch.inference_mode()
def search(
    network: Network, prompt: list[int], *, beams: int, max_tokens: int, ends: frozenset[int], length_penalty: float = 1.0
) -> Beam:
    """The best of the continuations found (Graves, 2012; Wu et al., 2016, for the penalty), as transformers searches.

    Each step takes the likeliest extensions of all beams, so many that `beams` of them do not end: those among the first
    `beams` that end the text are finished, the best others go on, until no beam can become better than what is finished, or
    there is no room for more.
    """
    before = 1 if network.config.architecture == "encoder-decoder" else len(prompt)
    decoding = begin_decoding(network, slots=beams, length=before + max_tokens, sources=len(prompt))
    first = decoding.begin(0, prompt)
    logprobs = log_softmax(network, read_all(decoding, 0, first)[-1:])
    rows: list[tuple[list[int], list[float]]] = [([], [])]
    scores = torch.zeros(1)
    finished: list[Beam] = []
    for length in range(1, max_tokens + 1):
        total = (scores[:, None] + logprobs).flatten()
        best = total.topk(min((1 + max(1, len(ends))) * beams, len(total)))
        going: list[tuple[float, int, int]] = []
        for rank, (score, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            row, token = divmod(place, logprobs.shape[1])
            tokens, each = rows[row]
            ended = token in ends
            if rank < beams and (ended or length == max_tokens):
                tokens, each = tokens if ended else [*tokens, token], [*each, float(logprobs[row, token])]
                finished.append(Beam(tokens, each, score / length**length_penalty, ended))
            if not ended:
                going.append((score, row, token))
        going = going[:beams]
        rows = [([*rows[row][0], token], [*rows[row][1], float(logprobs[row, token])]) for _, row, token in going]
        scores = torch.tensor([score for score, _, _ in going])
        finished = sorted(finished, key=lambda beam: -beam.score)[:beams]
        if not going:
            break
        best_possible = going[0][0] / (length if length_penalty >= 0 else max_tokens) ** length_penalty
        if length == max_tokens or (len(finished) == beams and finished[-1].score >= best_possible):
            break
        decoding.choose([row for _, row, _ in going])
        slots, starts = [*range(len(going))], [before + length - 1] * len(going)
        logprobs = log_softmax(network, advance_all(decoding, slots, starts, [token for _, _, token in going]))
    return finished[0]


def log_softmax(network: Network, hidden: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
    return scores_of(network, hidden).log_softmax(dim=-1).cpu()
