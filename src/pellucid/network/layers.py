"""The parts of a block that treat each position alone: normalisation, rotary positions, the gated MLP."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.network.config import ModelConfig
from pellucid.network.taps import Taps, tap

Rotation = tuple[Float[Tensor, "#batch 1 seq d_head"], Float[Tensor, "#batch 1 seq d_head"]]  # cosines and sines


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain (Zhang and Sennrich, 2019)."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al., 2021): feature pairs turn by an angle proportional to the position."""

    def __init__(self, d_head: int, theta: float) -> None:
        super().__init__()
        self.d_head, self.theta = d_head, theta

    def forward(self, positions: Int[Tensor, "#batch seq"], dtype: torch.dtype) -> Rotation:
        """Cosine and sine of every pair's angle, each written twice, for the two halves of a head's features."""
        exponent = torch.arange(0, self.d_head, 2, device=positions.device, dtype=torch.float32) / self.d_head
        angles = positions[:, None, :, None].float() * self.theta**-exponent
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Float[Tensor, "batch heads seq d_head"], rotation: Rotation) -> Float[Tensor, "batch heads seq d_head"]:
    """Turn feature i together with feature i + d_head / 2."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class MLP(nn.Module):
    """The gated MLP, SwiGLU (Shazeer, 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, site: str) -> None:
        super().__init__()
        self.site = site
        self.gate = nn.Linear(config.d_model, config.d_mlp, bias=False)
        self.up = nn.Linear(config.d_model, config.d_mlp, bias=False)
        self.down = nn.Linear(config.d_mlp, config.d_model, bias=False)

    def forward(self, x: Float[Tensor, "batch seq d_model"], taps: Taps | None = None) -> Float[Tensor, "batch seq d_model"]:
        neurons = tap(taps, f"{self.site}.neurons", F.silu(self.gate(x)) * self.up(x))
        return tap(taps, f"{self.site}.out", self.down(neurons))
