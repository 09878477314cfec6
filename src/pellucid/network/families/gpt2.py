"""GPT-2 (Radford et al., 2019), and GPT-3 in its dimensions: learned positions, layer norms, matrices stored transposed."""

from typing import Any

from pellucid.network.config import ModelConfig
from pellucid.network.families.family import ACTIVATION_NAMES, Family, Stored, activation, classes, stored

BOTH = ("weight", "bias")
FUSED = "attn.c_attn"  # queries, keys and values in one
TRANSPOSED = {"attn.output": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


def read(file: dict[str, Any]) -> dict[str, Any]:
    width, heads = file.get("n_embd"), file.get("n_head")
    found: dict[str, Any] = {"kv_heads": heads}
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        found["d_head"] = width // heads
    inner = file.get("n_inner")
    found["d_mlp"] = 4 * width if inner is None and isinstance(width, int) else inner
    return found | {"activation": activation(file, "activation_function")}


def write(config: ModelConfig) -> dict[str, Any]:
    drops = dict.fromkeys(("embd_pdrop", "attn_pdrop"), config.dropout)
    return {"n_inner": config.d_mlp, "activation_function": ACTIVATION_NAMES[config.activation]} | drops


def tensors(config: ModelConfig) -> dict[str, Stored]:
    names = stored({"embedding": "transformer.wte", "positions": "transformer.wpe"})
    names |= stored({"norm": "transformer.ln_f"}, kinds=BOTH)
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
        names |= stored({"norm_attn": "ln_1", "norm_mlp": "ln_2"}, ours, theirs, BOTH)
        names |= stored(TRANSPOSED, ours, theirs, ("bias",))
        for mine, name in TRANSPOSED.items():
            names[f"{ours}{mine}.weight"] = Stored(f"{theirs}{name}.weight", transposed=True)
        for part, mine in enumerate("qkv"):
            for kind in BOTH:
                names[f"{ours}attn.{mine}.{kind}"] = Stored(
                    f"{theirs}{FUSED}.{kind}", part=part, parts=3, transposed=kind == "weight"
                )
    return names if config.tied else names | stored({"head": "lm_head"})


FAMILY = Family(
    name="gpt2",
    classes=classes("GPT2", "lm", "LMHeadModel"),
    fields={
        "vocab_size": "vocab_size",
        "context_length": "n_positions",
        "d_model": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "tied": "tie_word_embeddings",
        "norm_eps": "layer_norm_epsilon",
        "dropout": "resid_pdrop",
    },
    tensors=tensors,
    labelled={"classify": {"head": "score"}, "tag": {"head": "classifier"}},
    shape={
        "positions": "learned",
        "norm": "layer",
        "gated": False,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    },
    fresh={"activation": "gelu_tanh", "norm_eps": 1e-5},
    read=read,
    made_from={"d_mlp": "n_inner"},
    write=write,
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    defaults={
        "tie_word_embeddings": True,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "n_positions": 1024,
        "resid_pdrop": 0.1,
    },
    prefix="transformer.",
    ignored=r".*attn\.(masked_)?bias$(?<!c_attn\.bias)",
    repeated={"lm_head.weight": "embedding.weight"},
)
