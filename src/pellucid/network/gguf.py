"""Decoders in GGUF files, as llama.cpp has them: metadata to and from a configuration, and what the tensors are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.gguf import GGUF
from pellucid.network.build import outline
from pellucid.network.config import ModelConfig, RopeScaling
from pellucid.network.families import FAMILIES, Stored
from pellucid.network.positions import stretched
from pellucid.network.weights import to_file

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}  # ours: theirs
PAIRED = ("llama",)  # whose rotary pairs are neighbours
SPLIT = ("gpt2", "qwen2")  # whose heads have d_model / heads features
NAMES = {
    "embedding": "token_embd",
    "positions": "position_embd",
    "norm": "output_norm",
    "head": "output",
    "norm_attn": "attn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.output": "attn_output",
    "attn.norm_q": "attn_q_norm",
    "attn.norm_k": "attn_k_norm",
    "norm_mlp": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
FUSED = "attn_qkv"  # GPT-2's queries, keys and values in one
FACTORS = "rope_freqs.weight"  # by how much each rotary pair is slowed down: Llama 3's stretching
SIZES = {
    "context_length": "context_length",
    "d_model": "embedding_length",
    "layers": "block_count",
    "d_mlp": "feed_forward_length",
    "heads": "attention.head_count",
}
HARMLESS = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"}  # keys that say nothing about the answers


class Tensors:
    """A GGUF file's tensors as torch's: F32, F16 and BF16 are views of the mapped file, quantised types become float32."""

    def __init__(self, file: GGUF) -> None:
        self.file, self.path = file, file.path
        self.shapes = {name: tensor.shape for name, tensor in file.tensors.items() if name != FACTORS}

    def read(self, name: str) -> Tensor:
        values = torch.from_numpy(self.file.read(name))
        return values.view(torch.bfloat16) if self.file.tensors[name].type == "BF16" else values


def common_type(file: GGUF) -> torch.dtype | None:
    """float32, or None if all matrices are F16, or BF16: then every tensor keeps its type, which for vectors is mostly F32."""
    kinds = {tensor.type for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return None if kinds in ({"F16"}, {"BF16"}) else torch.float32


def names_in(config: ModelConfig) -> dict[str, Stored]:
    """Where each of our tensors lies in a GGUF file."""
    weights = outline(config).state_dict()
    return {ours: _stored(ours, config) for ours in weights if not (config.tied and ours.startswith("head."))}


def _stored(ours: str, config: ModelConfig) -> Stored:
    module, _, kind = ours.rpartition(".")
    block, place = "", module
    if module.startswith("blocks."):
        _, number, place = module.split(".", 2)
        block = f"blk.{number}."
    architecture = ARCHITECTURES[config.family]
    if architecture == "gpt2" and place in ("attn.q", "attn.k", "attn.v"):
        return Stored(f"{block}{FUSED}.{kind}", part="qkv".index(place[-1]), parts=3)
    heads = {"attn.q": config.heads, "attn.k": config.kv_heads} if architecture in PAIRED else {}
    return Stored(f"{block}{NAMES[place]}.{kind}", paired=heads.get(place, 0))


class _Keys:
    """The metadata of one architecture, each value checked where it is read; what is not read must not change the answers."""

    def __init__(self, file: GGUF, architecture: str) -> None:
        self.path, self.architecture, self.prefix, self.seen = file.path, architecture, f"{architecture}.", set(HARMLESS)
        self.values = {
            key.removeprefix(self.prefix): value for key, value in file.metadata.items() if key.startswith(self.prefix)
        }

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.take(key, default)
        if type(value) is not int:
            raise self.refusal(key, "not a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.take(key, default)
        if type(value) not in (int, float):
            raise self.refusal(key, "not a number")
        with np.errstate(over="ignore"):
            return float(str(np.float32(value)))  # files have 9.999999747378752e-06 where people wrote 1e-5

    def take(self, key: str, default: Any) -> Any:
        self.seen.add(key)
        value = self.values.get(key, default)
        if value is None:
            raise ModelError(f"{self.path} does not say {self.prefix}{key}; convert the model again")
        return value

    def refusal(self, key: str, why: str) -> ModelError:
        return ModelError(f"{self.path}: {self.prefix}{key} is {self.values.get(key)!r:.80}, {why}")

    def finish(self) -> None:
        """Refuse what nobody has asked for, unless it is a zero: no experts, no soft caps."""
        for key in sorted(self.values.keys() - self.seen):
            if type(self.values[key]) not in (int, float) or self.values[key] != 0:
                raise self.refusal(key, "which is not supported, and leaving it out would change the model's answers")


def config_of(file: GGUF) -> ModelConfig:
    """The network's dimensions from a GGUF file's metadata and tensors. Raises `ModelError` for what it cannot do."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES.values():
        known = ", ".join(sorted(set(ARCHITECTURES.values())))
        raise ModelError(f"{file.path}: general.architecture {architecture!r:.80} is not supported; known are {known}")
    if (parts := file.metadata.get("split.count", 1)) != 1:
        raise ModelError(f"{file.path} is one of {parts!r:.20} parts of a model; join them: llama-gguf-split --merge FIRST OUT")
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} has no token_embd.weight, so it is no whole language model; name another file")
    keys = _Keys(file, architecture)
    try:
        config = FAMILIES[architecture].new(**_read_sizes(keys, file), **_read_parts(keys, file))
    except ConfigError as error:
        raise ModelError(f"{file.path}: {error}") from None
    keys.finish()
    if config.layers > len(file.tensors):
        raise ModelError(
            f"{file.path} has {len(file.tensors)} tensors, too few for {architecture}.block_count = {config.layers}"
        )
    return replace(config, rope_scaling=_read_factors(file, config)) if FACTORS in file.tensors else config


