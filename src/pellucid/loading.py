"""Models on disk in any form: a run, a Hugging Face folder, a GGUF file, a llama2.c file, a name on the hub."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.files import own_file, read_json, verify_file
from pellucid.core.gguf import open_gguf
from pellucid.core.precision import Holding
from pellucid.core.run import RunFolder
from pellucid.network import gguf, llama2c
from pellucid.network.config import ModelConfig
from pellucid.network.families import Family, Stored, family
from pellucid.network.holding import hold
from pellucid.network.hub import fetch_model, looks_like_hub_id
from pellucid.network.network import Network
from pellucid.network.peft import load_adapter
from pellucid.network.peft_settings import Adapter, is_adapter, read_adapter
from pellucid.network.sources import Safetensors, TensorFile, is_pickle, pickle_refusal
from pellucid.network.weights import (
    CONFIG,
    GENERATION_CONFIG,
    assemble,
    checked_outline,
    names_in,
    read_config,
    read_tensors,
    with_present_parts,
)
from pellucid.text.formats import from_gguf, from_llama2c
from pellucid.text.tokenizer import Tokenizer
from pellucid.training import checkpoint

Dtype = Literal["fp32", "bf16", "f16"]

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
OWN_TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt")  # of which an adapter's folder may have one
FORMS = "a run folder, a model folder, a .gguf file, a llama2.c .bin file, or a model's name on the hub"


class Opened(NamedTuple):
    """What `open_model` returns; `path` is the folder or the file that the weights lie in."""

    network: Network
    tokenizer: Tokenizer
    path: Path


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model on disk: what it is and where its weights lie. Only headers have been read."""

    path: Path
    config: ModelConfig
    weights: TensorFile
    names: Mapping[str, Stored]  # ours: where they are
    known: Family | None = None
    dtype: torch.dtype | None = None  # that suits all tensors; None: the one that each has
    tokenizer: Callable[[], Tokenizer]

    def outline(self) -> Network:
        """The network without its weights, compared with what the file holds."""
        return checked_outline(self.config, self.weights, self.names, self.known)

    def network(self, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Network:
        """The network, its weights held against their hash where we wrote it."""
        verify_file(self.weights.path)
        dtype = dtype or self.dtype
        return assemble(self.config, self.weights, self.names, self.known, dtype=dtype, device=device)

    def tensor(self, name: str) -> Tensor:
        """One of the network's tensors by our name."""
        return read_tensors(self.weights, {name: self.names[name]}, None, "cpu")[name]

    def fitting_tokenizer(self) -> Tokenizer:
        """The tokenizer, which may not have more tokens than the network; fewer is usual, for embeddings are often padded."""
        tokenizer = self.tokenizer()
        if tokenizer.vocab_size > self.config.vocab_size:
            raise ModelError(
                f"{self.path}: the tokenizer has {tokenizer.vocab_size:,} tokens, but the network's vocabulary is "
                f"{self.config.vocab_size:,}; put back the tokenizer that belongs to it"
            )
        return tokenizer


def open_model(
    source: str | Path,
    *,
    device: str = "cpu",
    dtype: Dtype | None = None,
    revision: str | None = None,
    holding: Holding | None = None,
) -> Opened:
    """The model that `source` names, ready to use. Without `dtype` (fp32, bf16, f16) weights keep the type they have.

    With `holding` it will only read: its matrices are held as that says.

    Quantised weights become fp32. Raises `PellucidError` for what is not there, is damaged, or cannot be computed exactly.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise ConfigError(f"device {device!r} is none that torch {torch.__version__} sees here; use cpu, or cuda with a GPU")
    path, plain = find_model(source, revision=revision), DTYPES[dtype] if dtype else None
    if is_adapter(path):
        opened = open_adapter(path)
        opened = opened._replace(network=opened.network.to(device=device, dtype=plain))
    else:
        files = open_files(path)
        tokenizer = files.fitting_tokenizer()
        opened = Opened(files.network(device=device, dtype=plain), tokenizer, files.path)
    return opened if holding is None else opened._replace(network=hold(opened.network, holding))


def open_adapter(folder: Path, *, base: str | None = None, dtype: torch.dtype | None = None) -> Opened:
    """An adapter on the model that it names, or on `base`: not merged, frozen, with the base's tokenizer if it has none."""
    adapter = read_adapter(folder)
    files = open_files(find_base(adapter) if base is None else find_model(base))
    verify_file(adapter.path)
    own = any((folder / name).exists() for name in OWN_TOKENIZER)
    said = replace(files, path=folder, tokenizer=lambda: Tokenizer.load(folder)) if own else files
    tokenizer = said.fitting_tokenizer()
    network = load_adapter(files.network(dtype=dtype), adapter, base=base or adapter.base)
    return Opened(network, tokenizer, folder if (folder / GENERATION_CONFIG).exists() else files.path)


def find_base(adapter: Adapter) -> Path:
    """The model that an adapter names: a path from the working directory or from its folder, or else a name on the hub."""
    places = (Path(adapter.base), adapter.folder / adapter.base)
    try:
        found = next((place for place in places if place.exists()), None)
        return find_model(adapter.base, revision=adapter.revision) if found is None else find_model(found)
    except ModelError as error:
        raise ModelError(
            f"{adapter.folder} is an adapter for {adapter.base}, which cannot be opened ({error}); "
            "put that model there, or name it with: pellucid adapter merge --base"
        ) from None


def find_model(source: str | Path, *, revision: str | None = None) -> Path:
    """Where the weights lie: of a run its model, or its newest checkpoint; on the hub, only if there is no such path."""
    path = Path(source)
    if not path.exists():
        if isinstance(source, Path) or not looks_like_hub_id(source):
            raise ModelError(f"{source} does not exist; give {FORMS}")
        try:
            return fetch_model(source, revision=revision)
        except ModelError as error:
            raise ModelError(f"{source} is no path here, and no model of the hub: {error}") from None
    if revision is not None:
        raise ConfigError(f"revision {revision!r} has no effect on {path}, which is not from the hub; leave it out")
    run = RunFolder(path)
    if not run.is_run():
        return path
    if run.model.is_dir():
        return run.model
    if not checkpoint.all_whole(run):
        info = read_json(run.info)
        words = [info.get("verb", "pretrain"), *([info["model"]] if isinstance(info.get("model"), str) else [])]
        command = shlex.join([*map(str, words), "--resume", "--out", str(path)])
        raise ModelError(f"{path} has no checkpoint yet; wait for its first one, or go on with: pellucid {command}")
    return checkpoint.latest(run)


def open_files(path: Path) -> ModelFiles:
    """Read the headers of the model at `path`. An adapter is none: without its base it answers nothing."""
    if is_adapter(path):
        raise ModelError(f"{path} is an adapter; make a model of it first, with: pellucid adapter merge {path} --out FOLDER")
    if path.is_dir():
        return _open_folder(path)
    if is_pickle(path):
        raise pickle_refusal(path)
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if path.suffix == ".bin":
        return _open_llama2c(path)
    raise ModelError(f"{path} is not a model; give {FORMS}")


def _open_folder(folder: Path) -> ModelFiles:
    if not (folder / CONFIG).exists() and (found := sorted(folder.glob("*.gguf"))):
        raise ModelError(f"{folder} has no {CONFIG}, but {len(found)} .gguf files; name one of them, such as {found[0]}")
    config, weights = read_config(folder), Safetensors(folder)
    known = family(config.family, folder)
    config = with_present_parts(config, known, weights)
    names = names_in(config, known, weights)
    return ModelFiles(
        path=folder, config=config, weights=weights, names=names, known=known, tokenizer=lambda: Tokenizer.load(folder)
    )


def _open_gguf(path: Path) -> ModelFiles:
    file = open_gguf(path)
    config = gguf.config_of(file)
    return ModelFiles(
        path=path,
        config=config,
        weights=gguf.Tensors(file),
        names=gguf.names_in(config),
        dtype=gguf.common_type(file),
        tokenizer=lambda: from_gguf(file.metadata, where=str(path)),
    )


def _open_llama2c(path: Path) -> ModelFiles:
    file = llama2c.Llama2c(path)
    return ModelFiles(
        path=path,
        config=file.config,
        weights=file,
        names=llama2c.names_in(file),
        tokenizer=lambda: from_llama2c(vocabulary_beside(path, file.config.vocab_size)),
    )


def vocabulary_beside(path: Path, size: int) -> Path:
    """llama2.c's vocabulary for a model: the one that has its number of tokens in its name, or else the only one there."""
    found = sorted(file for file in path.parent.glob("tok*.bin") if file != path)
    named = [file for file in found if file.name == f"tok{size}.bin"] or found
    if len(named) == 1:
        return named[0]
    seen = f"{len(found)} vocabularies are" if found else "no vocabulary (tok*.bin) is"
    raise ModelError(f"{path}: {seen} beside it; put its own there and name it tok{size}.bin")


def end_ids(ids: Mapping[str, Any]) -> frozenset[int]:
    """The tokens at which a text ends, of what `special_ids` found."""
    said = ids["eos_token_id"]
    return frozenset(id for id in (said if isinstance(said, list) else [said]) if isinstance(id, int))


def special_ids(path: Path | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """Which tokens begin, end and fill up texts: as the folder's own files say, or else the tokenizer."""
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.beginning,
        "eos_token_id": tokenizer.end_of_text,
        "pad_token_id": tokenizer.pad,
    }
    for name in (CONFIG, GENERATION_CONFIG):
        file = own_file(path, name) if path is not None and path.is_dir() else None
        said = read_json(file) if file else None
        ids |= {key: said[key] for key in ids if isinstance(said, dict) and isinstance(said.get(key), int | list)}
    return ids
