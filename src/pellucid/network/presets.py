"""Published models by name: the dimensions that their papers and `config.json` files give."""

from typing import Any

from pellucid.network.config import ModelConfig, RopeScaling
from pellucid.network.families import FAMILIES

Fields = dict[str, Any]


def row(layers: int, d_model: int, heads: int, kv_heads: int = 0, d_mlp: int = 0, **own: Any) -> Fields:
    """Dimensions; what is left out is as in Vaswani et al. (2017): each head has its keys, the MLP is 4 d_model wide."""
    customary = {"kv_heads": kv_heads or heads, "d_head": d_model // heads, "d_mlp": d_mlp or 4 * d_model}
    return {"layers": layers, "d_model": d_model, "heads": heads} | customary | own


def t5(layers: int, d_model: int, heads: int, d_mlp: int, **own: Any) -> Fields:
    """A T5, whose head, if tied, reads what is divided by sqrt(d_model)."""
    scale = d_model**-0.5 if own.get("tied", True) else 1.0
    return row(layers, d_model, heads, heads, d_mlp, decoder_layers=layers, head_scale=scale, **{"d_head": 64} | own)


GPT2 = {"vocab_size": 50_257, "context_length": 1024, "activation": "gelu_tanh", "norm_eps": 1e-5, "dropout": 0.1}
GPT3 = GPT2 | {"context_length": 2048, "dropout": 0.0}  # the paper names no dropout
BERT = {"vocab_size": 30_522, "context_length": 512, "activation": "gelu", "norm_eps": 1e-12, "dropout": 0.1}
ROBERTA = BERT | {"vocab_size": 50_265, "norm_eps": 1e-5, "token_types": 1}
T5 = {"vocab_size": 32_128, "context_length": 512, "gated": False, "activation": "relu", "norm_eps": 1e-6, "dropout": 0.1}
T5_V11 = {"tied": False, "gated": True, "activation": "gelu_tanh"}
LLAMA2 = {"vocab_size": 32_000, "context_length": 4096, "norm_eps": 1e-5, "tied": False}
LLAMA3 = {"vocab_size": 128_256, "norm_eps": 1e-5, "rope_theta": 500_000.0}
LLAMA32 = RopeScaling(kind="llama3", factor=32.0, original_context=8192)
SMOLLM2 = {"vocab_size": 49_152, "context_length": 8192, "norm_eps": 1e-5, "rope_theta": 100_000.0}
QWEN = {"vocab_size": 151_936, "norm_eps": 1e-6, "rope_theta": 1e6}

# Family, what its models share, and of each: layers, d_model, heads, kv_heads, d_mlp and whatever is its own.
TABLES: list[tuple[str, Fields, dict[str, Fields]]] = [
    (
        "gpt2",
        GPT2,
        {
            "gpt2": row(12, 768, 12),
            "gpt2-medium": row(24, 1024, 16),
            "gpt2-large": row(36, 1280, 20),
            "gpt2-xl": row(48, 1600, 25),
        },
    ),
    (
        # Brown et al. (2020), table 2.1, without the sparse attention, which has no weights of its own. Two rows of the table
        # contradict themselves: 1.3B has 24 heads of 128 features in a d_model of 2048 (16 fit), 13B has 40 in 5140 (5120).
        "gpt2",
        GPT3,
        {
            "gpt3-125m": row(12, 768, 12),
            "gpt3-350m": row(24, 1024, 16),
            "gpt3-760m": row(24, 1536, 16),
            "gpt3-1.3b": row(24, 2048, 16),
            "gpt3-2.7b": row(32, 2560, 32),
            "gpt3-6.7b": row(32, 4096, 32),
            "gpt3-13b": row(40, 5120, 40),
            "gpt3-175b": row(96, 12_288, 96),
        },
    ),
    (  # with the masked-token head that they learnt with, and without the pooler, which that head does not read
        "bert",
        BERT | {"token_types": 2},
        {
            "bert-base": row(12, 768, 12),
            "bert-large": row(24, 1024, 16),
            "bert-base-chinese": row(12, 768, 12, vocab_size=21_128),
        },
    ),
    ("roberta", ROBERTA, {"roberta-base": row(12, 768, 12), "roberta-large": row(24, 1024, 16)}),
    ("distilbert", BERT, {"distilbert-base": row(6, 768, 12)}),
    (
        "t5",
        T5,
        {
            "t5-small": t5(6, 512, 8, 2048),
            "t5-base": t5(12, 768, 12, 3072),
            "t5-large": t5(24, 1024, 16, 4096),
            "t5-3b": t5(24, 1024, 32, 16_384, d_head=128),
            "t5-11b": t5(24, 1024, 128, 65_536, d_head=128),
            "t5-v1.1-small": t5(8, 512, 6, 1024, **T5_V11),
            "t5-v1.1-base": t5(12, 768, 12, 2048, **T5_V11),
            "t5-v1.1-large": t5(24, 1024, 16, 2816, **T5_V11),
            "t5-v1.1-xl": t5(24, 2048, 32, 5120, **T5_V11),
            "t5-v1.1-xxl": t5(24, 4096, 64, 10_240, **T5_V11),
        },
    ),
    (
        "llama",
        LLAMA2,
        {
            "llama-2-7b": row(32, 4096, 32, 32, 11_008),
            "tinyllama-1.1b": row(22, 2048, 32, 4, 5632, context_length=2048),
        },
    ),
    (
        "llama",
        LLAMA3,
        {
            "llama-3-8b": row(32, 4096, 32, 8, 14_336, context_length=8192, tied=False),
            "llama-3.2-1b": row(16, 2048, 32, 8, 8192, context_length=131_072, rope_scaling=LLAMA32),
        },
    ),
    (
        "llama",
        SMOLLM2,
        {
            "smollm2-135m": row(30, 576, 9, 3, 1536),
            "smollm2-360m": row(32, 960, 15, 5, 2560),
            "smollm2-1.7b": row(24, 2048, 32, 32, 8192, rope_theta=130_000.0),
        },
    ),
    (  # version 0.2, which has no sliding window
        "mistral",
        LLAMA2 | {"context_length": 32_768, "rope_theta": 1e6},
        {"mistral-7b": row(32, 4096, 32, 8, 14_336)},
    ),
    (
        "qwen2",
        QWEN,
        {
            "qwen2.5-0.5b": row(24, 896, 14, 2, 4864, context_length=32_768),
            "qwen2.5-1.5b": row(28, 1536, 12, 2, 8960, context_length=131_072),
            "qwen2.5-7b": row(28, 3584, 28, 4, 18_944, context_length=131_072, vocab_size=152_064, tied=False),
        },
    ),
    (
        "qwen3",
        QWEN | {"context_length": 40_960},
        {
            "qwen3-0.6b": row(28, 1024, 16, 8, 3072, d_head=128),
            "qwen3-1.7b": row(28, 2048, 16, 8, 6144),
            "qwen3-4b": row(36, 2560, 32, 8, 9728, d_head=128),
            "qwen3-8b": row(36, 4096, 32, 8, 12_288, tied=False),
        },
    ),
]

MODELS: dict[str, ModelConfig] = {
    name: FAMILIES[family].new(**shared | own) for family, shared, rows in TABLES for name, own in rows.items()
}
ALIASES = {"175b": "gpt3-175b"}


def preset(name: str) -> ModelConfig | None:
    """The published model of that name, complete, if there is one."""
    return MODELS.get(ALIASES.get(name.lower(), name.lower()))