def _read_sizes(keys: _Keys, file: GGUF) -> dict[str, Any]:
    found = {ours: keys.whole(theirs) for ours, theirs in SIZES.items()}
    heads = found["heads"]
    found |= {"vocab_size": file.tensors["token_embd.weight"].shape[0]}
    found |= {"kv_heads": keys.whole("attention.head_count_kv", heads)}
    found |= {"d_head": keys.whole("attention.key_length", found["d_model"] // max(heads, 1))}
    for same in ("attention.value_length", "rope.dimension_count"):
        if keys.whole(same, found["d_head"]) != found["d_head"]:
            raise keys.refusal(same, f"but queries and keys have {found['d_head']} features, and only as many are supported")
    return found


def _read_parts(keys: _Keys, file: GGUF) -> dict[str, Any]:
    tied: dict[str, Any] = {"tied": "output.weight" not in file.tensors}
    if keys.architecture == "gpt2":
        return tied | {"activation": "gelu_tanh", "norm_eps": keys.number("attention.layer_norm_epsilon")}
    found = tied | {"norm_eps": keys.number("attention.layer_norm_rms_epsilon")}
    found |= {"rope_theta": keys.number("rope.freq_base", 10_000.0), "rope_scaling": _read_scaling(keys)}
    if keys.architecture == "llama":
        biases = {"attention_bias": "attn_q", "output_bias": "attn_output", "mlp_bias": "ffn_up"}
        found |= {ours: f"blk.0.{theirs}.bias" in file.tensors for ours, theirs in biases.items()}
    return found


def _read_scaling(keys: _Keys) -> RopeScaling | None:
    kind, factor = keys.take("rope.scaling.type", "linear"), keys.number("rope.scaling.factor", 1.0) or 1.0
    original = keys.whole("rope.scaling.original_context_length", keys.whole("context_length"))
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind != "yarn":
        raise keys.refusal("rope.scaling.type", "which is not supported; known are none, linear and yarn")
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_context=original,
        low=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        high=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        attention_factor=keys.number("rope.scaling.attn_factor", 1.0) * RopeScaling.attention(factor, 1.0),
    )


def _read_factors(file: GGUF, config: ModelConfig) -> RopeScaling:
    """Llama 3's stretching from the factor of each pair: which of the contexts that it can have begun with gives them."""
    factors = file.read(FACTORS).astype(np.float32).reshape(-1)
    if (
        ARCHITECTURES[config.family] in PAIRED
        and config.rope_scaling is None
        and np.isfinite(factors).all()
        and factors.max() > 0
    ):
        for original in (8192 * 2.0**n for n in (0, 1, 2, 3, 4, 5, -1, -2, -3, -4, -5, -6, -7)):
            scaling = RopeScaling(kind="llama3", factor=float(factors.max()), original_context=int(original))
            expected = _factors(config, scaling)
            if expected.shape == factors.shape and np.allclose(expected, factors, rtol=1e-4):
                return scaling
    raise ModelError(f"{file.path}: {FACTORS} does not stretch rotary positions as Llama 3 does, the only way supported")


def _factors(config: ModelConfig, scaling: RopeScaling) -> npt.NDArray[np.float32]:
    frequencies = config.rope_theta ** -(torch.arange(0, config.d_head, 2, dtype=torch.float32) / config.d_head)
    return (frequencies / stretched(frequencies, config.rope_theta, scaling)).numpy()


def gguf_metadata(config: ModelConfig) -> dict[str, Any]:
    """The metadata that tell llama.cpp what the network is. Raises `ModelError` for one that llama.cpp does not have."""
    check_writable(config)
    architecture, scaling = ARCHITECTURES[config.family], config.rope_scaling
    values: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}
    values |= {"vocab_size": config.vocab_size, "attention.head_count_kv": config.kv_heads}
    if architecture == "gpt2":
        values |= {"attention.layer_norm_epsilon": config.norm_eps}
    else:
        values |= {"attention.layer_norm_rms_epsilon": config.norm_eps, "rope.freq_base": float(config.rope_theta)}
        values |= dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), config.d_head)
    if scaling is not None and scaling.kind != "llama3":
        values |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
    if scaling is not None and scaling.kind == "yarn":
        strength = scaling.attention_factor / RopeScaling.attention(scaling.factor, 1.0)
        values |= {"rope.scaling.original_context_length": scaling.original_context, "rope.scaling.attn_factor": strength}
        values |= {"rope.scaling.yarn_beta_slow": scaling.low, "rope.scaling.yarn_beta_fast": scaling.high}
    named = {f"{architecture}.{key}": value for key, value in values.items()}
    return {"general.architecture": architecture, "general.type": "model"} | named


