"""Networks as Hugging Face-shaped folders: `config.json` and `model.safetensors`. Safetensors and JSON only."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pellucid.core.errors import ModelError
from pellucid.core.files import disk_errors, read_json, write_json
from pellucid.network.config import ModelConfig
from pellucid.network.families import family
from pellucid.network.transformer import Transformer

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_network(network: Transformer, folder: Path, *, end_of_text: int | None = None) -> None:
    """Write `config.json` and `model.safetensors` (fp32 stays fp32) into an existing folder."""
    module = family(network.config.family, folder)
    ids = {"bos_token_id": None, "eos_token_id": end_of_text, "pad_token_id": None}
    dtype = str(network.embedding.weight.dtype).removeprefix("torch.")
    write_json(folder / CONFIG, module.config_to_file(network.config) | ids | {"dtype": dtype, "torch_dtype": dtype})
    state = network.state_dict()
    names: dict[str, str] = module.weight_names(network.config)
    save_tensors({theirs: state[ours] for ours, theirs in names.items()}, folder / WEIGHTS)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors, from any device, to one safetensors file."""
    with disk_errors(path):
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(ready, path, metadata={"format": "pt"})


def read_config(folder: Path) -> ModelConfig:
    """The network's dimensions from a folder's `config.json`."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no {CONFIG}")
    file: dict[str, Any] = read_json(path)
    module = family(file.get("model_type"), path)
    if problems := module.unsupported(file):
        raise ModelError(f"{path}: {problems[0]} is not supported, and leaving it out would change the model's answers")
    fields = module.config_from_file(file)
    if missing := [name for name in ModelConfig.required() if name not in fields]:
        raise ModelError(f"{path} does not say {module.FIELDS[missing[0]]}")
    return ModelConfig(family=str(file["model_type"]), **fields)


def load_network(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Transformer:
    """The network in a folder, ready to use (no gradients tracked yet, evaluation mode)."""
    config = read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}")
    with torch.device("meta"):
        network = Transformer(config)
    names: dict[str, str] = family(config.family, folder).weight_names(config)
    network.load_state_dict(read_tensors(path, names, network.state_dict(), dtype, device), strict=False, assign=True)
    if config.tied:
        network.head.weight = network.embedding.weight
    return network.eval()


def read_tensors(
    path: Path, names: dict[str, str], expected: dict[str, Tensor], dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    """Our tensors from a file that has them under other names; shapes are compared before anything is allocated."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            present = set(file.keys())
            if missing := [name for name in names.values() if name not in present]:
                raise ModelError(f"{path} lacks {len(missing)} of {len(names)} tensors, the first {missing[0]}")
            if extra := sorted(present - set(names.values()) - {"lm_head.weight"}):
                raise ModelError(f"{path} has {len(extra)} tensors that {CONFIG} knows nothing of, the first {extra[0]}")
            for ours, theirs in names.items():
                shape = tuple(file.get_slice(theirs).get_shape())
                if shape != tuple(expected[ours].shape):
                    raise ModelError(f"{path}: {theirs} has shape {shape}, but {CONFIG} asks for {tuple(expected[ours].shape)}")
            return {ours: file.get_tensor(theirs).to(device=device, dtype=dtype) for ours, theirs in names.items()}
    except SafetensorError as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error}); copy it again") from None
