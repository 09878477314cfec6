"""The key/value cache: static buffers, one slot per position, rows of different lengths side by side."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.network.config import ModelConfig
from pellucid.network.masks import Mask

Keys = Float[Tensor, "batch kv_heads slots d_head"]


class LayerSlots:
    """One layer's keys and values."""

    def __init__(self, keys: Keys, values: Keys) -> None:
        self.keys, self.values = keys, values
        self.positions: Int[Tensor, "batch seq"] = torch.zeros(0, 0, dtype=torch.long)
        self.used = 0

    def extend(
        self, k: Float[Tensor, "batch kv_heads seq d_head"], v: Float[Tensor, "batch kv_heads seq d_head"]
    ) -> tuple[Keys, Keys]:
        """Write at the positions that `Cache.mask` announced; return all slots in use."""
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        self.keys[rows, :, self.positions] = k.transpose(1, 2)
        self.values[rows, :, self.positions] = v.transpose(1, 2)
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]


class Cache:
    """Keys and values of all layers for `batch` rows of up to `slots` positions."""

    def __init__(self, config: ModelConfig, *, batch: int, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.layers, batch, config.kv_heads, slots, config.d_head)
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.slots = slots
        self.layers = [LayerSlots(keys[i], values[i]) for i in range(config.layers)]

    def choose(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with these rows; one may be chosen several times."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    def mask(self, positions: Int[Tensor, "batch seq"]) -> Mask:
        """Announce the positions that the next forward pass computes; each sees the slots up to its own.

        Slots of a shorter row beyond its length hold padding, which no position of that row ever sees: it is overwritten first.
        """
        used = int(positions.max()) + 1
        for layer in self.layers:
            layer.positions, layer.used = positions, used
        return Mask.for_cache(positions, used)
