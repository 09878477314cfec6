"""What neurons of an MLP do: where they are most active, and which answers they raise by themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.core.errors import ConfigError, ModelError
from pellucid.explanation.heads import AROUND, EXAMPLES, through, weight_of
from pellucid.explanation.windows import decoded
from pellucid.network.network import Network
from pellucid.network.taps import Taps
from pellucid.network.transformer import Transformer
from pellucid.text.tokenizer import Tokenizer

RAISED = 8  # tokens


@dataclass(frozen=True)
class NeuronExample:
    """A place of the text where the neuron is active: the tokens before it, the token, and how much."""

    before: str
    token: str
    activation: float


@dataclass(frozen=True)
class NeuronCard:
    """One neuron. `raises` and `lowers` are the tokens whose logits it moves most when active, up to the last norm's scale."""

    layer: int
    neuron: int
    mean: float
    active: float  # share of tokens where it is above 0
    examples: tuple[NeuronExample, ...]
    raises: tuple[tuple[str, float], ...]
    lowers: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        return f"blocks.{self.layer}.mlp.neuron.{self.neuron}"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


def parsed(names: list[str]) -> list[tuple[int, int]]:
    """Neurons by name: `3.17` is number 17 of layer 3."""
    found = []
    for name in names:
        layer, _, neuron = name.partition(".")
        if not (layer.isdigit() and neuron.isdigit()):
            raise ConfigError(f"{name!r} is no neuron; write LAYER.NUMBER, such as 3.17")
        found.append((int(layer), int(neuron)))
    return found


@torch.no_grad()
def neuron_cards(
    network: Network, tokenizer: Tokenizer, ids: Int[Tensor, "windows seq"], neurons: list[tuple[int, int]]
) -> list[NeuronCard]:
    """A card for each neuron, given as layer and number, on windows of text. Raises `ConfigError` for one that is not there."""
    if not isinstance(network, Transformer) or network.head is None or network.held is not None:
        raise ModelError("neurons are described of a transformer with a head, loaded without a precision; use such a one")
    config = network.config
    for layer, neuron in neurons:
        if layer >= config.layers or neuron >= config.d_mlp:
            raise ConfigError(
                f"there is no neuron {neuron} in layer {layer}; layers are 0 to {config.layers - 1}, "
                f"neurons 0 to {config.d_mlp - 1}"
            )
    stack: Any = network
    taps = Taps([f"blocks.{layer}.mlp.neurons" for layer in sorted({layer for layer, _ in neurons})])
    network.encode(ids, None, taps)
    found = []
    for layer, neuron in neurons:
        values = taps[f"blocks.{layer}.mlp.neurons"][..., neuron].float()
        block: Any = network.blocks[layer]
        direction = weight_of(block.mlp.down)[:, neuron]
        rows = network.head.weight.float()[: tokenizer.vocab_size]
        moved = (rows if stack.norm is None else through(stack.norm, rows)) @ direction
        found.append(
            NeuronCard(
                layer=layer,
                neuron=neuron,
                mean=float(values.mean()),
                active=float((values > 0).float().mean()),
                examples=examples(tokenizer, ids, values),
                raises=named(tokenizer, moved),
                lowers=tuple((token, -value) for token, value in named(tokenizer, -moved)),
            )
        )
    return found


def examples(tokenizer: Tokenizer, ids: Tensor, values: Tensor) -> tuple[NeuronExample, ...]:
    """The places where it is most active."""
    found, seq = [], ids.shape[1]
    for at in values.flatten().topk(EXAMPLES).indices.tolist():
        row, place = divmod(at, seq)
        tokens = decoded(tokenizer, ids[row].tolist())
        before = "".join(tokens[max(0, place - AROUND) : place])
        found.append(NeuronExample(before, tokens[place], float(values[row, place])))
    return tuple(found)


def named(tokenizer: Tokenizer, moved: Tensor) -> tuple[tuple[str, float], ...]:
    best = moved.topk(min(RAISED, len(moved)))
    return tuple(
        (tokenizer.decode([id], special=True), value)
        for id, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )
