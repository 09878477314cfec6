"""Mistral (Jiang et al., 2023): Llama's parts; its sliding window is not supported, and refused where it would matter."""

from dataclasses import replace
from typing import Any

from pellucid.core.errors import ConfigError
from pellucid.network.families import llama
from pellucid.network.families.family import classes, refusal


def read(file: dict[str, Any]) -> dict[str, Any]:
    window, context = file.get("sliding_window"), file.get("max_position_embeddings")
    if window is not None and not (isinstance(window, int) and isinstance(context, int) and context <= window):
        raise ConfigError(refusal("sliding_window", window))
    return llama.read(file)


FAMILY = replace(
    llama.FAMILY,
    name="mistral",
    classes=classes("Mistral", "lm", "ForCausalLM"),
    fields=llama.FIELDS,
    read=read,
    write=lambda config: llama.write(config) | {"sliding_window": None},
    defaults=llama.DEFAULTS | {"max_position_embeddings": 131_072, "sliding_window": 4096, "num_key_value_heads": 8},
)
