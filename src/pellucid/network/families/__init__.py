"""One small file per family: how its `config.json` and its weights are called."""

from pellucid.core.errors import ModelError
from pellucid.network.families import bag_of_words, bert, distilbert, gpt2, llama, lstm, mistral, qwen2, qwen3, roberta, t5
from pellucid.network.families.family import Family, Stored

__all__ = ["FAMILIES", "Family", "Stored", "family"]

MODULES = (bag_of_words, bert, distilbert, gpt2, llama, lstm, mistral, qwen2, qwen3, roberta, t5)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in MODULES}


def family(name: object, source: object) -> Family:
    """The family of that `model_type`, or an error that says which there are."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelError(f"{source}: model_type {name!r} is not supported; the families are {', '.join(FAMILIES)}")
    return FAMILIES[name]
