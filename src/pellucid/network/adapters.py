"""Low-rank adapters (LoRA; Hu et al., 2021): beside a frozen matrix W a trained product B A of two narrow ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.core.errors import ConfigError
from pellucid.network.layers import Linear, dropped
from pellucid.network.network import Network


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which matrices are adapted, and how: the output gains alpha / rank B A dropout(x)."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0  # share of x that the adapter does not see while training
    targets: tuple[str, ...] | Literal["all"] = "all"  # endings of modules' names, such as attn.q; all: every one in the blocks

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 4096:
            raise ConfigError(f"the rank of an adapter must be from 1 to 4,096, not {self.rank}")
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"alpha of an adapter must be a finite number above 0, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout of an adapter must be at least 0 and below 1, not {self.dropout}")
        if not self.targets or (isinstance(self.targets, str) and self.targets != "all"):
            raise ConfigError(f"targets of an adapter must be endings of modules' names, or all, not {self.targets!r}")


class LowRank(Linear):
    """x W^T + b + scale dropout(x) A^T B^T; A and B are fp32, whatever W is, and begin as noise and zeros: as no change."""

    def __init__(self, plain: Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        with torch.device("meta"):  # its matrix is the one of `plain`
            super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.weight, self.bias = plain.weight, plain.bias
        self.scale, self.dropout, self.active = scale, dropout, True
        device = plain.weight.device
        self.lora_a = nn.Parameter(torch.zeros(rank, plain.in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(plain.out_features, rank, device=device))
        self.train(plain.training)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        if not self.active:
            return super().forward(x)
        rows = x.reshape(-1, self.in_features)
        narrow = F.linear(dropped(rows, self.dropout, self.training), self.lora_a.to(x.dtype))
        # in place: an eighth less time than a sum of two products
        changed = super().forward(rows).addmm_(narrow, self.lora_b.to(x.dtype).T, alpha=self.scale)
        return changed.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The same as one matrix, W + scale B A, added in fp32."""
        with torch.device("meta"):
            plain = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        change = self.scale * (self.lora_b.float() @ self.lora_a.float())
        plain.weight = nn.Parameter((self.weight.float() + change).to(self.weight.dtype), requires_grad=False)
        plain.bias = self.bias
        return plain.train(self.training)


def attach(network: Network, lora: LoRA, *, seed: int) -> Network:
    """Put adapters into the network's blocks, the same for the same seed, and freeze all but them and a head for labels.

    Raises `ConfigError` for targets that there are not, and for a network whose blocks have no linear layers.
    """
    if adapted(network):
        raise ConfigError("the network has an adapter already; merge it first, with: pellucid adapter merge")
    found = targeted(network, lora.targets)
    network.requires_grad_(False)
    for part in label_head(network).values():
        part.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    for name, plain in found.items():
        layer = LowRank(plain, lora.rank, lora.alpha / lora.rank, lora.dropout)
        with torch.no_grad():  # He et al. (2015) with a = sqrt(5), as torch's own linear layers
            bound = plain.in_features**-0.5
            layer.lora_a.copy_(torch.empty(layer.lora_a.shape).uniform_(-bound, bound, generator=generator))
        put(network, name, layer)
    return network


def targeted(network: Network, targets: tuple[str, ...] | Literal["all"]) -> dict[str, Linear]:
    """The linear layers in the blocks whose names end in one of the targets."""
    there = {name: module for name, module in plain_layers(network).items() if "blocks." in name}
    if not there:
        raise ConfigError(
            f"this {network.config.family} network has no linear layers in its blocks that an adapter could change; "
            "use --method full or --method head"
        )
    if targets == "all":
        return there
    if unknown := [target for target in targets if not any(ends(name, target) for name in there)]:
        known = sorted({name.partition("blocks.")[2].partition(".")[2] or name for name in there})
        raise ConfigError(f"no layer is called {', '.join(unknown)}; those that take an adapter are {', '.join(known)}, or all")
    return {name: module for name, module in there.items() if any(ends(name, target) for target in targets)}


def ends(name: str, target: str) -> bool:
    """Whether a name is the target, or ends in it after a dot."""
    return name == target or name.endswith(f".{target}")


def plain_layers(network: Network) -> dict[str, Linear]:
    """Every linear layer without an adapter. A head is none: it does more than multiply."""
    return {name: module for name, module in network.named_modules() if type(module) is Linear}


def adapted(network: Network) -> dict[str, LowRank]:
    """Every linear layer with an adapter."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LowRank)}


def put(network: Network, name: str, layer: Linear) -> None:
    """Set a module of that name in the place of another."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)


def merge(network: Network) -> Network:
    """Add the adapters to the matrices beside them and take them out: the answers stay the same."""
    for name, layer in adapted(network).items():
        put(network, name, layer.merged())
    return network


@contextmanager
def merged(network: Network) -> Iterator[Network]:
    """The network as `merge` makes it, and afterwards with its adapters again, bit for bit as before."""
    before = adapted(network)
    try:
        yield merge(network)
    finally:
        for name, layer in before.items():
            put(network, name, layer)


@contextmanager
def disabled(network: Network) -> Iterator[Network]:
    """The network without what its adapters add: the one that training began with, but for a head for labels."""
    before = {layer: layer.active for layer in adapted(network).values()}
    try:
        for layer in before:
            layer.active = False
        yield network
    finally:
        for layer, active in before.items():
            layer.active = active


def adapter_state(network: Network) -> dict[str, Tensor]:
    """The tensors that make the adapter: both matrices of every adapted layer, and a head for labels."""
    found = {
        f"{name}.{part}": getattr(layer, part) for name, layer in adapted(network).items() for part in ("lora_a", "lora_b")
    }
    for name, part in label_head(network).items():
        found |= {f"{name}.{of}": weight for of, weight in part.named_parameters()}
    return found


def label_head(network: Network) -> dict[str, nn.Module]:
    """The parts that score labels, by name: they are trained whole, and are none in a network that scores tokens."""
    parts = {name: getattr(network, name, None) for name in ("pooler", "head")} if network.config.labels else {}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
