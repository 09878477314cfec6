"""A vector for each text: what an encoder makes of all its tokens together (Reimers and Gurevych, 2019: Sentence-BERT)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.files import own_file, read_json
from pellucid.network.masks import Mask
from pellucid.network.network import Network
from pellucid.network.pooling import pool
from pellucid.text.tokenizer import Tokenizer

Mode = Literal["mean", "cls", "max"]

MODULES, LENGTH, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How the vectors of a text's tokens become one."""

    mode: Mode = "mean"  # their mean; that of the first token; the largest value of each feature
    normalize: bool = False  # to length 1
    longest: int | None = None  # tokens that a text may have; None: the model's context

    @staticmethod
    def of(folder: Path) -> Pooling:
        """What a folder of sentence-transformers says in `modules.json` and `1_Pooling/`; without them the mean."""
        if (path := own_file(folder, MODULES)) is None:
            return Pooling()
        modules = modules_in(path)
        unknown = [kind for kind, _ in modules if kind not in ("Transformer", "Pooling", "Normalize")]
        if unknown:
            raise ModelError(f"{path}: the module {unknown[0]} is not supported, and leaving it out would change the vectors")
        asked: dict[str, Any] = {}
        for kind, name in modules:
            if kind == "Pooling":
                settings = own_file(folder, f"{name}/config.json")
                if settings is None:
                    raise ModelError(f"{folder / name} has no config.json, which says how to pool; restore it")
                chosen = [key for key, value in fields(settings) if key.startswith("pooling_mode_") and value is True]
                short = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
                if len(chosen) != 1 or chosen[0] not in short:
                    raise ModelError(f"{settings}: pooling by {chosen} is not supported; known are {', '.join(short)}")
                asked["mode"] = short[chosen[0]]
        if limit := own_file(folder, LENGTH):
            said = dict(fields(limit))
            asked["longest"] = longest = said.get("max_seq_length")
            if longest is not None and (not isinstance(longest, int) or longest < 1):
                raise ModelError(f"{limit}: max_seq_length must be a whole number of at least 1, not {longest!r}")
            if said.get("do_lower_case"):
                raise ModelError(f"{limit}: do_lower_case is not supported, and leaving it out would change the vectors")
        if (prompts := own_file(folder, PROMPTS)) and (prompt := dict(fields(prompts)).get("default_prompt_name")) is not None:
            raise ModelError(
                f"{prompts}: the prompt {prompt!r} before every text (default_prompt_name) is not supported, and leaving it "
                "out would change the vectors"
            )
        return Pooling(normalize="Normalize" in [kind for kind, _ in modules], **asked)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"pooling {self.mode!r} is not known; choose {', '.join(get_args(Mode))}")


def modules_in(path: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module that `modules.json` lists."""
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(part, dict) and {"type", "path"} <= part.keys() for part in listed):
        raise ModelError(f"{path} is no list of modules, each with type and path; restore it, or delete it to take the mean")
    return [(str(part["type"]).rpartition(".")[2], str(part["path"])) for part in listed]


def copy_pooling(source: Path, destination: Path) -> None:
    """Copy the files of sentence-transformers that `Pooling.of` reads; raises its `ModelError` for what it refuses."""
    if (path := own_file(source, MODULES)) is None:
        return
    Pooling.of(source)
    pooled = [f"{folder}/config.json" for kind, folder in modules_in(path) if kind == "Pooling"]
    for name in (MODULES, LENGTH, PROMPTS, *pooled):
        if file := own_file(source, name):
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, destination / name)


def fields(path: Path) -> list[tuple[str, Any]]:
    """What a file of settings says."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds no settings by name; restore it")
    return list(found.items())


@torch.inference_mode()
def embed(
    network: Network,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pooling: Pooling,
    *,
    batch_tokens: int = 4096,
    truncate: bool = False,
) -> Float[Tensor, "texts d_model"]:
    """The vectors of texts, in their order, [texts d_model]. Texts of like length are read together.

    Raises `ConfigError` for a text that is empty or longer than the model takes, unless `truncate` allows to cut it.
    """
    if network.config.architecture == "encoder-decoder":
        raise ModelError(f"embedding texts with a {network.config.family} model is not supported; use an encoder or a decoder")
    longest = min(pooling.longest or network.config.context_length, network.config.context_length)
    rows: list[list[int]] = [ids.tolist() for ids in tokenizer.encode_batch(list(texts), framed=True)]
    before, after = map(len, tokenizer.frame)
    for number, row in enumerate(rows):
        if len(row) == before + after:
            raise ConfigError(f"text {number} is empty; give at least one character")
        if len(row) > longest and not truncate:
            raise ConfigError(
                f"text {number} has {len(row):,} tokens, but the model takes {longest:,}; shorten it, or pass truncate=True"
            )
        if len(row) > longest:
            rows[number] = [*row[: longest - after], *row[len(row) - after :]]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    found = torch.empty(len(rows), network.config.d_model, device=network.device)
    while order:
        size = max(1, batch_tokens // len(rows[order[0]]))
        together, order = order[:size], order[size:]
        found[together] = pooled(network, [rows[i] for i in together], pooling)
    return found


def pooled(network: Network, rows: list[list[int]], pooling: Pooling) -> Float[Tensor, "rows d_model"]:
    """The vectors of some texts' tokens."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=network.device)
    present = torch.arange(width, device=ids.device) < torch.tensor([len(row) for row in rows], device=ids.device)[:, None]
    hidden = network.encode(ids, Mask.for_padded(present, causal=network.config.causal)).float()
    vectors = pool(hidden, present, "first" if pooling.mode == "cls" else pooling.mode)
    return torch.nn.functional.normalize(vectors, dim=-1) if pooling.normalize else vectors
