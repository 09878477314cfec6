"""A language model of LSTM layers. No family of transformers: the names of its tensors are those of `torch.nn.LSTM`."""

from pellucid.network.config import ModelConfig
from pellucid.network.families.family import Family, Stored, classes, stored

BLOCK = {"inputs": "weight_ih", "recurrent": "weight_hh", "inputs_bias": "bias_ih", "recurrent_bias": "bias_hh"}


def tensors(config: ModelConfig) -> dict[str, Stored]:
    names = stored({"embedding": "embedding"})
    for i in range(config.layers):
        names |= {f"blocks.{i}.{ours}": Stored(f"lstm.{theirs}_l{i}") for ours, theirs in BLOCK.items()}
    return names if config.tied else names | stored({"head": "head"})


LABELLED = {"classify": {"head": "classifier"}, "tag": {"head": "classifier"}}
FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "context_length",
    "d_model": "hidden_size",
    "layers": "num_layers",
    "tied": "tie_word_embeddings",
}

FAMILY = Family(
    name="lstm",
    classes=classes("LSTM", "lm", "ForCausalLM"),
    fields=FIELDS | {"dropout": "dropout"},
    tensors=tensors,
    labelled=LABELLED,
    pooling="mean",
    shape={"architecture": "recurrent", "positions": "none"},
    defaults={"tie_word_embeddings": True, "dropout": 0.0},
)
