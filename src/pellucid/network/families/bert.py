"""BERT (Devlin et al., 2019): an encoder with the norms after its parts, token types, a pooler and a masked-token head."""

from typing import Any

from pellucid.network.config import ModelConfig
from pellucid.network.families.family import ACTIVATION_NAMES, Family, Stored, activation, classes, stored

BOTH = ("weight", "bias")
EMBEDDINGS = {
    "embedding": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
}
BLOCK = {
    "attn.q": "attention.self.query",
    "attn.k": "attention.self.key",
    "attn.v": "attention.self.value",
    "attn.output": "attention.output.dense",
    "norm_attn": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "norm_mlp": "output.LayerNorm",
}
HEAD = {"head.dense": "cls.predictions.transform.dense", "head.norm": "cls.predictions.transform.LayerNorm"}
SHAPE = {
    "architecture": "encoder",
    "positions": "learned",
    "norm": "layer",
    "norm_first": False,
    "norm_embedding": True,
    "gated": False,
    "attention_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "head": "mlm",
}
FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "d_mlp": "intermediate_size",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "token_types": "type_vocab_size",
    "tied": "tie_word_embeddings",
}


def read(file: dict[str, Any]) -> dict[str, Any]:
    return read_heads(file) | {"activation": activation(file, "hidden_act")}


def read_heads(file: dict[str, Any]) -> dict[str, Any]:
    width, heads = file.get("hidden_size"), file.get("num_attention_heads")
    found: dict[str, Any] = {"kv_heads": heads}
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        found["d_head"] = width // heads
    return found


def write(config: ModelConfig) -> dict[str, Any]:
    return {"hidden_act": ACTIVATION_NAMES[config.activation], "attention_probs_dropout_prob": config.dropout}


def encoder(config: ModelConfig, prefix: str) -> dict[str, Stored]:
    """Embeddings, blocks and pooler."""
    names = stored({ours: name for ours, name in EMBEDDINGS.items() if ours != "types" or config.token_types}, theirs=prefix)
    names |= stored({"norm_embedding": f"{prefix}embeddings.LayerNorm"}, kinds=BOTH)
    for i in range(config.layers):
        names |= stored(BLOCK, f"blocks.{i}.", f"{prefix}encoder.layer.{i}.", BOTH)
    return names | (stored({"pooler": f"{prefix}pooler.dense"}, kinds=BOTH) if config.pooler else {})


def tensors(config: ModelConfig) -> dict[str, Stored]:
    names = encoder(config, "bert.")
    return names | stored(HEAD, kinds=BOTH) | scores(config, "cls.predictions") if config.head == "mlm" else names


def scores(config: ModelConfig, head: str) -> dict[str, Stored]:
    """The last matrix and its bias: tied, the embedding and one bias; else a matrix of its own, whose own bias counts."""
    if config.tied:
        return {"head.bias": Stored(f"{head}.bias")}
    return {
        "head.weight": Stored(f"{head}.decoder.weight"),
        "head.bias": Stored(f"{head}.decoder.bias", copy=f"{head}.bias"),
    }


FAMILY = Family(
    name="bert",
    classes=classes("Bert", "mlm", "ForMaskedLM"),
    fields=FIELDS,
    tensors=tensors,
    labelled={"classify": {"head": "classifier"}, "tag": {"head": "classifier"}},
    pooling="first",
    shape=SHAPE,
    fresh={"activation": "gelu", "norm_eps": 1e-12, "token_types": 2},
    read=read,
    write=write,
    fixed={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    defaults={
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "tie_word_embeddings": True,
    },
    prefix="bert.",
    ignored=r".*embeddings\.position_ids|cls\.seq_relationship\..*",
    repeated={"cls.predictions.decoder.weight": "embedding.weight", "cls.predictions.decoder.bias": "head.bias"},
)
