"""What an LSTM does with each token: how far its gates open, and what its cells hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from pellucid.explanation.question import Question
from pellucid.explanation.rows import scores
from pellucid.network.recurrent import GATES
from pellucid.network.taps import Taps

SHOWN = ("input_gate", "forget_gate", "output_gate")


@dataclass(frozen=True)
class Gates:
    """Over the tokens of a text, by site: the mean of each gate over its units, and the length of the cell."""

    tokens: tuple[str, ...]
    values: dict[str, tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def gates_of(question: Question) -> Gates | None:
    """The gates over the question's text; None for a network that has none."""
    config = question.network.config
    if config.architecture != "recurrent":
        return None
    assert set(SHOWN) < set(GATES), "gates by their names"
    taps = Taps([f"*.{name}" for name in (*SHOWN, "cell")])
    scores(question.network, question.rows(question.ids)[:1], taps)
    length = len(question.ids)
    values: dict[str, tuple[float, ...]] = {}
    for layer in range(config.layers):
        for name in SHOWN:
            values[f"blocks.{layer}.{name}"] = tuple(taps[f"blocks.{layer}.{name}"][0, :length].mean(dim=-1).tolist())
        cell = taps[f"blocks.{layer}.cell"][0, :length]
        values[f"blocks.{layer}.cell"] = tuple((cell.norm(dim=-1) / config.d_model**0.5).tolist())
    return Gates(tuple(question.tokenizer.decode([id], special=True) for id in question.ids), values)
