"""Checkpoints: whole or absent, verified by hash, and each a model folder that anybody's tools can open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from pellucid.core.errors import CorruptionError, DivergenceError, RunError
from pellucid.core.files import MANIFEST, atomic_folder, read_json, remove_folder, verify, write_json
from pellucid.core.run import RunFolder
from pellucid.network.adapters import adapter_state
from pellucid.network.network import Network
from pellucid.network.peft import save_adapter
from pellucid.network.recurrent import LayerState
from pellucid.network.sources import save_tensors
from pellucid.network.weights import load_into, save_network, write_generation
from pellucid.text.tokenizer import Tokenizer
from pellucid.training.loop import TrainState

OPTIMIZER, MEMORY, POSITION = "optimizer.safetensors", "memory.safetensors", "position.json"
TRAINED = "trained.safetensors"  # of an adapter: its matrices as training has them
PRIVATE = (OPTIMIZER, MEMORY, POSITION, TRAINED)  # what only a resume reads


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run is. The order of the data needs no state: batch n is a function of (store, seed, n)."""

    step: int  # optimizer steps done
    seconds: float  # of training, over all the processes that took part
    validation_loss: float | None  # nats per token, if this step was evaluated


class Kept(Protocol):
    """What of a network a checkpoint keeps, in the form of a folder that others' tools open."""

    def save(self, network: Network, folder: Path) -> None: ...

    def load(self, network: Network, folder: Path) -> None: ...


@dataclass(frozen=True)
class WholeModel:
    """All weights and the tokenizer, as a Hugging Face folder with the `ids` of special tokens."""

    tokenizer: Tokenizer
    ids: Mapping[str, Any] | None = None

    def save(self, network: Network, folder: Path) -> None:
        save_network(network, folder, end_of_text=self.tokenizer.end_of_text, ids=self.ids)
        if self.ids is not None:
            write_generation(folder, network.config, self.ids)
        self.tokenizer.save(folder, context_length=network.config.context_length)

    def load(self, network: Network, folder: Path) -> None:
        load_into(network, folder)


@dataclass(frozen=True)
class AdapterOnly:
    """An adapter and its head for labels, as a folder of peft's, with the tokenizer; `base` is the model that it is for."""

    tokenizer: Tokenizer
    base: str
    ids: Mapping[str, Any]

    def save(self, network: Network, folder: Path) -> None:
        save_adapter(network, folder, base=self.base)
        write_generation(folder, network.config, self.ids)
        self.tokenizer.save(folder, context_length=network.config.context_length)
        save_tensors(adapter_state(network), folder / TRAINED)

    def load(self, network: Network, folder: Path) -> None:
        kept = load_file(folder / TRAINED)
        with torch.no_grad():
            for name, tensor in adapter_state(network).items():
                tensor.copy_(kept[name])


def save(run: RunFolder, state: TrainState, kept: Kept, position: Position) -> Path:
    """Write `checkpoints/step-N`; refuse weights that are not finite."""
    network = state.network
    for name, weight in network.named_parameters():
        if not torch.isfinite(weight).all():
            raise DivergenceError(
                f"step {position.step}: {name} holds values that are not finite, so no checkpoint was written"
            )
    folder = run.checkpoints / f"step-{position.step:08d}"
    with atomic_folder(folder) as temporary:
        kept.save(network, temporary)
        save_tensors(state.optimizers.state(), temporary / OPTIMIZER)
        if state.memory is not None:
            parts = {f"{i}.{name}": getattr(layer, name) for i, layer in enumerate(state.memory) for name in ("hidden", "cell")}
            save_tensors(parts, temporary / MEMORY)
        write_json(temporary / POSITION, asdict(position))
    return folder


def load(folder: Path, state: TrainState, kept: Kept) -> Position:
    """Put a checkpoint's weights and optimizer state back in place; damage is an error that names the file."""
    verify(folder)
    kept.load(state.network, folder)
    state.optimizers.load(load_file(folder / OPTIMIZER))
    if (folder / MEMORY).is_file():
        parts = {name: tensor.to(state.network.device) for name, tensor in load_file(folder / MEMORY).items()}
        state.memory = [LayerState(parts[f"{i}.hidden"], parts[f"{i}.cell"]) for i in range(len(parts) // 2)]
    return position(folder)


def position(folder: Path) -> Position:
    """Where a checkpoint stands in its run."""
    path = folder / POSITION
    try:
        return Position(**read_json(path))
    except TypeError:
        raise CorruptionError(f"{path} does not say where the run is; delete {folder}") from None


def all_whole(run: RunFolder) -> list[Path]:
    """Every finished checkpoint, oldest first; half-written ones have another name and no manifest."""
    return sorted(p for p in run.checkpoints.glob("step-*") if (p / MANIFEST).is_file())


def latest(run: RunFolder) -> Path:
    """The newest finished checkpoint."""
    found = all_whole(run)
    if not found:
        raise RunError(f"{run.path} has no finished checkpoint to resume from; start it anew with --force")
    return found[-1]


def best(run: RunFolder) -> Path | None:
    """The checkpoint of the lowest validation loss; the newer of two equals."""
    scored = [(loss, p) for p in reversed(all_whole(run)) if (loss := position(p).validation_loss) is not None]
    finite = [(loss, p) for loss, p in scored if math.isfinite(loss)]
    return min(finite, key=lambda pair: pair[0])[1] if finite else None


def prune(run: RunFolder, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints and the best one."""
    kept = {*all_whole(run)[-keep:], best(run)}
    for folder in all_whole(run):
        if folder not in kept:
            remove_folder(folder)
