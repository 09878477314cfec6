"""Qwen2 and Qwen2.5 (Yang et al., 2024): Llama's parts, with biases on queries, keys and values."""

from dataclasses import replace

from pellucid.network.families import llama
from pellucid.network.families.family import classes

FAMILY = replace(
    llama.FAMILY,
    name="qwen2",
    classes=classes("Qwen2", "lm", "ForCausalLM"),
    fields=llama.FIELDS,
    shape={"attention_bias": True},
    read=llama.read,
    write=llama.write,
    fixed={"hidden_act": "silu", "use_sliding_window": False},
    defaults=llama.DEFAULTS | {"max_position_embeddings": 32_768, "sliding_window": None},
)
