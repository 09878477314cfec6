"""Optimizers for a network's parts: Muon for the blocks' matrices, AdamW for embeddings, head and gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pellucid.core.errors import CorruptionError
from pellucid.network.build import is_block_matrix


class Moving(Protocol):
    """How weights move: what the optimizer section of a recipe says."""

    @property
    def name(self) -> str: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def clip(self) -> float: ...
    def rates(self) -> dict[str, float]: ...


class Optimizers:
    """One or two torch optimizers that step together, and whose state is one flat dictionary of tensors.

    Weights that need no gradient stay as they are. `share` says by what a weight's rate is multiplied.
    """

    def __init__(self, network: nn.Module, settings: Moving, share: Callable[[str], float] = lambda _: 1.0) -> None:
        self.names: dict[Tensor, str] = {weight: name for name, weight in network.named_parameters() if weight.requires_grad}
        self.clip = settings.clip
        rates = settings.rates()

        def groups(matrices: bool, rate: float, weight_decay: float) -> list[dict[str, Any]]:
            by_share: dict[float, list[Tensor]] = {}
            for weight, name in self.names.items():
                if is_block_matrix(name, weight.ndim) == matrices:
                    by_share.setdefault(share(name), []).append(weight)
            return [{"params": found, "lr": rate * part, "weight_decay": weight_decay} for part, found in by_share.items()]

        matrices = groups(True, rates["matrix_learning_rate"], settings.weight_decay)
        others = groups(False, rates["learning_rate"], 0.0)
        betas = (settings.beta1, settings.beta2)
        self.parts: list[torch.optim.Optimizer] = []
        if settings.name == "muon":
            self.parts += [torch.optim.AdamW(others, betas=betas, fused=True)] if others else []
            self.parts += [torch.optim.Muon(matrices, momentum=settings.momentum)] if matrices else []
        else:
            self.parts += [torch.optim.AdamW([*matrices, *others], betas=betas, fused=True)]
        self.peaks = [[float(group["lr"]) for group in part.param_groups] for part in self.parts]

    def step(self, factor: float) -> float:
        """Clip the gradients, move every weight at `factor` times the peak rates, drop the gradients.

        Returns the gradients' norm before clipping. If it is not finite nothing moves.
        """
        gradients = [weight.grad for weight in self.names if weight.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        norm = total.item()
        if norm > self.clip:
            nn.utils.clip_grads_with_norm_(list(self.names), self.clip, total)
        if norm == norm and abs(norm) != float("inf"):
            for part, peaks in zip(self.parts, self.peaks, strict=True):
                for group, peak in zip(part.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                part.step()
        for weight in self.names:
            weight.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, as `weight.quantity`."""
        return {
            f"{self.names[weight]}.{quantity}": value
            for part in self.parts
            for weight, values in part.state.items()
            for quantity, value in values.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        weights = {name: weight for weight, name in self.names.items()}
        owner = {weight: part for part in self.parts for group in part.param_groups for weight in group["params"]}
        for key, value in state.items():
            name, _, quantity = key.rpartition(".")
            if name not in weights:
                raise CorruptionError(f"the optimizer's state has {key}, but the network has no weight {name}")
            weight = weights[name]
            device = "cpu" if quantity == "step" and weight.device.type == "cpu" else weight.device
            owner[weight].state[weight][quantity] = value.clone().to(device)  # a clone is aligned, as a fresh state is
