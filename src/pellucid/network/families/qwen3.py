"""Qwen3 (Yang et al., 2025): the default family. Llama's parts, with norms on queries and keys."""

from dataclasses import replace

from pellucid.network.families import llama
from pellucid.network.families.family import classes

FAMILY = replace(
    llama.FAMILY,
    name="qwen3",
    classes=classes("Qwen3", "lm", "ForCausalLM"),
    fields=llama.FIELDS,
    shape={"qk_norm": True},
    fixed={"hidden_act": "silu", "use_sliding_window": False},
    defaults=llama.DEFAULTS
    | {"attention_bias": False, "max_position_embeddings": 32_768, "head_dim": 128, "sliding_window": None},
)
