"""A network that will only read: its matrices held as products, packed or in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from pellucid.core.device import usual_precision
from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.precision import Holding
from pellucid.network.adapters import merge
from pellucid.network.encoder_decoder import EncoderDecoder
from pellucid.network.layers import Head, Linear
from pellucid.network.network import Held, Network
from pellucid.network.products import ROWS, Int4, Int8, Product, packed
from pellucid.network.recurrent import Recurrent
from pellucid.network.transformer import Transformer

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
FEW = 4  # rows that cost little more than one where products are not read faster than they are worked out


@torch.no_grad()
def hold(network: Network, how: Holding) -> Network:
    """Hold a network's matrices as `how` says, in place of its weights; adapters are merged first.

    All else is held and computed in bf16 or f16 if that is what is asked for; with 8 bits in fp32, with 4 in what `auto` takes.

    It then only reads: it can neither learn nor be saved, and what a gradient needs is gone. Raises `ConfigError` for
    what cannot be held so, and `ModelError` if it is held already.
    """
    if network.held is not None:
        raise ModelError("the network's matrices are held already; load it again to hold them in another way")
    device = network.device.type
    usual = usual_precision(device)
    precision = usual if how.precision == "auto" else how.precision
    few = precision in ("int8", "int4")
    if few and (isinstance(network, Recurrent) or device != "cpu"):
        what = "an LSTM" if isinstance(network, Recurrent) else f"a network on {device}"
        raise ConfigError(f"{what} cannot be held in {precision}; use bf16, f16 or fp32")
    if few and not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise ConfigError(f"this torch has no oneDNN, which multiplies in {precision}; use bf16, f16 or fp32")
    dtype = TYPES[{"int8": "fp32", "int4": usual}.get(precision, precision)]
    merge(network).eval().requires_grad_(False)
    products: list[tuple[Linear, Product]] = []
    for parts in matrices(network):
        weight = torch.cat([part.weight for part in parts])
        biases = [part.bias.to(dtype) for part in parts if part.bias is not None]
        bias = torch.cat(biases) if biases else None
        if precision == "int4" and not isinstance(parts[0], Head):  # which with 4 bits costs SmolLM2 5 % of perplexity
            product: Product = Int4(weight, bias, group=how.group, symmetric=how.symmetric, dtype=dtype)
        else:
            product = Int8(weight, bias) if few else packed(weight.to(dtype), bias)
        products.append((parts[0], product))
        for part in parts:
            part.weight = nn.Parameter(torch.empty_like(part.weight, device="meta"), requires_grad=False)
    network.to(dtype).compute_in(None)
    for part, product in products:  # whose scales keep their type
        part.held = product
    network.held = Held(
        precision=precision,
        nbytes=sum(product.nbytes for _, product in products),
        sizes=steady(network),
        free=ROWS if precision in ("bf16", "int8") else FEW,
    )
    return network


def matrices(network: Network) -> Iterator[list[Linear]]:
    """The linear layers to hold, those together that read the same x. A head for labels is too small to matter."""
    joined: set[Linear] = set()
    for module in network.modules():
        parts = [part for name in getattr(module, "JOINED", ()) if (part := getattr(module, name)) is not None]
        if len(parts) > 1:
            joined.update(parts)
            yield parts
    for module in network.modules():
        if type(module) is Linear and module not in joined:
            yield [module]
    if network.head is not None and not network.config.scores_labels:
        yield [network.head]


def steady(network: Network) -> tuple[int, ...]:
    """The numbers of rows, up to `ROWS`, for which the rows of a pass have the same bits as among `ROWS`: found by trying."""
    decoder = network.decoder if isinstance(network, EncoderDecoder) else network
    if not (isinstance(decoder, Transformer) and network.config.generates):
        return (ROWS,)
    ids = torch.arange(ROWS, device=network.device)[:, None] % network.config.vocab_size
    whole = decoder.encode(ids)
    scores = network.scorer(whole)

    def same(rows: int) -> bool:
        part = decoder.encode(ids[:rows])
        return torch.equal(part, whole[:rows]) and torch.equal(network.scorer(part), scores[:rows])

    return (*(rows for rows in (1, 2, 4, 8) if same(rows)), ROWS)
