"""Llama (Touvron et al., 2023) and all that is built like it: SmolLM2, TinyLlama. The names that Mistral and Qwen share."""

from typing import Any

from pellucid.core.errors import ConfigError
from pellucid.network.config import ModelConfig, RopeScaling, is_number
from pellucid.network.families.family import Family, Stored, classes, refusal, stored

FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "d_mlp": "intermediate_size",
    "tied": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
}
BLOCK = {
    "norm_attn": "input_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.output": "self_attn.o_proj",
    "norm_mlp": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
DEFAULTS = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}


def read(file: dict[str, Any]) -> dict[str, Any]:
    """Heads and rotary positions; what is missing follows from the rest, as transformers has it."""
    heads, width = file.get("num_attention_heads"), file.get("hidden_size")
    kv_heads, head = file.get("num_key_value_heads"), file.get("head_dim")
    found: dict[str, Any] = {"kv_heads": heads if kv_heads is None else kv_heads}
    if head is not None:
        found["d_head"] = head
    elif isinstance(heads, int) and isinstance(width, int) and heads > 0:
        found["d_head"] = width // heads
    rope = file.get("rope_scaling") or file.get("rope_parameters")
    rope = {} if rope is None else rope
    if not isinstance(rope, dict):
        raise ConfigError(f"rope_parameters is {rope!r}, which is no table of settings")
    for table in (file, rope):
        if table.get("partial_rotary_factor") not in (None, 1):
            raise ConfigError(refusal("partial_rotary_factor", table["partial_rotary_factor"]))
    found["rope_theta"] = number(rope, "rope_theta", number(file, "rope_theta", 10_000.0))
    return found | {"rope_scaling": read_scaling(rope, file)}


def read_scaling(rope: dict[str, Any], file: dict[str, Any]) -> RopeScaling | None:
    """How wavelengths are stretched. `dynamic` begins beyond the context that we keep to, so up to there it is none."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    context = number(file, "max_position_embeddings", 0)
    if kind in ("default", "dynamic"):
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise ConfigError(f"rope_type {kind!r} is not supported; known are default, dynamic, linear, llama3 and yarn")
    original = int(number(rope, "original_max_position_embeddings", context))
    factor = number(rope, "factor", context / original if original else 1.0)
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if kind == "llama3":
        low, high = number(rope, "low_freq_factor", 1.0), number(rope, "high_freq_factor", 4.0)
        return RopeScaling(kind="llama3", factor=factor, original_context=original, low=low, high=high)
    scale, base = number(rope, "mscale", 0.0), number(rope, "mscale_all_dim", 0.0)
    both = scale > 0 and base > 0
    inferred = RopeScaling.attention(factor, scale) / RopeScaling.attention(factor, base) if both else None
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_context=original,
        low=number(rope, "beta_slow", 1.0),
        high=number(rope, "beta_fast", 32.0),
        attention_factor=number(rope, "attention_factor", inferred or RopeScaling.attention(factor, 1.0)),
        truncate=rope.get("truncate", True),
    )


def number(table: dict[str, Any], name: str, default: float) -> float:
    value = table.get(name)
    if value is None:
        return default
    if not is_number(value):
        raise ConfigError(f"{name} = {value!r} is not a number")
    return float(value)


def write(config: ModelConfig) -> dict[str, Any]:
    """The same back. transformers 5 reads `rope_parameters`, earlier versions the flat fields."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    scaling = config.rope_scaling
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind != "linear":
        low, high = ("low_freq_factor", "high_freq_factor") if scaling.kind == "llama3" else ("beta_slow", "beta_fast")
        rope |= {"original_max_position_embeddings": scaling.original_context, low: scaling.low, high: scaling.high}
    if scaling is not None and scaling.kind == "yarn":
        rope |= {"attention_factor": scaling.attention_factor, "truncate": scaling.truncate}
    fields = {"num_key_value_heads": config.kv_heads, "head_dim": config.d_head, "rope_theta": config.rope_theta}
    fields |= {"attention_dropout": 0.0}  # of attention weights, of which we drop none; our own dropout has no name in the file
    return fields | {"rope_parameters": rope} | ({"rope_scaling": rope} if scaling else {})


def tensors(config: ModelConfig) -> dict[str, Stored]:
    """Our parameter names, and theirs."""
    names = stored({"embedding": "model.embed_tokens", "norm": "model.norm"})
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        names |= stored(BLOCK, ours, theirs)
        if config.attention_bias:
            names |= stored({part: BLOCK[part] for part in ("attn.q", "attn.k", "attn.v")}, ours, theirs, ("bias",))
        if config.output_bias:
            names |= stored({"attn.output": BLOCK["attn.output"]}, ours, theirs, ("bias",))
        if config.mlp_bias:
            names |= stored({part: name for part, name in BLOCK.items() if part.startswith("mlp")}, ours, theirs, ("bias",))
        if config.qk_norm:
            names |= stored({"attn.norm_q": "self_attn.q_norm", "attn.norm_k": "self_attn.k_norm"}, ours, theirs)
    return names if config.tied else names | stored({"head": "lm_head"})


def biased(file: dict[str, Any]) -> dict[str, Any]:
    bias = file["attention_bias"]
    return read(file) | {"attention_bias": bias, "output_bias": bias}


FAMILY = Family(
    name="llama",
    classes=classes("Llama", "lm", "ForCausalLM"),
    fields=FIELDS | {"mlp_bias": "mlp_bias"},
    tensors=tensors,
    labelled={"classify": {"head": "score"}, "tag": {"head": "score"}},
    shape={},
    grouped=True,
    read=biased,
    made_from={"kv_heads": "num_key_value_heads", "d_head": "head_dim"},
    write=lambda config: write(config) | {"attention_bias": config.attention_bias},
    fixed={"hidden_act": "silu"},
    defaults=DEFAULTS | {"attention_bias": False, "mlp_bias": False, "max_position_embeddings": 2048},
    prefix="model.",
    ignored=r".*rotary_emb\.inv_freq",
    repeated={"lm_head.weight": "embedding.weight"},
)
