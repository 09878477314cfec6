"""Adapters in files: the library peft is the judge, in both directions, and each kind of damage is one sentence."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from test_adapters import CONFIGS, SIZES
from test_parity import SEED, below, proof
from tiny import randomised

from pellucid.network.adapters import LoRA, attach
from pellucid.network.families import FAMILIES
from pellucid.network.labels import with_labels
from pellucid.network.peft import ADAPTER, WEIGHTS, load_adapter, read_adapter, save_adapter
from pellucid.network.weights import load_network, save_network

IDS = torch.tensor([[3, 11, 4, 21, 5, 9, 2, 6], [12, 7, 31, 8, 22, 8, 33, 8]])
MODELS = {  # a class of transformers, its configuration, modules that can be adapted there
    "llama": ("LlamaForCausalLM", {}, ["q_proj", "v_proj", "down_proj", "o_proj"]),
    "mistral": ("MistralForCausalLM", {"head_dim": 6, "num_key_value_heads": 2, "sliding_window": None}, ["k_proj", "up_proj"]),
    "qwen2": ("Qwen2ForCausalLM", {"num_key_value_heads": 4}, ["q_proj", "k_proj"]),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 8, "num_key_value_heads": 2}, ["q_proj", "gate_proj"]),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 24, "n_head": 4, "n_layer": 2, "n_positions": 32}, ["c_attn", "c_fc", "c_proj"]),
    "bert": ("BertForMaskedLM", {}, ["query", "value", "dense"]),
    "roberta": ("RobertaForMaskedLM", {}, ["key", "output.dense"]),
    "distilbert": ("DistilBertForMaskedLM", {"dim": 24, "n_heads": 4, "n_layers": 2, "hidden_dim": 40}, ["q_lin", "lin2"]),
    "t5": ("T5ForConditionalGeneration", {"d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "d_model": 24}, ["q", "wo"]),
}
WIDTHS = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}


def their_base(family, folder, *, name=None, **fields):
    """A model of transformers whose every weight matters, in a folder."""
    usual, dimensions, _ = MODELS[family]
    dimensions = {"vocab_size": 40} | (dimensions if {"d_model", "dim", "n_embd"} & dimensions.keys() else WIDTHS | dimensions)
    config = transformers.AutoConfig.for_model(family, **dimensions | fields)
    model = getattr(transformers, name or usual)(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.2, generator=generator)
    model.save_pretrained(folder)
    return model.eval()


def their_adapter(model, folder, seed=0, **options):
    """An adapter that peft made, in a folder; the model with it."""
    adapted_model = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    shake(dict(adapted_model.named_parameters()), "lora_B", seed)
    adapted_model.save_pretrained(folder)
    settings = json.loads((folder / ADAPTER).read_text())
    (folder / ADAPTER).write_text(json.dumps(settings | {"base_model_name_or_path": "base"}))
    return adapted_model


def shake(weights, name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (weight for key, weight in weights.items() if name in key):
            weight.normal_(0.0, 0.1, generator=generator)


@torch.no_grad()
def said_by(model, **options):
    """Scores of transformers' model, or its vectors."""
    out = model(input_ids=IDS, **options)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


@torch.no_grad()
def said_here(network):
    options = {"decoder_ids": IDS} if network.config.architecture == "encoder-decoder" else {}
    out = network(IDS, **options)
    return out.hidden if out.logits is None else out.logits


def options_of(network):
    return {"decoder_input_ids": IDS} if network.config.architecture == "encoder-decoder" else {}


def opened(folder, base, **options):
    """The adapter on its base."""
    return load_adapter(load_network(base), read_adapter(folder), base=str(base), **options)


@pytest.mark.parametrize("family", MODELS)
def test_an_adapter_of_peft_says_the_same_here(family, tmp_path_factory):
    @proof(4)
    @given(
        targets=st.sets(st.sampled_from(MODELS[family][2]), min_size=1),
        rank=st.integers(1, 9),
        alpha=st.sampled_from([1, 16, 7.5]),
        others=st.booleans(),
        seed=SEED,
    )
    def check(targets, rank, alpha, others, seed):
        folder = tmp_path_factory.mktemp("adapter")
        model, more = their_base(family, folder / "base"), {}
        if others:
            more = {"rank_pattern": {sorted(targets)[0]: rank + 2}, "alpha_pattern": {sorted(targets)[0]: 3}}
        model = their_adapter(
            model,
            folder,
            seed,
            target_modules=sorted(targets),
            r=rank,
            lora_alpha=alpha,
            fan_in_fan_out=family == "gpt2",
            **more,
        )
        network = opened(folder, folder / "base")
        assert not any(weight.requires_grad for weight in network.parameters())
        below(said_here(network), said_by(model, **options_of(network)), 1e-4)

    check()


CLASSES = {"gpt2": "CausalLM", "qwen3": "CausalLM", "bert": "MaskedLM", "t5": "Seq2SeqLM"}
OURS = {
    "qwen3": CONFIGS["qwen3"],
    **{name: FAMILIES[name].new(**SIZES) for name in ("llama", "mistral", "qwen2", "gpt2", "bert", "roberta", "distilbert")},
    "t5": CONFIGS["t5"],
    "vectors": FAMILIES["bert"].new(**SIZES | {"head": "none"}),
}


