"""`pellucid adapter`: merge."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cyclopts import App

adapter = App(name="adapter", help="Make a model of a low-rank adapter (LoRA) and the model that it was trained on.")


@adapter.command(name="merge")
def adapter_merge(
    adapter: str,
    *,
    out: Path,
    base: str | None = None,
    dtype: Literal["f32", "bf16", "f16"] | None = None,
    force: bool = False,
) -> None:
    """Add an adapter to its base and write one model, which needs neither of them.

    An adapter is a small folder (adapter_config.json, adapter_model.safetensors) that `pellucid finetune --method lora` or the
    library peft has written. `pellucid generate ADAPTER` and all other commands take it as it is, as long as its base is where
    it was; merged, it is an ordinary model folder: as fast as the base, and ready for `pellucid convert --to gguf`.

    Parameters
    ----------
    adapter
        the adapter's folder, a run that made one, or its name on the hub
    out
        the model folder to make
    base
        the model that the adapter belongs to, if it is not where the adapter says; another model is an error
    dtype
        type of the weights; without it they have the base's
    force
        replace OUT
    """
    from pellucid.converting import merge_adapter

    path = merge_adapter(adapter, out, base=base, dtype=dtype, force=force)
    print(f"{path}: written")
