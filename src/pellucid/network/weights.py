"""Networks in files: which of a file's tensors is which of ours, and in what form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.files import own_file, read_json, write_json
from pellucid.network.build import outline
from pellucid.network.config import ModelConfig
from pellucid.network.families import Family, Stored, family
from pellucid.network.network import Network
from pellucid.network.sources import WEIGHTS, Safetensors, TensorFile, listed, save_tensors

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"


def save_network(
    network: Network, folder: Path, *, end_of_text: int | None = None, ids: Mapping[str, Any] | None = None
) -> None:
    """Write `config.json`, with the `ids` of special tokens, and `model.safetensors` (fp32 stays fp32) into a folder."""
    if network.held is not None:
        raise ModelError(f"a model loaded with precision {network.held.precision!r} cannot be saved; load it without one")
    if network.is_edited:
        raise ModelError("an edited model cannot be saved, since its edits are no weights; save the model that was edited")
    config = network.config
    known = family(config.family, folder)
    special = {"bos_token_id": None, "eos_token_id": end_of_text, "pad_token_id": None} | dict(ids or {})
    if config.scores_labels and special["pad_token_id"] is None:  # by which transformers finds a text's last token
        ends = special["eos_token_id"]
        special["pad_token_id"] = next(iter(ends), None) if isinstance(ends, list) else ends
    dtype = str(network.embedding.weight.dtype).removeprefix("torch.")
    file = known.config_to_file(config)
    check_expressible(config, file)
    write_json(folder / CONFIG, special | file | {"dtype": dtype, "torch_dtype": dtype})
    save_tensors(to_file(network.state_dict(), names_in(config, known)), folder / WEIGHTS)


def write_generation(folder: Path, config: ModelConfig, ids: Mapping[str, Any]) -> None:
    """Write `generation_config.json`: where a text begins and ends, for networks that write texts; others have no such file."""
    if config.generates:
        start = {"decoder_start_token_id": config.start_token} if config.architecture == "encoder-decoder" else {}
        write_json(folder / GENERATION_CONFIG, dict(ids) | start)


def check_expressible(config: ModelConfig, file: dict[str, Any]) -> None:
    """Refuse to write a transformer that its family's `config.json` does not describe: it would be read as another one."""
    read = asdict(replace(config_of(file, CONFIG), head=config.head, pooler=config.pooler))
    unnamed = {"dropout"} - family(config.family, CONFIG).fields.keys()  # lost: a way to train, which changes no answer
    differing = [f"{name} = {value!r}" for name, value in asdict(config).items() if read[name] != value and name not in unnamed]
    if differing and config.architecture not in ("recurrent", "bag-of-words"):  # which most fields mean nothing to
        raise ConfigError(
            f"no {config.family} model has {', '.join(differing)}; choose another family, or the family's own values"
        )


def read_config(folder: Path) -> ModelConfig:
    """The network's dimensions from a folder's `config.json`."""
    path = own_file(folder, CONFIG)
    if path is None:
        raise ModelError(f"{folder} is not a model folder: it has no {CONFIG}")
    file = read_json(path)
    if not isinstance(file, dict):
        raise ModelError(f"{path} is not a table of settings; put back the model's own {CONFIG}")
    return config_of(file, path)


def config_of(file: dict[str, Any], source: object) -> ModelConfig:
    """The network's dimensions from the parsed `config.json`."""
    known = family(file.get("model_type"), source)
    try:
        fields = known.config_from_file(file)
    except ConfigError as error:
        raise ModelError(f"{source}: {error}") from None
    try:
        return ModelConfig(**fields)
    except ConfigError as error:
        raise ModelError(f"{source}: {known.in_their_words(str(error))}") from None