@pytest.mark.parametrize("name", OURS)
def test_an_adapter_of_ours_says_the_same_in_peft(name, tmp_path_factory):
    config = OURS[name]
    loader = {"lm": "AutoModelForCausalLM", "mlm": "AutoModelForMaskedLM", "none": "AutoModel"}[config.head]
    loader = "AutoModelForSeq2SeqLM" if name == "t5" else loader

    @proof(3)
    @given(
        targets=st.sampled_from(
            ["all", ("attn.q", "attn.v"), ("attn.k", "mlp.down"), ("blocks.1.mlp.up", "attn.output"), ("blocks.0.attn.v",)]
        ),
        rank=st.integers(1, 9),
        seed=SEED,
    )
    def check(targets, rank, seed):
        folder = tmp_path_factory.mktemp("adapter")
        network, base = randomised(config, seed), folder / "base"
        base.mkdir()
        save_network(network, base)
        attach(network, LoRA(rank=rank, alpha=5.0, targets=targets), seed=seed)
        shake(dict(network.named_parameters()), "lora_b", seed)
        save_adapter(network, folder, base=str(base))
        model = peft.PeftModel.from_pretrained(getattr(transformers, loader).from_pretrained(base), folder).eval()
        below(said_here(network), said_by(model, **options_of(network)), 1e-4)
        below(said_here(network), said_here(opened(folder, base)), 1e-5)

    check()


def test_names_are_endings_where_all_are_adapted_and_else_whole(tmp_path):
    network = attach(randomised(OURS["gpt2"]), LoRA(rank=4, targets=("attn.q", "attn.v", "blocks.1.mlp.down")), seed=0)
    save_adapter(network, tmp_path, base="gpt2")
    settings = json.loads((tmp_path / ADAPTER).read_text())
    assert settings["target_modules"] == ["c_attn", "transformer.h.1.mlp.c_proj"]
    assert (settings["r"], settings["lora_alpha"]) == (8, 32)  # two adapters of rank 4 side by side
    assert settings["rank_pattern"] == {"transformer.h.1.mlp.c_proj": 4}
    assert settings["alpha_pattern"] == {"transformer.h.1.mlp.c_proj": 16}
    assert settings["task_type"] == "CAUSAL_LM"
    assert settings["fan_in_fan_out"] is True


LABELS = {
    "bert": ("BertFor", {"head": "mlm"}),
    "roberta": ("RobertaFor", {"head": "mlm"}),
    "distilbert": ("DistilBertFor", {"head": "mlm"}),
    "qwen3": ("Qwen3For", {}),
    "gpt2": ("GPT2For", {}),
}
TASKS = {"classify": ("SEQ_CLS", "SequenceClassification"), "tag": ("TOKEN_CLS", "TokenClassification")}


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("family", LABELS)
class TestLabels:
    def test_of_ours_in_peft(self, family, head, tmp_path):
        base, (task, ending) = tmp_path / "base", TASKS[head]
        base.mkdir()
        network = randomised(FAMILIES[family].new(**SIZES))
        save_network(network, base, ids={"pad_token_id": 0})
        pooling = FAMILIES[family].pooling if head == "classify" else "mean"
        network = with_labels(network, head=head, labels=["good", "bad", "so so"], pooling=pooling, seed=1)
        attach(network, LoRA(rank=3, targets=("attn.q", "mlp.up")), seed=1)
        shake(dict(network.named_parameters()), "lora_b")
        shake(dict(network.named_parameters()), "head.")
        shake(dict(network.named_parameters()), "pooler.")
        save_adapter(network, tmp_path, base=str(base))
        again = opened(tmp_path, base)
        assert (again.config.labels, again.config.head) == (("good", "bad", "so so"), head)
        assert torch.equal(said_here(again), said_here(network))
        loader = getattr(transformers, f"AutoModelFor{ending}")
        model = peft.PeftModel.from_pretrained(loader.from_pretrained(base, num_labels=3), tmp_path).eval()
        assert json.loads((tmp_path / ADAPTER).read_text())["task_type"] == task
        below(said_here(network), said_by(model), 1e-4)

    def test_of_peft_here(self, family, head, tmp_path):
        task, ending = TASKS[head]
        their_base(family, tmp_path / "lm", pad_token_id=0)
        loader = getattr(transformers, f"AutoModelFor{ending}")
        model = loader.from_pretrained(tmp_path / "lm", num_labels=3)
        model.save_pretrained(tmp_path / "classifier")
        targets = {"gpt2": ["c_attn"], "distilbert": ["q_lin"], "qwen3": ["q_proj"]}.get(family, ["query"])
        model = their_adapter(model, tmp_path, target_modules=targets, r=3, task_type=task, fan_in_fan_out=family == "gpt2")
        shake(dict(model.named_parameters()), "modules_to_save")
        model.save_pretrained(tmp_path / "again")
        shutil.copy(tmp_path / "again" / WEIGHTS, tmp_path / WEIGHTS)
        below(said_here(opened(tmp_path, tmp_path / "classifier")), said_by(model), 1e-4)
        if head == "tag" or family != "bert":  # whose pooler would be new, and is not in the file
            network = opened(tmp_path, tmp_path / "lm")
            assert network.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
            below(said_here(network), said_by(model), 1e-4)
