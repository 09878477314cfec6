"""Files of tensors, read one tensor at a time: safetensors, single or in shards. No pickles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pellucid.core.errors import ModelError
from pellucid.core.files import disk_errors, own_file, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHOWN = 20  # names that an error lists
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@runtime_checkable
class TensorFile(Protocol):
    """Named tensors; what is on disk stays there until it is read."""

    path: Path  # where errors say that the tensors are

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> Tensor: ...


class Safetensors:
    """`model.safetensors` of a folder, or the shards that its index names. Tensors are views of the mapped files."""

    def __init__(self, folder: Path) -> None:
        self.path, self.files = find(folder)
        self.owner: dict[str, Any] = {}
        self.home: dict[str, Path] = {}
        self.types: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in self.files:
            with whole(path):
                file: Any = safe_open(path, framework="pt", device="cpu")
                for name in file.keys():  # noqa: SIM118 - the file is no dictionary
                    if name in self.owner:
                        raise ModelError(f"{path}: tensor {name} is in another shard too; download the shards again")
                    self.owner[name], self.home[name] = file, path
                    self.types[name] = file.get_slice(name).get_dtype()
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        self.check_types([name])
        tensor: Tensor = self.owner[name].get_tensor(name)
        return tensor

    def read_briefly(self, name: str) -> Tensor:
        """The same for who copies it: a view in a mapping of its own, whose pages leave the memory with the tensor."""
        with whole(self.home[name]):
            file: Any = safe_open(self.home[name], framework="pt", device="cpu")
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def check_types(self, names: Iterable[str]) -> None:
        """Refuse weights that are whole numbers, or fractions too short to be read."""
        wrong = [f"{name} is of type {self.types[name]}" for name in dict.fromkeys(names) if self.types[name] not in TYPES]
        if wrong:
            raise ModelError(f"{self.path}: {listed(wrong)}; weights are read of the types {', '.join(TYPES)}")


def find(folder: Path) -> tuple[Path, list[Path]]:
    """The file that users know the weights by, and the files that hold them."""
    if single := own_file(folder, WEIGHTS):
        return single, [single]
    if index := own_file(folder, INDEX):
        table = read_json(index)
        names = table.get("weight_map") if isinstance(table, dict) else None
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise ModelError(f"{index} does not say which file holds which tensor; download it again")
        shards = {name: own_file(folder, name) for name in sorted(set(names.values()))}
        if absent := [name for name, path in shards.items() if path is None]:
            raise ModelError(f"{folder} lacks {len(absent)} of {len(shards)} shards: {', '.join(absent)}; download them")
        return index, [path for path in shards.values() if path]
    if pickles := sorted(filter(is_pickle, folder.glob("*")), key=lambda path: (path.suffix != ".bin", path)):
        raise pickle_refusal(pickles[0])  # of a training run's many, the weights
    raise ModelError(f"{folder} has no {WEIGHTS}")


def is_pickle(path: Path) -> bool:
    """Whether a file's name is one that torch saves weights under."""
    return re.fullmatch(r"pytorch_model.*\.bin|.*\.(pt|pth|ckpt|pkl)", path.name, re.IGNORECASE) is not None


def pickle_refusal(path: Path) -> ModelError:
    """What is said of it."""
    return ModelError(
        f"{path} is a pickle, which can run any code when it is read, so it is not; convert it with "
        "transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER, safe_serialization=True)"
    )


def listed(items: list[str], separator: str = ", ") -> str:
    """All of a few, or the first of many."""
    rest = len(items) - SHOWN
    return separator.join(items[:SHOWN]) + (f"{separator}and {rest} more" if rest > 0 else "")


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Say which file is damaged."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error}); copy it again") from None


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors, from any device, to one safetensors file."""
    with disk_errors(path):
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(ready, path, metadata={"format": "pt"})
        path.chmod(path.parent.stat().st_mode & 0o666)  # the library lets nobody else read it
