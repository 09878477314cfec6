"""How the next token is chosen: the settings, which need no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypedDict

from pellucid.core.errors import ConfigError


class SamplingFields(TypedDict, total=False):
    """What `Sampling` takes, for functions that pass it on."""

    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    typical_p: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Settings apply in the order of the fields; temperature 0 takes the likeliest token."""

    repetition_penalty: float = 1.0
    """above 1, tokens already in the text become less likely"""  # Keskar et al., 2019
    presence_penalty: float = 0.0
    """is taken from the logits of tokens already written"""
    frequency_penalty: float = 0.0
    """is taken from the logits of tokens already written, once for each time"""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """is added to the logits of tokens: --logit-bias 50256 -100 never writes token 50256"""
    temperature: float = 1.0
    """0 takes the likeliest token; below 1 is safer, above 1 wilder"""
    top_k: int | None = None
    """choose among the k likeliest tokens"""
    top_p: float = 1.0
    """choose among the likeliest tokens that together have this probability"""  # Holtzman et al., 2020
    min_p: float = 0.0
    """choose among tokens at least this share as likely as the likeliest"""  # Nguyen et al., 2024
    typical_p: float = 1.0
    """choose among the tokens of the most usual surprise that together have this probability"""  # Meister et al., 2023
    seed: int = 0
    """the same seed writes the same text"""

    @classmethod
    def of(cls, fields: SamplingFields) -> Self:
        """The settings that users write, whose biases are a mapping."""
        values: dict[str, Any] = {**fields}
        return cls(**values | {"logit_bias": tuple(values.get("logit_bias", {}).items())})

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, not {self.top_k}")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p must be from 0 to 1, not {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty must be above 0, not {self.repetition_penalty}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} must be a finite number, not {getattr(self, name)}")
        for id, bias in self.logit_bias:
            if not math.isfinite(bias):
                raise ConfigError(f"the logit_bias of token {id} must be a finite number, not {bias}; -100 is enough to ban it")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be from 0 to 2^63 - 1, not {self.seed}")
        if self.temperature == 0 and self.filters != (None, 1.0, 0.0, 1.0):
            raise ConfigError(
                "top_k, top_p, min_p and typical_p have no effect at temperature 0; leave them out or raise the temperature"
            )

    @property
    def filters(self) -> tuple[int | None, float, float, float]:
        return self.top_k, self.top_p, self.min_p, self.typical_p
