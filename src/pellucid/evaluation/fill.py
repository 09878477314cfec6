"""What a masked language model would put in the place of a mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pellucid.core.errors import ConfigError, ModelError
from pellucid.network.network import Network
from pellucid.text.tokenizer import Tokenizer

MASK = "[MASK]"  # how a mask may be written, whatever the model calls it


@dataclass(frozen=True, kw_only=True)
class Filling:
    """A token for a mask."""

    token: str
    id: int
    probability: float


@torch.inference_mode()
def fill(network: Network, tokenizer: Tokenizer, text: str, *, top: int = 5) -> list[list[Filling]]:
    """The `top` likeliest tokens for every mask in `text`, likeliest first; each mask by itself, the others still masked.

    Raises `ConfigError` if there is no mask in the text.
    """
    if network.config.head != "mlm":
        other = "use generate" if network.config.generates else "use embed"
        raise ModelError(
            f"this {network.config.family} model fills no masks, since it has no masked-language-model head; {other}, "
            "or a model such as BERT"
        )
    if tokenizer.mask is None:
        raise ModelError(
            f"this {network.config.family} model's tokenizer has no mask token, so there is nothing to fill; "
            "put the model's own tokenizer beside it"
        )
    if not 1 <= top <= network.config.vocab_size:
        raise ConfigError(f"top must be from 1 to {network.config.vocab_size:,}, not {top}")
    name = tokenizer.decode([tokenizer.mask], special=True).strip()
    ids = tokenizer.encode(text.replace(MASK, name), special=True, framed=True)
    places = [place for place, id in enumerate(ids) if id == tokenizer.mask]
    if not places:
        raise ConfigError(f"there is no {name} in {text!r}; write {MASK} where a word is missing")
    if len(ids) > network.config.context_length:
        raise ConfigError(
            f"the text has {len(ids):,} tokens, but the model's context is {network.config.context_length:,}; shorten it"
        )
    hidden = network.encode(torch.tensor([ids], device=network.device))[0, places]
    best = network.scores(hidden).float().softmax(dim=-1).topk(top)
    return [
        [
            Filling(token=tokenizer.decode([id], special=True).strip(), id=id, probability=probability)
            for probability, id in zip(probabilities, found, strict=True)
        ]
        for probabilities, found in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
