"""DistilBERT (Sanh et al., 2019): BERT without token types and pooler, under other names."""

from typing import Any

from pellucid.network.config import ModelConfig
from pellucid.network.families import bert
from pellucid.network.families.family import Family, Stored, activation, classes, stored

BLOCK = {
    "attn.q": "attention.q_lin",
    "attn.k": "attention.k_lin",
    "attn.v": "attention.v_lin",
    "attn.output": "attention.out_lin",
    "norm_attn": "sa_layer_norm",
    "mlp.up": "ffn.lin1",
    "mlp.down": "ffn.lin2",
    "norm_mlp": "output_layer_norm",
}


def read(file: dict[str, Any]) -> dict[str, Any]:
    heads = bert.read_heads({"hidden_size": file.get("dim"), "num_attention_heads": file.get("n_heads")})
    return heads | {"activation": activation(file, "activation")}


def write(config: ModelConfig) -> dict[str, Any]:
    file = bert.write(config)
    return {"activation": file["hidden_act"], "attention_dropout": config.dropout}


def tensors(config: ModelConfig) -> dict[str, Stored]:
    embeddings = {ours: name for ours, name in bert.EMBEDDINGS.items() if ours != "types"}
    names = stored(embeddings, theirs="distilbert.")
    names |= stored({"norm_embedding": "distilbert.embeddings.LayerNorm"}, kinds=bert.BOTH)
    for i in range(config.layers):
        names |= stored(BLOCK, f"blocks.{i}.", f"distilbert.transformer.layer.{i}.", bert.BOTH)
    if config.head == "mlm":
        names |= stored({"head.dense": "vocab_transform", "head.norm": "vocab_layer_norm"}, kinds=bert.BOTH)
        names["head.bias"] = Stored("vocab_projector.bias")
    if config.head == "mlm" and not config.tied:
        names["head.weight"] = Stored("vocab_projector.weight")
    return names


FAMILY = Family(
    name="distilbert",
    classes=classes("DistilBert", "mlm", "ForMaskedLM"),
    fields={
        "vocab_size": "vocab_size",
        "context_length": "max_position_embeddings",
        "d_model": "dim",
        "layers": "n_layers",
        "heads": "n_heads",
        "d_mlp": "hidden_dim",
        "dropout": "dropout",
        "tied": "tie_word_embeddings",
    },
    tensors=tensors,
    labelled={
        "classify": {"pooler": "pre_classifier", "head": "classifier"},
        "tag": {"head": "classifier"},
    },
    pooling="first",
    shape=bert.SHAPE | {"norm_eps": 1e-12, "pooler_activation": "relu"},
    fresh={"activation": "gelu", "norm_eps": 1e-12},
    read=read,
    write=write,
    defaults={
        "activation": "gelu",
        "max_position_embeddings": 512,
        "dropout": 0.1,
        "tie_word_embeddings": True,
    },
    prefix="distilbert.",
    ignored=r".*embeddings\.position_ids",
    repeated={"vocab_projector.weight": "embedding.weight"},
)
