"""One small file per family: how its `config.json` and its weights are called."""

from types import ModuleType

from pellucid.core.errors import ModelError
from pellucid.network.families import qwen3

FAMILIES: dict[str, ModuleType] = {"qwen3": qwen3}


def family(name: object, source: object) -> ModuleType:
    """The family's module, or an error that says which there are."""
    if name not in FAMILIES:
        raise ModelError(f"{source}: model_type {name!r} is not supported; the families are {', '.join(FAMILIES)}")
    return FAMILIES[str(name)]
