"""Adapters in files: the library peft is the judge, in both directions, and each kind of damage is one sentence."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_adapters import CONFIGS, SIZES
from test_parity import SEED, assert_below, proof
from tiny import randomised

from pellucid.core.errors import ConfigError, ModelError
from pellucid.network.adapters import LoRA, adapted, attach
from pellucid.network.families import FAMILIES
from pellucid.network.labels import with_labels
from pellucid.network.peft import load_adapter, save_adapter
from pellucid.network.peft_settings import ADAPTER, OWN, PICKLE, WEIGHTS, read_adapter
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
        assert_below(said_here(network), said_by(model, **options_of(network)), 1e-4)

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
        assert_below(said_here(network), said_by(model, **options_of(network)), 1e-4)
        assert_below(said_here(network), said_here(opened(folder, base)), 1e-5)

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
        assert_below(said_here(network), said_by(model), 1e-4)

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
        assert_below(said_here(opened(tmp_path, tmp_path / "classifier")), said_by(model), 1e-4)
        if head == "tag" or family != "bert":  # whose pooler would be new, and is not in the file
            network = opened(tmp_path, tmp_path / "lm")
            assert network.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
            assert_below(said_here(network), said_by(model), 1e-4)


# ---- what is damaged, or asks for what is not computed here


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base and an adapter that peft made on it; nobody may change them."""
    folder = tmp_path_factory.mktemp("made")
    model = their_base("qwen3", folder / "base")
    their_adapter(model, folder / "adapter", target_modules=["q_proj", "down_proj"], r=3, task_type="CAUSAL_LM")
    return folder


@pytest.fixture
def refused(made, tmp_path):
    """The sentence with which a changed copy of the adapter is refused, without the names of its files."""

    def call(settings=None, tensors=None, base=None, own=None):
        folder = tmp_path / "adapter"
        if not folder.exists():
            shutil.copytree(made / "adapter", folder)
        if settings is not None:
            said = json.loads((folder / ADAPTER).read_text()) | settings
            (folder / ADAPTER).write_text(json.dumps({name: value for name, value in said.items() if value != "absent"}))
        if own is not None:
            (folder / OWN).write_text(json.dumps(own))
        if tensors is not None:
            found = load_file(folder / WEIGHTS)
            tensors(found)
            save_file(found, folder / WEIGHTS)
        with pytest.raises(ModelError) as caught:
            opened(folder, base or made / "base")
        message = str(caught.value)
        assert "\n" not in message
        return message.replace(str(folder), "ADAPTER").replace(str(base or made / "base"), "BASE")

    return call


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported; adapters of type LORA are"),
        ({"peft_type": "absent"}, "peft_type = None is not supported; adapters of type LORA are"),
        (
            {"base_model_name_or_path": None},
            "base_model_name_or_path = None names no model; write there the one that the adapter was trained on",
        ),
        ({"use_dora": True}, "use_dora = True is not supported, and leaving it out would change the model's answers"),
        ({"use_rslora": True}, "use_rslora = True is not supported, and leaving it out would change the model's answers"),
        ({"lora_bias": True}, "lora_bias = True is not supported, and leaving it out would change the model's answers"),
        (
            {"layer_replication": [[0, 2]]},
            "layer_replication = [[0, 2]] is not supported, and leaving it out would change the model's answers",
        ),
        ({"of_the_future": 1}, "of_the_future = 1 is not supported, and leaving it out would change the model's answers"),
        ({"bias": "all"}, "bias = 'all' is not supported: an adapter with biases of its own cannot be read"),
        ({"r": 0}, "r = 0 is no rank: a whole number of at least 1"),
        ({"r": "8"}, "r = '8' is no rank: a whole number of at least 1"),
        ({"r": True}, "r = True is no rank: a whole number of at least 1"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan is not a number"),
        ({"lora_alpha": "absent"}, "lora_alpha = None is not a number"),
        ({"lora_dropout": 1}, "lora_dropout = 1 is not a number of at least 0 and below 1"),
        ({"rank_pattern": [3]}, "rank_pattern = [3] is no table of numbers above 0"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern = {'q_proj': 0} is no table of numbers above 0"),
        (
            {"alpha_pattern": {"(a+)+x": 2}},
            "alpha_pattern has the pattern '(a+)+x'; write out the names that it stands for",
        ),
        ({"target_modules": 3}, "target_modules = 3 is no list of names"),
        ({"layers_to_transform": "0"}, "layers_to_transform = '0' is no list of layers"),
    ],
)
def test_settings_that_are_refused(refused, settings, message):
    assert refused(settings) == f"ADAPTER/{ADAPTER}: {message}"


