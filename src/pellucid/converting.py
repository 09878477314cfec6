"""From any form of a model to a Hugging Face folder or a GGUF file: weights, tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.files import atomic_folder, verify_file
from pellucid.core.gguf import StoredType, write_gguf
from pellucid.evaluation.embed import copy_pooling
from pellucid.evaluation.predict import copy_temperature
from pellucid.loading import ModelFiles, find_model, open_adapter, open_files, special_ids
from pellucid.network.adapters import merge, merged
from pellucid.network.gguf import Written, gguf_metadata
from pellucid.network.network import Network
from pellucid.network.peft_settings import is_adapter
from pellucid.network.weights import CONFIG, save_network, write_generation
from pellucid.text.formats import KEY, UNUSED, to_gguf
from pellucid.text.tokenizer import Tokenizer

Form = Literal["hf", "gguf"]

PLAIN: dict[StoredType, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
QUANTISED = [name for name in get_args(StoredType) if name not in PLAIN]


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: Form,
    dtype: StoredType | None = None,
    force: bool = False,
    revision: str | None = None,
) -> Path:
    """Write the model `source` as a folder or a file that appears whole or not at all. Returns its path.

    Without `dtype` weights keep their type; quantised ones become f32. A GGUF file is written one tensor after another, so
    that it takes the memory of the largest. Raises `ModelError` or `TokenizerError` for what the form cannot hold.
    """
    if to not in get_args(Form) or dtype not in (None, *get_args(StoredType)):
        raise ConfigError(
            f"a model is converted to hf or gguf, as {', '.join(get_args(StoredType))}, not to {to!r} as {dtype!r}"
        )
    if to == "hf" and dtype in QUANTISED:
        raise ConfigError(f"{dtype} is a type of GGUF files only; use --to gguf, or one of {', '.join(PLAIN)}")
    path = Path(destination)
    check_free(path, to, force=force)
    files = open_files(find_model(source, revision=revision))
    (write_folder if to == "hf" else write_file)(files, path, dtype)
    return path


def check_free(path: Path, to: Form, *, force: bool) -> None:
    """Refuse a name that is taken, or that programs would not know the form by."""
    if to == "gguf" and path.suffix != ".gguf":
        raise ConfigError(f"{path} does not end in .gguf, by which programs know such a file; name it {path}.gguf")
    if path.exists() and not force:
        raise ModelError(f"{path} exists already; choose another name, or pass --force to replace it")
    if path.exists() and not (path.is_file() if to == "gguf" else (path / CONFIG).is_file()):
        raise ModelError(f"{path} is not a model of this form, so it will not be replaced; choose another name")


def write_folder(files: ModelFiles, path: Path, dtype: StoredType | None) -> None:
    """Write a Hugging Face folder."""
    tokenizer = files.fitting_tokenizer()
    network = files.network(dtype=PLAIN[dtype] if dtype else None)
    write_model(path, network, tokenizer, ids=special_ids(files.path, tokenizer), source=files.path)


def merge_adapter(
    source: str | Path,
    destination: str | Path,
    *,
    base: str | None = None,
    dtype: StoredType | None = None,
    force: bool = False,
) -> Path:
    """Write the adapter `source` and its base as one Hugging Face folder, which needs neither of them. Returns its path.

    `base` is where the base is, if not where the adapter says. The matrices are added in fp32; without `dtype` (f32, bf16,
    f16) they then have the base's type.
    """
    if dtype not in (None, *PLAIN):
        raise ConfigError(f"dtype must be one of {', '.join(PLAIN)}, not {dtype!r}")
    path = Path(destination)
    check_free(path, "hf", force=force)
    if not is_adapter(folder := find_model(source)):
        raise ModelError(
            f"{folder} is not an adapter: it has no adapter_config.json; name a folder that `finetune` or peft wrote"
        )
    opened = open_adapter(folder, base=base, dtype=torch.float32 if dtype else None)
    network = merge(opened.network).to(PLAIN[dtype] if dtype else None)
    write_model(path, network, opened.tokenizer, ids=special_ids(opened.path, opened.tokenizer), source=opened.path)
    return path


def write_model(path: Path, network: Network, tokenizer: Tokenizer, *, ids: Mapping[str, Any], source: Path | None) -> None:
    """Write a Hugging Face folder: network (adapters merged), tokenizer, special tokens, `source`'s pooling and temperature."""
    with atomic_folder(path) as temporary, merged(network):
        save_network(network, temporary, ids=ids)
        tokenizer.save(temporary, context_length=network.config.context_length)
        write_generation(temporary, network.config, ids)
        if source is not None and source.is_dir():
            copy_pooling(source, temporary)
            if network.config.scores_labels:
                copy_temperature(source, temporary)


def write_file(files: ModelFiles, path: Path, dtype: StoredType | None) -> None:
    """Write a GGUF file that llama.cpp runs."""
    metadata = gguf_metadata(files.config) | {"general.name": path.stem}
    metadata |= padded(to_gguf(files.fitting_tokenizer()), files.config.vocab_size)
    files.outline()
    verify_file(files.weights.path)
    write_gguf(path, metadata, Written(files.config, files.tensor), dtype or stored_type(files))


def stored_type(files: ModelFiles) -> StoredType:
    """The type that a model's weights have."""
    own = files.dtype or files.tensor("embedding.weight").dtype
    return next((name for name, known in PLAIN.items() if known == own), "f32")


def padded(metadata: dict[str, Any], size: int) -> dict[str, Any]:
    """A vocabulary with a token for every row of the embedding, as llama.cpp wants it."""
    known = len(metadata[KEY + "tokens"])
    more = {"tokens": [f"[PAD{id}]" for id in range(known, size)], "token_type": [UNUSED] * (size - known)}
    more |= {"scores": [0.0] * (size - known)} if KEY + "scores" in metadata else {}
    return metadata | {KEY + name: metadata[KEY + name] + values for name, values in more.items()}
