"""How attention learns where tokens stand: rotary angles, or a bias for each distance."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.network.config import ModelConfig, RopeScaling
from pellucid.network.layers import Embedding
from pellucid.network.masks import Mask

Rotation = tuple[Float[Tensor, "#batch 1 seq pairs"], Float[Tensor, "#batch 1 seq pairs"]]  # cosines and sines


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., 2021): feature pairs turn by an angle proportional to the position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.d_head, self.theta, self.scaling = config.d_head, config.rope_theta, config.rope_scaling

    def forward(self, positions: Int[Tensor, "#batch seq"], dtype: torch.dtype) -> Rotation:
        """Cosine and sine of the angle of each of a head's d_head / 2 pairs.

        The frequencies are to the last bit those that published models learned with: far on, the last bit is seen.
        """
        frequencies, factor = 1.0 / periods(self.theta, self.d_head, positions.device), 1.0
        if self.scaling is not None:
            frequencies, factor = stretched(frequencies, self.theta, self.scaling), self.scaling.attention_factor
        angles = positions[:, None, :, None].float() * frequencies
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def periods(theta: float, d_head: int, device: torch.device) -> Float[Tensor, " pairs"]:
    """In how many positions each pair turns by one radian."""
    return theta ** (torch.arange(0, d_head, 2, device=device, dtype=torch.float32) / d_head)


def stretched(frequencies: Float[Tensor, " pairs"], theta: float, scaling: RopeScaling) -> Float[Tensor, " pairs"]:
    """Lower frequencies for a longer context: slow pairs divided by the factor, fast ones kept, those between blended."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":  # Grattafiori et al., 2024: blended by how often a pair turns over the original context
        turns = scaling.original_context / (2 * math.pi / frequencies)
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
        slowed = (1 - kept) * frequencies / scaling.factor
    else:  # YaRN (Peng et al., 2023): blended by the pair's number
        pairs = len(frequencies)
        first, last = (
            pairs * math.log(scaling.original_context / (turns * 2 * math.pi)) / math.log(theta)
            for turns in (scaling.high, scaling.low)
        )
        if scaling.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        number = torch.arange(pairs, device=frequencies.device, dtype=torch.float32)
        kept = 1 - ((number - first) / (last - first or 0.001)).clamp(0, 1)
        slowed = 1.0 / (scaling.factor * periods(theta, 2 * pairs, frequencies.device)) * (1 - kept)
    return slowed + frequencies * kept


def rotate(x: Float[Tensor, "batch heads seq d_head"], rotation: Rotation) -> Float[Tensor, "batch heads seq d_head"]:
    """Turn feature i together with feature i + d_head / 2."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class RelativeBias(Embedding):
    """What each head adds to a score for the distance between query and key (Raffel et al., 2020), [buckets heads]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.relative_buckets, config.heads)
        self.causal, self.distance = config.causal, config.relative_distance

    def forward(self, mask: Mask, keys: int) -> Float[Tensor, "#batch heads seq keys"]:  # type: ignore[override]
        mine = mask.positions
        theirs = mine if mine.shape[1] == keys else torch.arange(keys, device=mine.device)[None]  # a cache's slots
        distance = theirs[:, None] - mine[:, :, None]
        return self.weight[self.buckets(distance)].permute(0, 3, 1, 2)

    def buckets(self, distance: Int[Tensor, "#batch seq keys"]) -> Int[Tensor, "#batch seq keys"]:
        """Near distances have a bucket each, farther ones share them on a logarithmic scale; later keys have their own half."""
        buckets = self.num_embeddings if self.causal else self.num_embeddings // 2
        later = torch.zeros_like(distance) if self.causal else (distance > 0) * buckets
        distance = (-distance).clamp(min=0) if self.causal else distance.abs()
        exact = buckets // 2
        far = torch.log(distance.float() / exact) / math.log(self.distance / exact) * (buckets - exact)
        far = (exact + far.clamp(min=0).long()).clamp(max=buckets - 1)
        return later + torch.where(distance < exact, distance, far)