def test_an_adapter_that_changed_its_base(refused):
    assert refused({"init_lora_weights": "pissa"}) == (
        f"ADAPTER/{ADAPTER}: init_lora_weights = 'pissa' changed the base model too; save the adapter as a plain one "
        "with peft: model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=...)"
    )


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ([], f"ADAPTER/{OWN} is not a table; put back the adapter's own {OWN}, or delete it"),
        ({"head": "x"}, f"ADAPTER/{OWN}: head = 'x' does not describe a head for labels"),
        (
            {"head": {"head": "tag", "labels": ["a", "b"], "problem": "single", "pooling": "mean"}},
            f"ADAPTER/{WEIGHTS} has no scores for the 2 labels that {OWN} names",
        ),
    ],
)
def test_a_head_that_is_not_there(refused, own, message):
    assert refused(own=own) == message


def test_a_task_without_its_head(refused):
    assert refused({"task_type": "SEQ_CLS"}) == (
        f"ADAPTER/{WEIGHTS} lacks the head for labels, score.weight, that task_type = 'SEQ_CLS' speaks of"
    )


class TestTensors:
    def test_one_of_a_pair(self, refused):
        assert refused(tensors=lambda found: found.pop(f"{FIRST}B.weight")) == (
            f"ADAPTER/{WEIGHTS} is not whole: layers.0.self_attn.q_proj has no lora_B; copy it again"
        )

    def test_a_layer_that_is_not_there(self, refused):
        def change(found):
            for which in "AB":
                del found[f"{FIRST}{which}.weight"]

        assert refused(tensors=change) == (
            f"ADAPTER/{WEIGHTS} lacks the tensors of 1 layers that {ADAPTER} names: layers.0.self_attn.q_proj"
        )

    def test_tensors_that_belong_nowhere(self, refused):
        def change(found):
            found["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(3, 40)

        assert refused(tensors=change) == (
            f"ADAPTER/{WEIGHTS} has 1 tensors for which there is no place here: embed_tokens.lora_embedding_A"
        )

    def test_a_layer_that_takes_no_adapter(self, refused):
        def change(found):
            found["base_model.model.lm_head.lora_A.weight"] = torch.zeros(3, 24)
            found["base_model.model.lm_head.lora_B.weight"] = torch.zeros(40, 3)

        assert refused(tensors=change) == (
            "ADAPTER is an adapter for base, and changes layers that BASE has not, or that take none: lm_head"
        )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_numbers_that_are_not_finite(self, refused, value):
        def change(found):
            found[f"{FIRST}A.weight"][0, 0] = value

        assert refused(tensors=change) == f"ADAPTER/{WEIGHTS}: values that are not finite in {FIRST}A.weight"

    def test_whole_numbers(self, refused):
        def change(found):
            found[f"{FIRST}A.weight"] = found[f"{FIRST}A.weight"].to(torch.int8)

        assert refused(tensors=change).startswith(f"ADAPTER/{WEIGHTS}: {FIRST}A.weight is of type torch.int8; weights are read")

    def test_another_rank_than_the_settings_say(self, refused):
        message = refused({"r": 4})
        assert message.startswith("ADAPTER is an adapter for base, and does not fit BASE: ")
        assert "layers.0.self_attn.q_proj.lora_A has shape (3, 24), not (4, 24)" in message

    def test_a_file_that_is_cut_short(self, refused, made, tmp_path):
        shutil.copytree(made / "adapter", tmp_path / "adapter")
        path = tmp_path / "adapter" / WEIGHTS
        path.write_bytes(path.read_bytes()[:-10])
        assert refused().startswith(f"ADAPTER/{WEIGHTS} is not a whole safetensors file")

    def test_a_pickle(self, refused, made, tmp_path):
        shutil.copytree(made / "adapter", tmp_path / "adapter")
        (tmp_path / "adapter" / WEIGHTS).rename(tmp_path / "adapter" / PICKLE)
        assert refused() == (
            f"ADAPTER/{PICKLE} is a pickle, which can run any code when it is read, so it is not; "
            "save the adapter again with peft: model.save_pretrained(FOLDER, safe_serialization=True)"
        )
        (tmp_path / "adapter" / PICKLE).unlink()
        assert refused() == f"ADAPTER has no {WEIGHTS}"

    def test_settings_that_are_none(self, refused, made, tmp_path):
        shutil.copytree(made / "adapter", tmp_path / "adapter")
        (tmp_path / "adapter" / ADAPTER).write_text("[]")
        assert refused() == f"ADAPTER/{ADAPTER} is not a table of settings; put back the adapter's own {ADAPTER}"


class TestAnotherBase:
    def test_of_another_shape(self, refused, tmp_path):
        their_base("qwen3", tmp_path / "wide", hidden_size=32)
        message = refused(base=tmp_path / "wide")
        assert message.startswith("ADAPTER is an adapter for base, and does not fit BASE: ")
        assert "layers.0.self_attn.q_proj.lora_A has shape (3, 24), not (3, 32)" in message

    def test_with_fewer_layers(self, refused, tmp_path):
        their_base("qwen3", tmp_path / "flat", num_hidden_layers=1)
        assert refused(base=tmp_path / "flat").startswith(
            "ADAPTER is an adapter for base, and changes layers that BASE has not, or that take none: layers.1."
        )

    def test_with_more_layers(self, refused, tmp_path):
        their_base("qwen3", tmp_path / "deep", num_hidden_layers=3)
        assert refused(base=tmp_path / "deep") == (
            f"ADAPTER/{WEIGHTS} lacks the tensors of 2 layers that {ADAPTER} names: "
            "layers.2.mlp.down_proj, layers.2.self_attn.q_proj"
        )

    def test_of_another_family(self, refused, tmp_path):
        their_base("gpt2", tmp_path / "gpt2")
        assert refused(base=tmp_path / "gpt2").startswith(
            "ADAPTER is an adapter for base, and changes layers that BASE has not"
        )

    def test_of_the_same_shape(self, tmp_path):
        network, other = (randomised(OURS["qwen3"], seed) for seed in (0, 1))
        save_adapter(attach(network, LoRA(), seed=0), tmp_path, base="models/mine")
        with pytest.raises(ModelError) as caught:
            load_adapter(other, read_adapter(tmp_path), base="models/yours")
        assert str(caught.value) == (
            f"{tmp_path} is an adapter for models/mine as it was in training, and the weights of models/yours are others; "
            "put back that base, or name it with: pellucid adapter merge --base"
        )

    def test_the_same_in_another_type_is_the_same(self, tmp_path):
        network = attach(randomised(OURS["qwen3"]).to(torch.bfloat16), LoRA(), seed=0)
        save_adapter(network, tmp_path, base="base")
        again = load_adapter(randomised(OURS["qwen3"]).to(torch.bfloat16).float(), read_adapter(tmp_path), base="base")
        assert len(adapted(again)) == len(adapted(network))

    def test_a_network_with_an_adapter(self, made):
        network = opened(made / "adapter", made / "base")
        with pytest.raises(ConfigError) as caught:
            load_adapter(network, read_adapter(made / "adapter"), base="BASE")
        assert str(caught.value) == "BASE has an adapter already; merge it first, with: pellucid adapter merge"


def test_a_network_without_an_adapter_has_none_to_save(tmp_path):
    with pytest.raises(ModelError, match="the network has no adapter to save; attach one first"):
        save_adapter(randomised(OURS["qwen3"]), tmp_path, base="base")
    assert not list(tmp_path.iterdir())


def test_a_head_whose_labels_are_not_those_of_its_scores(tmp_path):
    network = with_labels(randomised(OURS["bert"]), head="tag", labels=["a", "b", "c"], seed=0)
    save_adapter(attach(network, LoRA(targets=("attn.q",)), seed=0), tmp_path, base="base")
    own = json.loads((tmp_path / OWN).read_text())
    head = own["head"]
    for labels, message in (
        (["a", "b"], f"{tmp_path / WEIGHTS}: classifier.weight has shape (3, 24), not (2, 24); "),
        (["a", "a", "b"], f"{tmp_path / OWN}: labels must differ from one another, not have twice 'a'"),
        ([1, 2, 3], f"{tmp_path / OWN}: head = {{'head': 'tag', 'labels': [1, 2, 3], "),
    ):
        (tmp_path / OWN).write_text(json.dumps(own | {"head": head | {"labels": labels}}))
        with pytest.raises(ModelError) as caught:
            load_adapter(randomised(OURS["bert"]), read_adapter(tmp_path), base="base")
        assert str(caught.value).startswith(message)


def test_a_head_that_transformers_has_not_is_not_taken_for_one_of_its_own(tmp_path):
    """Its scores come from the mean of all positions: with transformers' own pooling it would answer wrongly."""
    base = tmp_path / "base"
    base.mkdir()
    network = randomised(OURS["bert"])
    save_network(network, base)
    network = with_labels(network, head="classify", labels=["a", "b"], pooling="mean", seed=0)
    save_adapter(attach(network, LoRA(targets=("attn.q",)), seed=0), tmp_path, base=str(base))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    with pytest.raises(KeyError, match="classifier"):
        peft.PeftModel.from_pretrained(model, tmp_path)


def test_a_bag_of_words_has_one_too(tmp_path):
    network = attach(randomised(CONFIGS["bag-of-words"]), LoRA(rank=2), seed=0)
    shake(dict(network.named_parameters()), "lora_b")
    save_adapter(network, tmp_path, base="base")
    again = load_adapter(randomised(CONFIGS["bag-of-words"]), read_adapter(tmp_path), base="base")
    assert torch.equal(said_here(again), said_here(network))
