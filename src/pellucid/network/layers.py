"""The parts of a network that treat each position alone: matrices, norms, the MLP, the head."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.network.config import ModelConfig
from pellucid.network.products import Product
from pellucid.network.taps import Taps, tap

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


def dropped(x: Tensor, share: float, training: bool) -> Tensor:
    """Dropout (Srivastava et al., 2014) while training."""
    if not (training and share):
        return x
    fast = x.device.type == "cpu" and not torch.compiler.is_compiling()  # a compiled one is fast by itself
    return x * kept(x, share) if fast else F.dropout(x, share)


def kept(x: Tensor, share: float) -> Tensor:
    """What dropout multiplies x with: 0 with a probability of `share`, to the nearest 2^-16, else the inverse of the rest.

    On a CPU F.dropout draws a double for each value, one after another, which is a tenth of a step of BERT; here a draw of
    64 bits serves four values.
    """
    cut = min(round(share * 2**16), 2**16 - 1)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (bits[: x.numel()].view(x.shape) >= cut - 2**15).to(x.dtype).mul_(2**16 / (2**16 - cut))


class Linear(nn.Linear):
    """x W^T + b, computed in the type of x: fp32 master weights serve bf16 activations."""

    held: Product | None  # in place of the weight, in a network that only reads; perhaps with those of other layers

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.held = None

    def reset_parameters(self) -> None:
        """Weights are set by `initialize` or read from a file: torch's own initialisation would be work for nothing."""

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        if self.held is not None:
            return self.held(x)
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def joined(x: Float[Tensor, "... inputs"], parts: Sequence[Linear]) -> Sequence[Float[Tensor, "... outputs"]]:
    """What several layers make of the same x: in one product, where they are held as one."""
    held = parts[0].held
    if held is None or held.outputs == parts[0].out_features:
        return [part(x) for part in parts]
    return torch.split(held(x), [part.out_features for part in parts], dim=-1)


class Embedding(nn.Embedding):
    """A vector for each token."""

    def reset_parameters(self) -> None:
        """As in `Linear`."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain (Zhang and Sennrich, 2019).

    The root is taken in fp32; written with vector_norm, which on a CPU is 5 to 9 % of a training step faster than F.rms_norm.
    """

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square()
        return x * torch.rsqrt(square / x.shape[-1] + self.eps).to(x.dtype) * self.weight.to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """(x - mean(x)) / sqrt(var(x) + eps) * gain + bias (Ba et al., 2016)."""

    def forward(self, x: Float[Tensor, "... features"]) -> Float[Tensor, "... features"]:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def norm(config: ModelConfig, features: int | None = None) -> nn.Module:
    """The norm that the family uses, over `features` (None: d_model)."""
    return (RMSNorm if config.norm == "rms" else LayerNorm)(features or config.d_model, config.norm_eps)


class MLP(nn.Module):
    """down(activation(up(x))), or gated (Shazeer, 2020): down(activation(gate(x)) * up(x))."""

    JOINED = ("gate", "up")

    def __init__(self, config: ModelConfig, site: str) -> None:
        super().__init__()
        self.site = site
        self.activation = ACTIVATIONS[config.activation]
        self.gate = Linear(config.d_model, config.d_mlp, bias=config.mlp_bias) if config.gated else None
        self.up = Linear(config.d_model, config.d_mlp, bias=config.mlp_bias)
        self.down = Linear(config.d_mlp, config.d_model, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "batch seq d_model"], taps: Taps | None = None) -> Float[Tensor, "batch seq d_model"]:
        if self.gate is None:
            neurons = self.activation(self.up(x))
        else:
            gate, up = joined(x, (self.gate, self.up))
            neurons = self.activation(gate) * up
        neurons = tap(taps, f"{self.site}.neurons", neurons)
        return tap(taps, f"{self.site}.out", self.down(neurons))


class Pooler(Linear):
    """A dense layer over the first position's vector, and its activation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.d_model, config.d_model, bias=True)
        self.activation = ACTIVATIONS[config.pooler_activation]

    def forward(self, first: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        return self.activation(super().forward(first))


class Head(Linear):
    """A score for every token (or label): `prepare(x)` times a matrix."""

    def __init__(self, config: ModelConfig) -> None:
        masked = config.head == "mlm"
        super().__init__(config.d_model, len(config.labels) or config.vocab_size, bias=config.head_bias)
        self.scale, self.activation = config.head_scale, ACTIVATIONS[config.activation]
        self.dense = Linear(config.d_model, config.d_model, bias=True) if masked else None
        self.norm = norm(config) if masked else None

    def prepare(self, hidden: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What the matrix multiplies."""
        if self.dense is not None and self.norm is not None:
            return self.norm(self.activation(self.dense(hidden)))  # type: ignore[no-any-return]
        return hidden if self.scale == 1.0 else hidden * self.scale

    def forward(self, hidden: Float[Tensor, "... d_model"]) -> Float[Tensor, "... scores"]:
        return super().forward(self.prepare(hidden))
