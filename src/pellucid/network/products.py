"""Products with matrices that no longer change, held as kernels want them: packed, or in 8 or 4 bits.

Every one of them gives a row of x the same bits whatever rows are beside it, on machines where `holding.steady` finds it so:
the integers of `Int8` are exact by nature, the others add up in one order.
"""

from __future__ import annotations

from copy import copy
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from jaxtyping import Int8 as Bytes
from torch import Tensor, nn

from pellucid.core.errors import ConfigError

ROWS = 16  # of x, for which a packed layout is chosen
DIGIT = 128  # values of a digit, from -64 to 63: two of them times a byte fit the 16 bits in which many processors add
LARGEST = 63 * DIGIT + 63  # number of two digits


@runtime_checkable
class Product(Protocol):
    """x W^T + b for one W and b, computed in the type of x."""

    outputs: int
    nbytes: int  # that a product reads of its matrix

    def __call__(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]: ...

    def opened(self) -> Product:
        """The same of plain tensors, for a compiler, which packs them itself."""


class Kept(nn.Module):
    """A matrix and its bias in some form: a network's own tensors, and yet not saved with it."""

    weight: Tensor
    bias: Tensor | None

    def keep(self, **tensors: Tensor | None) -> None:
        for name, tensor in tensors.items():
            self.register_buffer(name, None if tensor is None else tensor.detach(), persistent=False)


class Dense(Kept):
    """As any linear layer; for devices without packed kernels."""

    def __init__(self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> None:
        super().__init__()
        self.keep(weight=weight, bias=bias)
        self.outputs, self.nbytes = len(weight), weight.nbytes

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        return F.linear(x, self.weight, self.bias)

    def opened(self) -> Product:
        return self


class Packed(Kept):
    """In the layout of oneDNN's kernel, which a linear layer makes anew at every call."""

    def __init__(self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> None:
        super().__init__()
        self.keep(weight=torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS), bias=bias)
        self.outputs, self.nbytes = len(weight), weight.nbytes

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return found

    def opened(self) -> Product:
        return Dense(self.weight.to_dense(), self.bias)


def packed(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> Product:
    """Packed, where there is a kernel for it."""
    return (Packed if weight.device.type == "cpu" and packs(weight.dtype) else Dense)(weight, bias)


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN has a kernel for packed matrices here: for 16 bits not on every processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    kernels = torch.ops.mkldnn
    known = {torch.bfloat16: kernels._is_mkldnn_bf16_supported, torch.float16: kernels._is_mkldnn_fp16_supported}
    return known[dtype]() if dtype in known else True


class Int8(Kept):
    """Weights of 8 bits with a scale for each output; x as two digits of 7 bits with a scale for each row.

    The products of integers are exact, so that no order of adding them up is another. With the usual 8 bits of x SmolLM2 loses
    4 % of perplexity (Dettmers et al., 2022, tell why), with 14 half of one. Digits are told to the kernel without a sign:
    for bytes that have one oneDNN has a kernel on processors with AMX only, and elsewhere takes a hundred times as long.
    """

    def __init__(self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> None:
        whole, scale = rounded_to_bytes(weight)
        super().__init__()
        self.keep(weight=torch.ops.onednn.qlinear_prepack(whole, None), scale=scale[:, 0])
        self.keep(zeros=torch.zeros(len(weight), dtype=torch.int64), bias=None if bias is None else bias.float())
        self.outputs, self.nbytes = len(weight), whole.nbytes

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        weight = self.weight if self.weight.is_mkldnn else torch.ops.onednn.qlinear_prepack(self.weight, None)
        scale, digits = in_digits(x.reshape(-1, x.shape[-1]).float())
        sums = torch.ops.onednn.qlinear_pointwise(
            digits, 1.0, 64, weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        high, low = sums.view(2, -1, self.outputs)
        found = torch.add(low, high, alpha=DIGIT).mul_(scale)
        if self.bias is not None:
            found += self.bias
        return found.to(x.dtype).view(*x.shape[:-1], self.outputs)

    def opened(self) -> Product:
        plain = copy(self)
        plain._buffers = self._buffers | {"weight": self.weight.to_dense().t().contiguous()}  # which a copy would share
        return plain


class Int4(Kept):
    """Weights of 4 bits, with a scale, and unless `symmetric` a zero point, for each group of a row's weights."""

    def __init__(
        self,
        weight: Float[Tensor, "outputs inputs"],
        bias: Float[Tensor, " outputs"] | None,
        *,
        group: int,
        symmetric: bool,
        dtype: torch.dtype,
    ) -> None:
        if weight.shape[1] % group:
            raise ConfigError(
                f"a matrix with {weight.shape[1]:,} inputs has no whole groups of {group}; use a smaller group, or int8"
            )
        whole, scale, zero = rounded_to_nibbles(weight, group, symmetric=symmetric)
        super().__init__()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole.int(), 1)
        scales = torch.stack([scale, zero], dim=-1).transpose(0, 1).contiguous().to(dtype)
        self.keep(weight=packed, scales=scales, bias=None if bias is None else bias.to(dtype))
        self.group, self.outputs, self.nbytes = group, len(weight), packed.nbytes + scales.nbytes

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        rows = x.reshape(-1, x.shape[-1])
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, self.group, self.scales)
        if self.bias is not None:
            found += self.bias
        return found.view(*x.shape[:-1], self.outputs)

    def opened(self) -> Product:
        return self


def rounded_to_bytes(
    weight: Float[Tensor, "outputs inputs"],
) -> tuple[Bytes[Tensor, "outputs inputs"], Float[Tensor, "outputs 1"]]:
    """Whole numbers from -127 to 127 and the scale of each row."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    return (weight / scale).round().to(torch.int8), scale


def in_digits(x: Float[Tensor, "rows inputs"]) -> tuple[Float[Tensor, "rows 1"], UInt8[Tensor, "twice_rows inputs"]]:
    """The scale of each row, and the two digits of its whole numbers, each plus 64: first the high ones."""
    scale = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).clamp_(min=1e-30) / LARGEST
    whole = (x / scale).round_().to(torch.int16) + 64 * DIGIT + 64
    return scale, torch.cat((whole >> 7, whole & 127)).to(torch.uint8)


def rounded_to_nibbles(
    weight: Float[Tensor, "outputs inputs"], group: int, *, symmetric: bool
) -> tuple[Bytes[Tensor, "outputs inputs"], Float[Tensor, "outputs groups"], Float[Tensor, "outputs groups"]]:
    """Whole numbers from 0 to 15, and scale and zero of each group: a weight is (whole - 8) scale + zero.

    Symmetric groups have 0 as their zero, and their largest weight at -8. These are the grids of llama.cpp's Q4_1 and Q4_0:
    weights from such a file stay what they are.
    """
    parts = weight.detach().float().view(len(weight), -1, group)
    if symmetric:
        largest = parts.gather(-1, parts.abs().argmax(dim=-1, keepdim=True))
        scale, zero = largest / -8, torch.zeros_like(largest)
    else:
        low, high = parts.aminmax(dim=-1, keepdim=True)
        scale = (high - low) / 15
        zero = low + 8 * scale
    scale = torch.where(scale == 0, 1e-30, scale)
    whole = ((parts - zero) / scale).round().clamp(-8, 7) + 8
    return whole.to(torch.int8).flatten(1), scale[..., 0], zero[..., 0]
