"""T5 (Raffel et al., 2020): an encoder-decoder with relative positions and unscaled scores; 1.1 has a gated GELU."""

from typing import Any

from pellucid.core.errors import ConfigError
from pellucid.network.config import ModelConfig, is_number
from pellucid.network.families.family import Family, Stored, stored

ATTENTION = {"q": "q", "k": "k", "v": "v", "output": "o"}
MLPS: dict[str, dict[str, Any]] = {
    "relu": {"gated": False, "activation": "relu"},
    "gated-gelu": {"gated": True, "activation": "gelu_tanh"},
    "gated-silu": {"gated": True, "activation": "silu"},
}


def read(file: dict[str, Any]) -> dict[str, Any]:
    kind = file["feed_forward_proj"]
    if not isinstance(kind, str) or kind not in MLPS:
        raise ConfigError(f"feed_forward_proj = {kind!r} is not supported; known are {', '.join(MLPS)}")
    width, scaled = file["d_model"], file.get("scale_decoder_outputs")
    if scaled is None:  # only transformers 5 writes it
        scaled = file["tie_word_embeddings"] is not False
    if not isinstance(scaled, bool):
        raise ConfigError(f"scale_decoder_outputs must be true or false, not {scaled!r}")
    found = MLPS[kind] | {"kv_heads": file["num_heads"]}
    if file["num_decoder_layers"] is None:
        found["decoder_layers"] = file["num_layers"]
    return found | {"head_scale": width**-0.5 if scaled and is_number(width) and width > 0 else 1.0}


def write(config: ModelConfig) -> dict[str, Any]:
    mlp = {"gated": config.gated, "activation": config.activation}
    ids = {"pad_token_id": 0, "is_encoder_decoder": True}
    scaled = {"scale_decoder_outputs": config.head_scale != 1.0}
    return ids | scaled | {"feed_forward_proj": next(name for name, known in MLPS.items() if known == mlp)}


def tensors(config: ModelConfig) -> dict[str, Stored]:
    names = stored({"encoder.embedding": "shared"})
    for half, blocks in (("encoder", config.layers), ("decoder", config.decoder_layers)):
        names |= stored({f"{half}.norm": f"{half}.final_layer_norm"})
        bias = f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias"
        names |= stored({f"{half}.relative": bias})
        for i in range(blocks):
            ours, theirs = f"{half}.blocks.{i}", f"{half}.block.{i}.layer"
            names |= stored(ATTENTION, f"{ours}.attn.", f"{theirs}.0.SelfAttention.")
            parts = {"norm_attn": f"{theirs}.0.layer_norm"}
            if half == "decoder":
                names |= stored(ATTENTION, f"{ours}.cross.", f"{theirs}.1.EncDecAttention.")
                parts["norm_cross"] = f"{theirs}.1.layer_norm"
            last = f"{theirs}.{len(parts)}"
            parts |= {"norm_mlp": f"{last}.layer_norm", "mlp.down": f"{last}.DenseReluDense.wo"}
            parts |= {"mlp.gate": f"{last}.DenseReluDense.wi_0"} if config.gated else {}
            parts["mlp.up"] = f"{last}.DenseReluDense.{'wi_1' if config.gated else 'wi'}"
            names |= stored(parts, f"{ours}.")
    return names if config.tied else names | stored({"decoder.head": "lm_head"})


FAMILY = Family(
    name="t5",
    classes={"lm": "T5ForConditionalGeneration"},
    fields={
        "vocab_size": "vocab_size",
        "context_length": "n_positions",
        "d_model": "d_model",
        "layers": "num_layers",
        "decoder_layers": "num_decoder_layers",
        "heads": "num_heads",
        "d_head": "d_kv",
        "d_mlp": "d_ff",
        "tied": "tie_word_embeddings",
        "norm_eps": "layer_norm_epsilon",
        "dropout": "dropout_rate",
        "relative_buckets": "relative_attention_num_buckets",
        "relative_distance": "relative_attention_max_distance",
        "start_token": "decoder_start_token_id",
    },
    tensors=tensors,
    shape={"architecture": "encoder-decoder", "positions": "relative", "scaled": False},
    fresh={"activation": "gelu_tanh"},
    read=read,
    write=write,
    defaults={
        "n_positions": 512,
        "num_decoder_layers": None,
        "tie_word_embeddings": True,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "dropout_rate": 0.1,
        "decoder_start_token_id": 0,
    },
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    repeated={
        "encoder.embed_tokens.weight": "encoder.embedding.weight",
        "decoder.embed_tokens.weight": "encoder.embedding.weight",
        "lm_head.weight": "encoder.embedding.weight",
    },
)