def load_network(folder: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Network:
    """The network in a folder, ready to use (evaluation mode). Without `dtype` the weights keep the type they are stored in."""
    config, file = read_config(folder), Safetensors(folder)
    known = family(config.family, folder)
    config = with_present_parts(config, known, file)
    return assemble(config, file, names_in(config, known, file), known, dtype=dtype, device=device)


def with_present_parts(config: ModelConfig, known: Family, file: TensorFile) -> ModelConfig:
    """The configuration with or without a head and a pooler, as the file has them: `config.json` says it of labels only."""
    if config.head == "classify":
        return config
    pooler = any("pooler.dense" in name for name in file.shapes)
    config = replace(config, pooler=pooler and config.architecture == "encoder")
    if config.head == "tag":
        return config
    bare = known.prefix and not any(name.startswith(known.prefix) for name in file.shapes)
    heads = [stored.name for ours, stored in known.tensors(config).items() if ours.startswith("head.")]
    return replace(config, head="none") if bare and heads and not set(heads) & set(file.shapes) else config


def names_in(config: ModelConfig, known: Family, file: TensorFile | None = None) -> dict[str, Stored]:
    """Where each of our tensors lies. A model that has, or had, no head has its names without the family's prefix."""
    table = known.all_tensors(config)
    bare = config.head == "none" if file is None else not any(name.startswith(known.prefix) for name in file.shapes)
    if known.prefix and bare:
        table = {ours: replace(stored, name=stored.name.removeprefix(known.prefix)) for ours, stored in table.items()}
    return table if file is None else {ours: as_named(stored, file) for ours, stored in table.items()}


def as_named(stored: Stored, file: TensorFile) -> Stored:
    """Under the name that a file has it. The first BERT files call the gain and the bias of a norm gamma and beta."""
    older = stored.name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return replace(stored, name=next((name for name in (stored.name, older, stored.copy) if name in file.shapes), stored.name))


def assemble(
    config: ModelConfig,
    file: TensorFile,
    names: Mapping[str, Stored],
    known: Family | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> Network:
    """A network whose weights are the file's; all names and shapes are compared before anything is allocated."""
    network = checked_outline(config, file, names, known)
    tensors = read_tensors(file, names, dtype, device)
    network.load_state_dict(tensors, strict=False, assign=True)
    network.tie()
    return network.eval()


def checked_outline(config: ModelConfig, file: TensorFile, names: Mapping[str, Stored], known: Family | None = None) -> Network:
    """The network without memory, once the file has been found to hold all its tensors, in their shapes, and no others."""
    missing, extra = sorted({stored.name for stored in names.values()} - set(file.shapes)), surplus(file, names, known)
    if len(missing) > len(file.shapes):  # another network's file, and this network may be enormous
        raise refusal(file, len(names), missing, extra, [])
    network = outline(config)
    wrong = misshapen(file, names, network.state_dict())
    if missing or extra or wrong:
        raise refusal(file, len(names), missing, extra, wrong)
    check_copies(file, names, known)
    return network


def refusal(file: TensorFile, count: int, missing: list[str], extra: list[str], wrong: list[str]) -> ModelError:
    """All that is wrong with a file's tensors, in one sentence."""
    said = [f"lacks {len(missing)} of {count} tensors: {listed(missing)}"] if missing else []
    said += [f"has {len(extra)} tensors that the configuration knows nothing of: {listed(extra)}"] if extra else []
    return ModelError(f"{file.path}{' ' if said else ': '}{'; '.join([*said, *([listed(wrong, '; ')] if wrong else [])])}")


def load_into(network: Network, folder: Path) -> None:
    """Put the weights of a folder of the same configuration into a network that is being trained."""
    known, file = family(network.config.family, folder), Safetensors(folder)
    names = names_in(network.config, known, file)
    checked_outline(network.config, file, names, known)
    mine = network.state_dict()
    with torch.no_grad():
        for name, tensor in read_tensors(file, names, torch.float32, "cpu").items():
            mine[name].copy_(tensor)


def misshapen(file: TensorFile, names: Mapping[str, Stored], expected: Mapping[str, Tensor]) -> list[str]:
    """What is said of the tensors in a file that have other shapes than the network's."""
    wrong = {}
    for ours, stored in names.items():
        outputs, *inputs = expected[ours].shape
        shape = (outputs * stored.parts, *inputs)
        shape = shape[::-1] if stored.transposed else shape
        if file.shapes.get(stored.name, shape) != shape:
            wrong[stored.name] = f"has shape {file.shapes[stored.name]}, but the configuration asks for {shape}"
    return [f"{name} {what}" for name, what in wrong.items()]


def surplus(file: TensorFile, names: Mapping[str, Stored], known: Family | None) -> list[str]:
    """The tensors that the network has no place for."""
    extra = sorted(set(file.shapes) - {name for stored in names.values() for name in (stored.name, stored.copy)})
    if known is None:
        return extra
    return [name for name in extra if known.repeated.get(name) not in names and not re.fullmatch(known.ignored, name)]


def check_copies(file: TensorFile, names: Mapping[str, Stored], known: Family | None) -> None:
    """Refuse copies that differ from what they should repeat."""
    placed = {stored.name for stored in names.values()}
    repeated = {} if known is None else {name: ours for name, ours in known.repeated.items() if name in file.shapes}
    for name, ours in repeated.items():
        if name not in placed and ours in names and not torch.equal(file.read(name), file.read(names[ours].name)):
            raise ModelError(
                f"{file.path}: {name} differs from {names[ours].name}, but {CONFIG} says that they are one; "
                'set "tie_word_embeddings" to false there if they are two'
            )


def read_tensors(file: TensorFile, names: Mapping[str, Stored], dtype: torch.dtype | None, device: str) -> dict[str, Tensor]:
    """Our tensors from a file that has them under other names and in other forms. Raises `ModelError` for NaN and infinity."""
    if isinstance(file, Safetensors):
        file.check_types(stored.name for stored in names.values())
    found, damaged = {}, []
    for ours, stored in names.items():
        tensor = file.read(stored.name)
        if isinstance(file, Safetensors) and (copied(stored) or device != "cpu" or tensor.dtype != (dtype or tensor.dtype)):
            tensor = file.read_briefly(stored.name)
        tensor = taken(tensor, stored).to(device=device, dtype=dtype)
        low, high = tensor.aminmax() if tensor.numel() else (tensor.new_zeros(()),) * 2
        if not (torch.isfinite(low) and torch.isfinite(high)):
            damaged.append(stored.name)
        found[ours] = tensor
    if damaged:
        raise ModelError(f"{file.path}: values that are not finite in {listed(damaged)}")
    return found


def copied(stored: Stored) -> bool:
    """Whether `taken` makes a copy."""
    return stored.transposed or bool(stored.paired)


def taken(tensor: Tensor, stored: Stored) -> Tensor:
    """One of our tensors out of a stored one."""
    if stored.transposed:
        tensor = tensor.mT
    tensor = tensor.chunk(stored.parts)[stored.part] if stored.parts > 1 else tensor
    if stored.paired:
        tensor = tensor.reshape(stored.paired, -1, 2, *tensor.shape[1:]).transpose(1, 2).flatten(0, 2)
    return tensor.contiguous()


def to_file(tensors: Mapping[str, Tensor], names: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors as a file has them: `taken` backwards."""
    parts: dict[str, dict[int, Tensor]] = {}
    for ours, stored in names.items():
        tensor = tensors[ours]
        if stored.paired:
            tensor = tensor.reshape(stored.paired, 2, -1, *tensor.shape[1:]).transpose(1, 2).flatten(0, 2)
        parts.setdefault(stored.name, {})[stored.part] = tensor
    joined = {
        name: torch.cat([found[i] for i in sorted(found)]) if len(found) > 1 else found[0] for name, found in parts.items()
    }
    transposed = {stored.name for stored in names.values() if stored.transposed}
    copies = {stored.copy: joined[stored.name].clone() for stored in names.values() if stored.copy}
    return copies | {name: tensor.mT if name in transposed else tensor for name, tensor in joined.items()}
