"""What a model is, told from its headers: weights are read only to hash them, and to compare a head that is stored twice."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from pellucid.core.errors import TokenizerError
from pellucid.core.files import format_bytes, hash_file
from pellucid.core.gguf import BLOCKS
from pellucid.loading import ModelFiles, find_model, open_files
from pellucid.network.config import ModelConfig
from pellucid.network.network import Network
from pellucid.text.tokenizer import Tokenizer

PRECISIONS = {"fp32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}  # f16 takes as much as bf16
DIMENSIONS = ("d_model", "layers", "decoder_layers", "heads", "kv_heads", "d_head", "d_mlp")
SHOWN = 8  # special tokens or labels that a table lists
SCORES = {
    "single": "of a text one is right: softmax over scores",
    "multi": "of a text any may be right: a sigmoid of each score",
    "regression": "of a text each is a number: the score itself",
}


def describe(source: str | Path, *, hashes: bool = True, sites: bool = False) -> dict[str, Any]:
    """Family, dimensions, parameters, memory, tokenizer and files (with SHA-256, if `hashes`) of a model.

    Memory is in bytes: of the weights at each precision, and of keys and values for 1,000 tokens of text.
    """
    files = open_files(find_model(source))
    network, config = files.outline(), files.config
    facts: dict[str, Any] = {"path": str(files.path), "family": config.family, "architecture": config.architecture}
    facts |= {"context_length": config.context_length, "parameters": count(network)}
    facts |= {"memory": {"weights": weight_bytes(network), "cache_per_1000_tokens": cache_bytes(config)}}
    facts |= {"tokenizer": describe_tokenizer(files), "config": asdict(config) | {"labels": list(config.labels)}}
    facts["files"] = [describe_file(path, hashes=hashes) for path in own_files(files.path)]
    return facts | ({"sites": [asdict(site) for site in network.sites()]} if sites else {})


def count(network: Network) -> dict[str, int]:
    """All parameters; those of tables that are looked up; and those that every token is multiplied with."""
    tables = [module.weight for module in network.modules() if isinstance(module, nn.Embedding)]
    head = network.head.weight if network.head is not None else None
    total = sum(weight.numel() for weight in network.parameters())
    looked_up = sum(table.numel() for table in tables if table is not head)
    return {"total": total, "embedding": sum(table.numel() for table in tables), "active": total - looked_up}


def weight_bytes(network: Network) -> dict[str, int]:
    """Matrices at each precision, integers with a scale for every 32 of them, and vectors in fp32."""
    matrices = sum(weight.numel() for weight in network.parameters() if weight.ndim > 1)
    vectors = sum(weight.numel() for weight in network.parameters() if weight.ndim < 2)
    sizes = {name: BLOCKS[kind] for name, kind in PRECISIONS.items()}
    return {name: matrices * size // values + 4 * vectors for name, (values, size) in sizes.items()}


def cache_bytes(config: ModelConfig) -> dict[str, int]:
    """Keys and values of 1,000 tokens that the model has written or read; none for one that does not look back with them."""
    layers = {"decoder": config.layers, "encoder-decoder": config.decoder_layers}.get(config.architecture, 0)
    numbers = 1000 * 2 * layers * config.kv_heads * config.d_head
    return {"fp32": 4 * numbers, "bf16": 2 * numbers} if numbers else {}


def describe_tokenizer(files: ModelFiles) -> dict[str, Any]:
    """Kind, size and special tokens; or why it cannot be read, which is no reason not to say what the network is."""
    try:
        tokenizer: Tokenizer = files.tokenizer()
    except TokenizerError as error:
        return {"error": str(error)}
    names = {tokenizer.backend.id_to_token(id): id for id in sorted(tokenizer.special_ids)}
    facts = {"kind": tokenizer.kind, "size": tokenizer.vocab_size, "end_of_text": tokenizer.end_of_text, "special": names}
    return facts | {"chat_template": tokenizer.chat_template is not None}


def own_files(path: Path) -> list[Path]:
    """The files of a model: those of its folder, or the one that it is."""
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def describe_file(path: Path, *, hashes: bool) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size} | ({"sha256": hash_file(path)} if hashes else {})


def table(facts: dict[str, Any]) -> dict[str, str]:
    """The same for people to read, but for the files."""
    config, parameters, tokenizer = facts["config"], facts["parameters"], facts["tokenizer"]
    lines = {name: facts[name] for name in ("path", "family", "architecture")}
    sizes = DIMENSIONS[: 2 if config["architecture"] in ("recurrent", "bag-of-words") else None]
    lines["dimensions"] = ", ".join(f"{name} {config[name]}" for name in sizes if config[name])
    lines["context"] = f"{facts['context_length']:,} tokens"
    if config["labels"]:
        lines["labels"] = describe_labels(config)
    lines["parameters"] = f"{parameters['total']:,}"
    lines["parameters"] += f" ({parameters['embedding']:,} in embeddings, {parameters['active']:,} active for every token)"
    lines["weights"] = _sizes(facts["memory"]["weights"])
    if cache := facts["memory"]["cache_per_1000_tokens"]:
        lines["cache"] = f"{_sizes(cache)} for 1,000 tokens"
    if "error" in tokenizer:
        return lines | {"tokenizer": tokenizer["error"]}
    template = "with a chat template" if tokenizer["chat_template"] else "no chat template"
    lines["tokenizer"] = f"{tokenizer['kind']}, {tokenizer['size']:,} tokens, {template}"
    special, rest = list(tokenizer["special"].items())[:SHOWN], len(tokenizer["special"]) - SHOWN
    shown = ", ".join(f"{name} {id}" for name, id in special)
    lines["special tokens"] = shown + (f" and {rest} more" if rest > 0 else "")
    return lines


def describe_labels(config: dict[str, Any]) -> str:
    """How many labels there are, the first of their names, and what the scores mean."""
    names, rest = ", ".join(config["labels"][:SHOWN]), len(config["labels"]) - SHOWN
    shown = f"{len(config['labels']):,}: {names}" + (f" and {rest:,} more" if rest > 0 else "")
    if config["head"] == "tag":
        return f"{shown} (of every token one is right: softmax over scores)"
    return f"{shown} ({SCORES[config['problem']]}; pooling {config['pooling']})"


def _sizes(memory: dict[str, int]) -> str:
    return ", ".join(f"{format_bytes(size)} in {'bf16 or f16' if name == 'bf16' else name}" for name, size in memory.items())


def file_lines(facts: dict[str, Any]) -> list[str]:
    """Name, size and hash of every file."""
    width = max(len(file["name"]) for file in facts["files"])
    return [
        f"{file['name']:<{width}}  {format_bytes(file['bytes']):>8}  {file.get('sha256', '')}".rstrip()
        for file in facts["files"]
    ]