def check_writable(config: ModelConfig) -> None:
    """Refuse what llama.cpp has no network for."""
    if config.family not in ARCHITECTURES:
        raise ModelError(f"a {config.family} model cannot be written as GGUF, only {', '.join(ARCHITECTURES)}; use --to hf")
    if not config.generates:
        raise ModelError("a model without a language-model head cannot be written as GGUF; use --to hf")
    architecture, scaling = ARCHITECTURES[config.family], config.rope_scaling
    biased = {name for name in ("attention_bias", "output_bias") if getattr(config, name)}
    expected = {"qwen2": {"attention_bias"}, "qwen3": set[str]()}.get(config.family, biased)
    odd = {
        f"activation {config.activation}": config.family == "gpt2" and config.activation != "gelu_tanh",
        f"heads of {config.d_head} features": config.family in SPLIT and config.d_head * config.heads != config.d_model,
        "its biases in attention": biased != expected,
        "yarn that is not truncated": scaling is not None and not scaling.truncate,
        "Llama 3's rotary positions": scaling is not None and scaling.kind == "llama3" and architecture not in PAIRED,
    }
    if found := [what for what, is_so in odd.items() if is_so]:
        raise ModelError(f"llama.cpp's {architecture} does not have {found[0]}; use --to hf")


class Written(Mapping[str, npt.NDArray[np.float32]]):
    """The tensors of a GGUF file, each made when it is asked for; `read` gives one of ours by its name."""

    def __init__(self, config: ModelConfig, read: Callable[[str], Tensor]) -> None:
        self.config, self.read = config, read
        self.parts: dict[str, dict[str, Stored]] = {}
        for ours, stored in names_in(config).items():
            self.parts.setdefault(stored.name, {})[ours] = stored
        if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
            self.parts[FACTORS] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        weights = outline(self.config).state_dict()
        found = {name: torch.cat([weights[ours] for ours in parts]).shape for name, parts in self.parts.items() if parts}
        return {name: tuple(found.get(name, (self.config.d_head // 2,))) for name in self.parts}  # of FACTORS: one per pair

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        if name == FACTORS and self.config.rope_scaling is not None:
            return _factors(self.config, self.config.rope_scaling)
        parts = self.parts[name]
        tensor = to_file({ours: self.read(ours) for ours in parts}, parts)[name]
        values: npt.NDArray[np.float32] = tensor.detach().float().cpu().contiguous().numpy()
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)
