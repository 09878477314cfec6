"""Labels in `config.json`: as transformers writes them, as people damage them, and as somebody hostile would."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import randomised

from pellucid.core.errors import PellucidError
from pellucid.describe import describe_labels
from pellucid.network.families import FAMILIES
from pellucid.network.weights import load_into, load_network, read_config, save_network

SMALL = {"vocab_size": 11, "context_length": 8, "d_model": 8, "layers": 1, "d_mlp": 6, "heads": 2, "kv_heads": 2, "d_head": 4}
LABELS = ("no", "yes", "perhaps")


def save(folder, family="llama", **changes):
    fields = {"head": "classify", "labels": LABELS, "pooling": "last"} | changes
    network = randomised(FAMILIES[family].new(**SMALL | fields))
    save_network(network, folder, end_of_text=10)
    return network


def settings(folder, **changes):
    """The fields of `config.json`, after changes; None takes a field away."""
    path = folder / "config.json"
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in found.items() if name not in changes or value is not None}))
    return found


def complaint(folder, load=load_network):
    with pytest.raises(PellucidError) as caught:
        load(folder)
    return str(caught.value).replace(str(folder), "FOLDER")


def test_what_is_written_is_what_transformers_writes(tmp_path):
    save(tmp_path)
    found = settings(tmp_path)
    assert found["architectures"] == ["LlamaForSequenceClassification"]
    assert found["id2label"] == {"0": "no", "1": "yes", "2": "perhaps"}
    assert found["label2id"] == {"no": 0, "yes": 1, "perhaps": 2}
    assert found["problem_type"] == "single_label_classification"
    assert found["pad_token_id"] == 10
    assert "num_labels" not in found
    assert "classifier_pooling" not in found
    assert "score.weight" in load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("ids", "written"),
    [
        ({"pad_token_id": 3}, 3),
        ({"eos_token_id": 4}, 4),
        ({"eos_token_id": [5, 6]}, 5),
        ({"eos_token_id": []}, None),
        ({}, None),
    ],
)
def test_padding_is_named_for_transformers_to_find_the_last_token(ids, written, tmp_path):
    network = randomised(FAMILIES["gpt2"].new(**SMALL, head="classify", labels=LABELS, pooling="last"))
    save_network(network, tmp_path, ids=ids)
    assert settings(tmp_path)["pad_token_id"] == written
    save_network(randomised(FAMILIES["gpt2"].new(**SMALL)), tmp_path, ids={"eos_token_id": 4})
    assert settings(tmp_path)["pad_token_id"] is None


def test_the_meaning_of_scores_follows_from_their_number_where_it_is_not_said(tmp_path):
    save(tmp_path, problem="multi")
    settings(tmp_path, problem_type=None)
    assert read_config(tmp_path).problem == "single"
    save(tmp_path, labels=("grade",), problem="regression")
    settings(tmp_path, problem_type=None)
    assert read_config(tmp_path).problem == "regression"


def test_labels_without_names_are_counted(tmp_path):
    save(tmp_path)
    settings(tmp_path, id2label=None, label2id=None, num_labels=3)
    assert load_network(tmp_path).config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    settings(tmp_path, num_labels=None)
    assert read_config(tmp_path).labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize("ids", [None, {"no": 0, "yes": 1, "perhaps": 2}, {"no": "0", "yes": "1", "perhaps": "2"}])
def test_ids_as_numbers_as_texts_and_not_at_all(ids, tmp_path):
    network = save(tmp_path)
    settings(tmp_path, label2id=ids, num_labels=3)
    assert load_network(tmp_path).config == network.config


def test_labels_of_a_language_model_mean_nothing(tmp_path):
    """transformers writes two by default, whatever the network does."""
    save_network(randomised(FAMILIES["llama"].new(**SMALL)), tmp_path)
    settings(tmp_path, id2label={"0": "LABEL_0", "1": "LABEL_1"}, problem_type="none", classifier_pooling=7)
    assert read_config(tmp_path).labels == ()


def test_tags_have_no_meaning_of_their_own_and_may_come_with_a_pooler(tmp_path):
    """The pooler of the first BERT taggers is in their files, and read by nothing."""
    save(tmp_path, "bert", head="tag", pooling="mean", token_types=2, pooler=True)
    assert "problem_type" not in settings(tmp_path, problem_type="regression")["architectures"]
    network = load_network(tmp_path)
    assert (network.config.problem, network.config.pooler) == ("single", True)
    assert network(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 3)


WHERE = "FOLDER/config.json: "
SINGLE = "problem_type must be one of single_label_classification, multi_label_classification, regression, not "


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"id2label": 3}, "id2label must be a table of ids and labels, not 3"),
        ({"id2label": []}, "id2label must be a table of ids and labels, not []"),
        ({"id2label": {}}, "id2label must be a table of ids and labels, not {}"),
        ({"id2label": "no, yes"}, "id2label must be a table of ids and labels, not 'no, yes'"),
        ({"id2label": {"0": "no", "2": "yes"}}, "id2label must name the labels 0 to 1, and has no 1"),
        ({"id2label": {"1": "no", "2": "yes"}}, "id2label must name the labels 0 to 1, and has no 0"),
        ({"id2label": {"no": 0, "yes": 1}}, "id2label must name the labels 0 to 1, and has no 0"),
        ({"id2label": {"-1": "no", "0": "yes"}}, "id2label must name the labels 0 to 1, and has no 1"),
        ({"id2label": {"0": "no", "01": "yes"}}, "id2label must name the labels 0 to 1, and has no 1"),
        ({"id2label": {"0": "no", "999999999": "yes"}}, "id2label must name the labels 0 to 1, and has no 1"),
        ({"id2label": {"0": "no", "1": None}}, "id2label must have names as labels, not None"),
        ({"id2label": {"0": "no", "1": ["yes"]}}, "id2label must have names as labels, not ['yes']"),
        ({"id2label": {"0": 0, "1": 1}}, "id2label must have names as labels, not 0"),
        ({"id2label": {"0": "no", "1": "no"}}, "labels must differ from one another, not have twice 'no'"),
        ({"id2label": {"0": "layers", "1": "layers"}}, "labels must differ from one another, not have twice 'layers'"),
        ({"id2label": {"0": "no", "1": " "}}, "labels must be names, not ' '"),
        ({"id2label": {"0": "no", "1": "\ud800"}}, r"labels must be names, not '\ud800'"),
        ({"num_labels": 4}, "num_labels = 4 contradicts id2label, which has 3 labels"),
        ({"num_labels": "3"}, "num_labels = '3' contradicts id2label, which has 3 labels"),
        ({"id2label": None, "num_labels": 10**9}, "num_labels must be a whole number from 1 to 1,048,576, not 1000000000"),
        ({"id2label": None, "num_labels": 0}, "num_labels must be a whole number from 1 to 1,048,576, not 0"),
        ({"id2label": None, "num_labels": True}, "num_labels must be a whole number from 1 to 1,048,576, not True"),
        ({"id2label": None, "num_labels": 2.0}, "num_labels must be a whole number from 1 to 1,048,576, not 2.0"),
        ({"label2id": []}, "label2id must be a table of labels and ids, not []"),
        (
            {"label2id": {"no": 1, "yes": 0, "perhaps": 2}},
            "label2id contradicts id2label: 'no' is label 0, but label2id says 1",
        ),
        (
            {"label2id": {"no": 0, "perhaps": 2}},
            "label2id contradicts id2label: 'yes' is label 1, but label2id does not have it",
        ),
        (
            {"label2id": {"no": 0, "yes": True, "perhaps": 2}},
            "label2id contradicts id2label: 'yes' is label 1, but label2id says True",
        ),
        (
            {"label2id": {"no": 0, "yes": 1, "perhaps": [2]}},
            "label2id contradicts id2label: 'perhaps' is label 2, but label2id says [2]",
        ),
        (
            {"label2id": {"no": 0, "yes": 1, "perhaps": 2, "never": 3}},
            "label2id has the label 'never', which id2label does not have",
        ),
        ({"problem_type": "ranking"}, f"{SINGLE}'ranking'"),
        ({"problem_type": ["regression"]}, f"{SINGLE}['regression']"),
        ({"classifier_pooling": "cls"}, "classifier_pooling must be one of mean, first, last, not 'cls'"),
        ({"classifier_pooling": {}}, "classifier_pooling must be one of mean, first, last, not {}"),
        (
            {"classifier_pooling": "first"},
            "the first position of a decoder sees one token only: pool mean or last, not first",
        ),
        (
            {"id2label": {"0": "no"}, "label2id": {"no": 0}},
            "a text that has one of the labels (single) needs at least 2 to choose from, not ('no',)",
        ),
        (
            {"architectures": ["T5ForSequenceClassification"]},
            "architectures = 'T5ForSequenceClassification' is not supported for llama; known are LlamaModel, LlamaForCausalLM, "
            "LlamaForSequenceClassification, LlamaForTokenClassification",
        ),
    ],
)
def test_hostile_labels_are_one_sentence(fields, sentence, tmp_path):
    save(tmp_path)
    unsaid = {"label2id": None} if "id2label" in fields and "label2id" not in fields else {}
    settings(tmp_path, **unsaid | fields)
    assert complaint(tmp_path) == WHERE + sentence


@pytest.mark.parametrize("classes", [None, [], 3, "LlamaForSequenceClassification", [None], [["x"]], ["LlamaForCausalLM"], {}])
def test_without_its_class_a_classifier_is_a_language_model_with_other_tensors(classes, tmp_path):
    save(tmp_path)
    settings(tmp_path, architectures=classes)
    said = "has 1 tensors that the configuration knows nothing of: score.weight"
    assert complaint(tmp_path) == f"FOLDER/model.safetensors {said}"


def test_other_numbers_of_labels_than_the_weights_have_are_refused_at_once(tmp_path):
    save(tmp_path)
    settings(tmp_path, id2label=None, label2id=None, num_labels=2**20)
    started = time.monotonic()
    said = "score.weight has shape (3, 8), but the configuration asks for (1048576, 8)"
    assert complaint(tmp_path) == f"FOLDER/model.safetensors: {said}"
    assert time.monotonic() - started < 5


def test_another_pooling_asks_for_another_tensor(tmp_path):
    """So that nobody reads weights that were made for the mean as those of the last token, or the other way round."""
    save(tmp_path)
    settings(tmp_path, classifier_pooling="mean")
    assert complaint(tmp_path) == (
        "FOLDER/model.safetensors lacks 2 of 13 tensors: mean_classifier.bias, mean_classifier.weight; "
        "has 1 tensors that the configuration knows nothing of: score.weight"
    )


def test_weights_are_put_into_a_network_that_learns(tmp_path):
    network = save(tmp_path, "distilbert", pooling="first", pooler=True)
    other = randomised(network.config, seed=1)
    load_into(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"pre_classifier.weight": torch.full((8, 8), torch.nan)}, path)
    said = "FOLDER/model.safetensors: values that are not finite in pre_classifier.weight"
    assert complaint(tmp_path) == said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": LABELS}, "3: no, yes, perhaps (of a text one is right: softmax over scores; pooling mean)"),
        (
            {"labels": LABELS, "problem": "multi", "pooling": "last"},
            "3: no, yes, perhaps (of a text any may be right: a sigmoid of each score; pooling last)",
        ),
        (
            {"labels": ("grade",), "problem": "regression"},
            "1: grade (of a text each is a number: the score itself; pooling mean)",
        ),
        ({"labels": LABELS, "head": "tag"}, "3: no, yes, perhaps (of every token one is right: softmax over scores)"),
        (
            {"labels": tuple(map(str, range(1008))), "head": "tag"},
            "1,008: 0, 1, 2, 3, 4, 5, 6, 7 and 1,000 more (of every token one is right: softmax over scores)",
        ),
    ],
)
def test_labels_are_described(fields, said):
    config = FAMILIES["llama"].new(**SMALL | {"head": "classify"} | fields)
    assert describe_labels(vars(config)) == said
