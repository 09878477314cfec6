"""RoBERTa (Liu et al., 2019): BERT's parts; positions are counted from behind the padding token's id."""

from dataclasses import replace
from typing import Any

from pellucid.network.config import ModelConfig
from pellucid.network.families import bert
from pellucid.network.families.family import Stored, classes, stored


def read(file: dict[str, Any]) -> dict[str, Any]:
    padding, rows = file["pad_token_id"], file["max_position_embeddings"]
    if type(padding) is not int or type(rows) is not int:
        return bert.read(file) | {"position_offset": padding, "context_length": rows}
    return bert.read(file) | {"position_offset": padding + 1, "context_length": rows - padding - 1}


def write(config: ModelConfig) -> dict[str, Any]:
    rows = config.context_length + config.position_offset
    return bert.write(config) | {"pad_token_id": config.position_offset - 1, "max_position_embeddings": rows}


def tensors(config: ModelConfig) -> dict[str, Stored]:
    names = bert.encoder(config, "roberta.")
    if config.head == "mlm":
        names |= stored({"head.dense": "lm_head.dense", "head.norm": "lm_head.layer_norm"}, kinds=bert.BOTH)
        names |= bert.scores(config, "lm_head")
    return names


FAMILY = replace(
    bert.FAMILY,
    name="roberta",
    classes=classes("Roberta", "mlm", "ForMaskedLM"),
    tensors=tensors,
    labelled={
        "classify": {"pooler": "classifier.dense", "head": "classifier.out_proj"},
        "tag": {"head": "classifier"},
    },
    shape=bert.SHAPE | {"position_offset": 2},
    fresh=bert.FAMILY.fresh | {"token_types": 1},
    read=read,
    write=write,
    fixed=bert.FAMILY.fixed | {"hidden_act": "gelu"},  # the head's, whatever is between
    defaults=bert.FAMILY.defaults | {"pad_token_id": 1, "max_position_embeddings": 512},
    prefix="roberta.",
    ignored=r".*embeddings\.position_ids",
    repeated={"lm_head.decoder.weight": "embedding.weight", "lm_head.decoder.bias": "head.bias"},
)
