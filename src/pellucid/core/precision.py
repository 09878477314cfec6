"""In how many bits a model that only reads and writes holds its matrices: the settings, which need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pellucid.core.errors import ConfigError

Bits = Literal["auto", "fp32", "bf16", "f16", "int8", "int4"]
Group = Literal[32, 64, 128]


@dataclass(frozen=True, kw_only=True)
class Holding:
    """How matrices are held. In 8 bits each output has a scale, in 4 bits each group of weights."""

    precision: Bits = "auto"
    """bits of the weights: auto takes bf16 where this machine is fast at it, else fp32; int8 and int4 are smaller and faster"""
    group: Group = 32
    """int4: weights that share a scale; more take less memory and lose more"""
    symmetric: bool = False
    """int4: a scale without a zero point, as in a Q4_0 file"""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Bits):
            raise ConfigError(f"precision must be one of {', '.join(get_args(Bits))}, not {self.precision!r}")
        if self.group not in get_args(Group):
            raise ConfigError(f"group must be one of {', '.join(map(str, get_args(Group)))}, not {self.group!r}")
        if self.precision != "int4" and (self.group, self.symmetric) != (32, False):
            raise ConfigError(f"group and symmetric have no effect on {self.precision}; leave them out, or use int4")
