"""Networks that score labels against transformers' classes for them: scores, gradients and files, in both directions."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from test_parity import (
    ENCODERS,
    SEED,
    agree,
    assert_below,
    configs,
    made,
    models,
    opened_by_transformers,
    proof,
    same_gradients,
)
from tiny import randomised

from pellucid.network.labels import with_labels
from pellucid.network.masks import Mask
from pellucid.network.weights import load_network, save_network

FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", *ENCODERS)
STEMS = {"gpt2": "GPT2", "bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
CLASSES = {"classify": "ForSequenceClassification", "tag": "ForTokenClassification"}
PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}
PADDING = {"pad_token_id": 0}
cases = pytest.mark.parametrize(("family", "head"), [(family, head) for family in FAMILIES for head in CLASSES])
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=5)


@st.composite
def labels(draw, head):
    """What the scores are of, and mean."""
    problem = "single" if head == "tag" else draw(st.sampled_from(list(PROBLEMS)))
    return problem, tuple(draw(st.lists(NAMES, min_size=1 + (problem == "single"), max_size=5, unique=True)))


def usual(family):
    """How transformers' class pools."""
    return "first" if family in ENCODERS else "last"


@cases
def test_a_classifier_of_transformers_is_the_same_here(family, head, tmp_path_factory):
    @proof(6)
    @given(spec=models(family), labelled=labels(head), seed=SEED)
    def check(spec, labelled, seed):
        (_, _, fields), (problem, names) = spec, labelled
        fields = PADDING | fields | {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        fields |= {"problem_type": PROBLEMS[problem]} if head == "classify" else {}
        name = f"{STEMS.get(family, family.capitalize())}{CLASSES[head]}"
        model = made(name, {}, fields, seed)
        theirs, ours = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("ours")
        model.save_pretrained(theirs)
        network = load_network(theirs)
        config = network.config
        assert (config.family, config.head, config.labels, config.problem) == (family, head, names, problem)
        assert config.pooling == (usual(family) if head == "classify" else "mean")
        agree(network, model, seed)
        same_gradients(network, model, seed)
        save_network(network, ours, ids={"pad_token_id": fields["pad_token_id"]})
        again = load_network(ours)
        assert again.config == config
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
        agree(again, opened_by_transformers(ours, name, {}), seed)

    check()


@cases
def test_a_classifier_of_ours_is_the_same_in_transformers(family, head, tmp_path_factory):
    @proof(4)
    @given(config=configs(family), labelled=labels(head), seed=SEED)
    def check(config, labelled, seed):
        problem, names = labelled
        pooling = usual(family) if head == "classify" else "mean"
        network = with_labels(randomised(config), head=head, labels=names, problem=problem, pooling=pooling, seed=seed)
        with torch.no_grad():
            network.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
        folder = tmp_path_factory.mktemp("ours")
        save_network(network, folder, end_of_text=0)
        assert load_network(folder).config == network.config
        model = opened_by_transformers(folder, f"AutoModel{CLASSES[head]}", {})
        assert model.config.id2label == dict(enumerate(names))
        assert head == "tag" or model.config.problem_type == PROBLEMS[problem]
        agree(network, model, seed)
        same_gradients(network, model, seed)

    check()


@pytest.mark.parametrize(
    ("family", "pooling"), [(family, "mean") for family in FAMILIES] + [(name, "last") for name in ENCODERS]
)
def test_a_pooling_that_transformers_does_not_have_comes_back_here_and_is_missed_there(family, pooling, tmp_path):
    network = randomised(configs_of(family))
    network = with_labels(network, head="classify", labels=("a", "b", "c"), pooling=pooling, seed=0)
    with torch.no_grad():
        network.head.weight.normal_()
        network.head.bias.normal_()
    save_network(network, tmp_path, end_of_text=0)
    assert json.loads((tmp_path / "config.json").read_text())["classifier_pooling"] == pooling
    again = load_network(tmp_path)
    ids, present = torch.randint(4, 30, (3, 9)), torch.arange(9) < torch.tensor([[9], [4], [1]])
    mask = Mask.for_padded(present, causal=network.config.causal)
    assert again.config == network.config
    assert torch.equal(again(ids, mask).logits, network(ids, mask).logits)
    _, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert any(name.endswith((".weight", ".bias")) for name in report["missing_keys"])
    assert f"{pooling}_classifier.weight" in report["unexpected_keys"]


def configs_of(family):
    """One configuration of a family."""
    from pellucid.network.families import FAMILIES as KNOWN

    fields = {"vocab_size": 30, "context_length": 16, "d_model": 24, "layers": 2, "heads": 4, "kv_heads": 4, "d_head": 6}
    return KNOWN[family].new(**fields, d_mlp=20)


def test_a_batch_that_transformers_cannot_pad_is_one_that_we_can():
    """Texts of one length need no padding token, and the last token is the last."""
    config = replace(configs_of("llama"), head="classify", labels=("a", "b"), pooling="last")
    network = randomised(config)
    ids = torch.randint(0, 30, (2, 7))
    assert_below(network(ids).logits, torch.stack([network(row[None]).logits[0] for row in ids]), 1e-5)
