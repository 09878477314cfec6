"""A network's dimensions, in one vocabulary for all families."""

import math
from dataclasses import MISSING, dataclass, fields

from pellucid.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder: `layers` blocks of attention and a gated MLP over `d_model` features."""

    family: str = "qwen3"
    vocab_size: int
    context_length: int  # the longest sequence, in tokens
    d_model: int
    layers: int
    heads: int
    kv_heads: int  # heads that keys and values have; each serves heads / kv_heads query heads
    d_head: int
    d_mlp: int
    tied: bool = True  # the head's weight is the embedding's
    rope_theta: float = 10_000.0  # base of the rotary wavelengths
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ConfigError(f"{field.name} must be at least 1, not {value}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.d_head % 2:
            raise ConfigError(f"d_head ({self.d_head}) must be even, since rotary positions turn features in pairs")
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 1):
            raise ConfigError(f"rope_theta must be a finite number above 1, not {self.rope_theta}")

    @property
    def block_parameters(self) -> int:
        """Weights in the matrices of all blocks: what 6 N D counts."""
        attention = 2 * self.d_model * self.d_head * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.d_model * self.d_mlp)

    @property
    def parameters(self) -> int:
        """All weights, embedding, head and gains included; a tied head is counted once."""
        gains = self.layers * (2 * self.d_model + 2 * self.d_head) + self.d_model
        embeddings = self.vocab_size * self.d_model * (1 if self.tied else 2)
        return self.block_parameters + embeddings + gains

    @classmethod
    def required(cls) -> list[str]:
        """The fields that have no default."""
        return [field.name for field in fields(cls) if field.default is MISSING]
