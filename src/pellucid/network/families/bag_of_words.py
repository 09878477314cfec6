"""A bag of words with one or more layers on top. No family of transformers."""

from pellucid.network.config import ModelConfig
from pellucid.network.families.family import Family, Stored, classes, stored
from pellucid.network.families.lstm import FIELDS, LABELLED


def tensors(config: ModelConfig) -> dict[str, Stored]:
    names = stored({"embedding": "embedding"})
    names |= stored({f"blocks.{i}": f"layers.{i}" for i in range(config.layers - 1)}, kinds=("weight", "bias"))
    return names if config.tied else names | stored({"head": "head"})


FAMILY = Family(
    name="bag-of-words",
    classes=classes("BagOfWords", "lm", ""),
    fields=FIELDS,
    tensors=tensors,
    labelled=LABELLED,
    pooling="mean",
    shape={"architecture": "bag-of-words", "positions": "none", "activation": "relu"},
    defaults={"tie_word_embeddings": True},
)
