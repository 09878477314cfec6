"""Models of llama2.c (Karpathy, 2023), in its first format: seven numbers, then float32 tensors without names."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pellucid.core.errors import ConfigError, ModelError
from pellucid.network.config import ModelConfig
from pellucid.network.families import FAMILIES, Stored

HEADER = struct.Struct("<7i")
LATER = 0x616B3432  # "ak42": what the later formats begin with


class Llama2c:
    """An open file: its configuration, and its tensors under our names; they stay on disk until they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.places: dict[str, int] = {}  # in numbers of 4 bytes, after the header
        end = 0
        for name, shape in layout(self.config):
            self.shapes[name], self.places[name] = shape, end
            end += prod(shape)
        size = HEADER.size + 4 * end
        if size != path.stat().st_size:
            raise ModelError(
                f"{path} has {path.stat().st_size} bytes, but a llama2.c model of its dimensions has {size}; "
                "it is cut off, or not of llama2.c's first format"
            )
        for name in [name for name in self.shapes if name.startswith("freq_")]:
            del self.shapes[name]
        # copy-on-write: a network may be trained on what it reads
        self.numbers = np.memmap(path, "<f4", mode="c", offset=HEADER.size).view(np.ndarray)

    def read(self, name: str) -> Tensor:
        shape, start = self.shapes[name], self.places[name]
        return torch.from_numpy(self.numbers[start : start + prod(shape)].reshape(shape))


def read_config(path: Path) -> ModelConfig:
    """The dimensions in the first 28 bytes."""
    with path.open("rb") as file:
        start = file.read(HEADER.size)
    if len(start) < HEADER.size or struct.unpack_from("<I", start)[0] == LATER:
        raise ModelError(f"{path} is not of llama2.c's first format; export it with: export.py --version 0")
    d_model, d_mlp, layers, heads, kv_heads, vocab_size, context = HEADER.unpack(start)
    if heads < 1 or d_model % heads:
        raise ModelError(f"{path} is no llama2.c model: {heads} heads cannot share {d_model} features")
    try:
        return FAMILIES["llama"].new(
            vocab_size=abs(vocab_size),
            tied=vocab_size > 0,
            context_length=context,
            d_model=d_model,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            d_head=d_model // heads,
            d_mlp=d_mlp,
            norm_eps=1e-5,
        )
    except ConfigError as error:
        raise ModelError(f"{path} is no llama2.c model: {error}") from None


def layout(config: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Every tensor in the order of the file: the same one of all layers, then the next."""
    width, kv_width = config.heads * config.d_head, config.kv_heads * config.d_head
    blocks: list[tuple[str, tuple[int, ...]]] = [
        ("norm_attn", (config.d_model,)),
        ("attn.q", (width, config.d_model)),
        ("attn.k", (kv_width, config.d_model)),
        ("attn.v", (kv_width, config.d_model)),
        ("attn.output", (config.d_model, width)),
        ("norm_mlp", (config.d_model,)),
        ("mlp.gate", (config.d_mlp, config.d_model)),
        ("mlp.down", (config.d_model, config.d_mlp)),
        ("mlp.up", (config.d_mlp, config.d_model)),
    ]
    vocabulary, angles = (config.vocab_size, config.d_model), (config.context_length, config.d_head // 2)
    return [
        ("embedding.weight", vocabulary),
        *((f"blocks.{i}.{part}.weight", shape) for part, shape in blocks for i in range(config.layers)),
        ("norm.weight", (config.d_model,)),
        ("freq_cos", angles),  # follow from the dimensions
        ("freq_sin", angles),
        *([] if config.tied else [("head.weight", vocabulary)]),
    ]


def names_in(file: Llama2c) -> dict[str, Stored]:
    """Where each of our tensors lies: under its own name, queries and keys with rotary pairs that are neighbours."""
    heads = {".attn.q.": file.config.heads, ".attn.k.": file.config.kv_heads}
    return {name: Stored(name, paired=next((heads[part] for part in heads if part in name), 0)) for name in file.shapes}
