"""Pellucid: train a language model on your own text, use it, and see through it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pellucid.api import (
        Explanation,
        Generation,
        Model,
        Run,
        TaskRun,
        convert,
        evaluate,
        explain,
        explain_labels,
        explain_parts,
        explain_training,
        finetune,
        load,
        pretrain,
    )
    from pellucid.core.errors import PellucidError

__all__ = [
    "Explanation",
    "Generation",
    "Model",
    "PellucidError",
    "Run",
    "TaskRun",
    "__version__",
    "convert",
    "evaluate",
    "explain",
    "explain_labels",
    "explain_parts",
    "explain_training",
    "finetune",
    "load",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    """Load the public names when they are first used: `import pellucid` stays instant, torch comes with the first of them."""
    if name == "PellucidError":
        from pellucid.core import errors

        return errors.PellucidError
    if name in __all__:
        from pellucid import api

        return getattr(api, name)
    raise AttributeError(f"module 'pellucid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
