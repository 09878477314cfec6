"""Qwen3 (Yang et al., 2025): the default family. Field and weight names of Hugging Face transformers."""

from typing import Any

from pellucid.network.config import ModelConfig

FIELDS = {  # ours: theirs
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "d_mlp": "intermediate_size",
    "tied": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
}

# What a file may say that this network does not do; anything but these values is refused, not ignored.
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "use_sliding_window": False,
}

BLOCK = {
    "norm_attn": "input_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.norm_q": "self_attn.q_norm",
    "attn.norm_k": "self_attn.k_norm",
    "attn.output": "self_attn.o_proj",
    "norm_mlp": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def config_to_file(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config.json` that describe the network."""
    fields = {theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}  # transformers 5 reads this, earlier ones the flat field
    names = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    return names | fields | {"rope_theta": config.rope_theta, "rope_parameters": rope} | FIXED


def config_from_file(file: dict[str, Any]) -> dict[str, Any]:
    """Our fields from the parsed `config.json`; what is missing has the family's default."""
    found = {ours: file[theirs] for ours, theirs in FIELDS.items() if theirs in file}
    rope = file.get("rope_parameters") or file.get("rope_scaling") or {}
    found["rope_theta"] = float(rope.get("rope_theta", file.get("rope_theta", 10_000.0)))
    return found


def unsupported(file: dict[str, Any]) -> list[str]:
    """What the file asks for and this network does not do, as `name = value`."""
    found = [f"{name} = {file[name]!r}" for name, value in FIXED.items() if file.get(name, value) != value]
    rope = file.get("rope_parameters") or file.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    return found + ([f"rope_type = {kind!r}"] if kind != "default" else [])


def weight_names(config: ModelConfig) -> dict[str, str]:
    """Our parameter names, and theirs."""
    names = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    for i in range(config.layers):
        names |= {f"blocks.{i}.{ours}.weight": f"model.layers.{i}.{theirs}.weight" for ours, theirs in BLOCK.items()}
    return names if config.tied else names | {"head.weight": "lm_head.weight"}
