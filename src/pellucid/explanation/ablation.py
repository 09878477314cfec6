"""What a part is worth: the loss without it (zero), with its mean, or with what it did in another text (resample)."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.core.progress import Silent, Task
from pellucid.evaluation.intervals import Estimate, Floats, bootstrap, percentiles
from pellucid.explanation.windows import losses
from pellucid.network.network import Network
from pellucid.network.taps import Edit, Taps
from pellucid.network.transformer import Since, Transformer

How = Literal["zero", "mean", "resample"]
TOGETHER = 2048  # tokens that are read at once


@dataclass(frozen=True)
class Part:
    """A site, or one head of an attention: `blocks.3.mlp.out`, `blocks.3.attn.head.5`."""

    name: str

    @property
    def site(self) -> str:
        """Where it passes."""
        return f"{self.name.rpartition('.head.')[0]}.mixed" if self.head is not None else self.name

    @property
    def head(self) -> int | None:
        block, _, head = self.name.rpartition(".head.")
        return int(head) if block and head.isdigit() else None

    @property
    def block(self) -> int:
        """The block that it lies in; 0 before the first."""
        words = self.name.split(".")
        return int(words[words.index("blocks") + 1]) if "blocks" in words else 0


@dataclass(frozen=True)
class Ablation:
    """A part, and how much greater the loss is without it, in nats a token, with its 95 % interval over windows of text."""

    part: str
    how: How
    loss: float
    change: Estimate


class Ablator:
    """Some windows of text, read once as they are; then without any part of the network."""

    def __init__(self, network: Network, ids: Int[Tensor, "windows seq"], *, seed: int = 0) -> None:
        self.network, self.ids, self.seed = network, ids, seed
        self.sites = [site.name for site in network.sites()]
        self.known = Taps([site for site in ("embedding", "*.after", "*.mixed", "*.mlp.out") if self.has(site)])
        self.plain = losses(network, ids, self.known)

    def has(self, pattern: str) -> bool:
        return any(fnmatchcase(site, pattern) for site in self.sites)

    def __call__(self, name: str, how: How = "mean", task: Task | None = None) -> Ablation:
        """The loss without a part. Raises `ConfigError` for one that there is not."""
        if how not in get_args(How):
            raise ConfigError(f"ablate by {', '.join(get_args(How))}, not {how!r}")
        part = Part(name)
        Taps(part.site).check(self.sites)
        if part.head is not None and part.head >= self.network.config.heads:
            raise ConfigError(f"there is no head {part.head} in {part.site}, which has {self.network.config.heads}, from 0 on")
        changed, size = [], max(1, TOGETHER // self.ids.shape[1])
        for start in range(0, len(self.ids), size):
            rows = slice(start, start + size)
            taps = Taps(edit={part.site: self.edit(part, how, rows)})
            changed.append(losses(self.network, self.ids[rows], taps, self.since(part, rows)))
            (task or Silent()).advance(1)
        loss = torch.cat(changed)
        change = (loss - self.plain).mean(dim=1).double().cpu().numpy()
        return Ablation(name, how, float(loss.mean()), interval(change, self.seed))

    def edit(self, part: Part, how: How, rows: slice) -> Edit:
        """What puts something else in the place of the part."""
        value = self.value(part.site)
        if how == "zero":
            other = torch.zeros_like(value[rows])
        elif how == "mean":  # over windows and positions, of each feature of each head
            over = (0, 2) if value.ndim == 4 else tuple(range(value.ndim - 1))
            other = value.mean(dim=over, keepdim=True).expand_as(value)[rows]
        else:
            other = value.roll(1, dims=0)[rows]

        def change(x: Tensor) -> Tensor:
            if part.head is None:
                return other.to(x)
            x = x.clone()
            x[:, part.head] = other[:, part.head].to(x)
            return x

        return change

    def value(self, site: str) -> Tensor:
        """What passes there, of all windows."""
        if site not in self.known:
            more = Taps(site)
            losses(self.network, self.ids, more)
            return more[site]
        return self.known[site]

    def since(self, part: Part, rows: slice) -> Since | None:
        """Where the pass without it begins: no block before it need be run again."""
        if not isinstance(self.network, Transformer) or part.block == 0:
            return None
        return Since(part.block, self.known[f"blocks.{part.block - 1}.after"][rows])


def interval(values: Floats, seed: int) -> Estimate:
    """A mean over windows and where it lies in 95 % of resamples."""
    drawn = bootstrap(lambda weights: (weights @ values / len(values))[:, None], np.ones(len(values), np.int64), seed=seed)
    return percentiles(float(values.mean()), drawn[:, 0])
