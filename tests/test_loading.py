"""Models in every form there is: each is opened whole, or refused in one sentence."""

import json
import random
import shutil

import pytest
import tiny
import torch
from llama_cpp import smollm2

import pellucid
from pellucid import loading
from pellucid.core.errors import ConfigError, ModelError, PellucidError, TokenizerError
from pellucid.loading import FORMS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run; nobody may change it."""
    changes = {"tokenizer": {"kind": "bpe", "vocab_size": 300}}
    return tiny.pretrain(tmp_path_factory.mktemp("runs") / "run", steps=4, training={"checkpoint_every": 2}, **changes)


def message(error, call, *arguments, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_every_form_is_the_same_model(run, tmp_path):
    model = run.model
    pellucid.convert(run.path, tmp_path / "model.gguf", to="gguf")
    pellucid.convert(run.path, tmp_path / "folder", to="hf")
    expected = model.generate("Alice was", max_tokens=8, temperature=0.0)
    for path in (run.path, run.path / "model", tmp_path / "model.gguf", str(tmp_path / "folder")):
        loaded = pellucid.load(path)
        assert loaded.generate("Alice was", max_tokens=8, temperature=0.0).tokens == expected.tokens, path
        assert loaded.config.context_length == 16
    assert pellucid.load(tmp_path / "model.gguf").path == tmp_path / "model.gguf"


def test_a_real_model_knows_the_capital_of_france():
    model = pellucid.load(smollm2())
    assert model.generate("The capital of France is", max_tokens=3, temperature=0.0).text == " Paris.\n"
    assert model.tokenizer.chat_template is not None


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_weights_have_the_type_that_is_asked_for(run, name, dtype):
    model = pellucid.load(run.path, dtype=name)
    assert {weight.dtype for weight in model.network.parameters()} == {dtype}
    assert model.generate("Alice", max_tokens=3).tokens


@pytest.mark.parametrize("precision", ["fp32", "bf16", "f16", "int8", "int4"])
def test_a_model_of_any_form_can_be_held_for_reading(run, tmp_path, precision):
    pellucid.convert(run.path, tmp_path / "model.gguf", to="gguf")
    texts = set()
    for path in (run.path, tmp_path / "model.gguf"):
        loaded = pellucid.load(path, precision=precision)
        assert loaded.network.held.precision == precision
        texts.add(tuple(loaded.generate("Alice was", max_tokens=8, seed=2).logprobs))
    assert len(texts) == 1
    assert message(ModelError, loaded.save, tmp_path / "copy") == (
        f"a model loaded with precision {precision!r} cannot be saved; load it without one"
    )
    assert not (tmp_path / "copy").exists()


def test_a_precision_that_cannot_be_is_refused(run):
    assert message(ConfigError, pellucid.load, run.path, precision="int8", dtype="bf16") == (
        "dtype 'bf16' and precision 'int8' both say how weights are held; leave one out"
    )
    assert message(ConfigError, pellucid.load, run.path, group=64) == (
        "group and symmetric have no effect without precision='int4'; leave them out"
    )


def test_a_type_that_there_is_not_is_named(run):
    expected = "dtype must be one of fp32, bf16, f16, not 'int8'"
    assert message(ConfigError, pellucid.load, run.path, dtype="int8") == expected


@pytest.mark.parametrize("device", ["gpu", "cuda:999", "mps"])
def test_a_device_that_there_is_not_is_named(run, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = message(ConfigError, pellucid.load, run.path, device=device)
    assert text == f"device {device!r} is none that torch {torch.__version__} sees here; use cpu, or cuda with a GPU"


class TestHub:
    @pytest.fixture
    def asked(self, monkeypatch, run):
        asked = []

        def fetch(name, *, revision=None):
            asked.append((name, revision))
            return run.path / "model"

        monkeypatch.setattr(loading, "fetch_model", fetch)
        return asked

    def test_a_name_that_is_no_path_is_one_of_the_hub(self, asked, run):
        assert pellucid.load("owner/name", revision="v1").path == run.path / "model"
        assert asked == [("owner/name", "v1")]

    def test_a_path_comes_first(self, asked, run, tmp_path, monkeypatch):
        shutil.copytree(run.path / "model", tmp_path / "owner/name")
        monkeypatch.chdir(tmp_path)
        assert str(pellucid.load("owner/name").path) == "owner/name"
        assert asked == []

    def test_what_cannot_be_a_name_is_a_path_that_does_not_exist(self, asked, tmp_path):
        for source in (tmp_path / "gone", str(tmp_path / "gone"), "a/b/c", "../gone"):
            assert message(ModelError, pellucid.load, source) == f"{source} does not exist; give {FORMS}"
        assert asked == []

    def test_a_revision_of_a_path_has_no_effect_and_is_refused(self, run):
        expected = f"revision 'v1' has no effect on {run.path}, which is not from the hub; leave it out"
        assert message(ConfigError, pellucid.load, run.path, revision="v1") == expected

    def test_a_misspelt_path_is_said_to_be_neither(self):
        text = message(ModelError, pellucid.load, "runs/bsae")
        assert text.startswith("runs/bsae is no path here, and no model of the hub: ")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "notes.txt"])
def test_a_file_of_another_kind_is_no_model(run, tmp_path, name):
    (tmp_path / name).write_bytes(b"whatever")
    assert message(ModelError, pellucid.load, tmp_path / name) == f"{tmp_path / name} is not a model; give {FORMS}"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.PT", "weights.pkl"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"whatever")
    assert message(ModelError, pellucid.load, tmp_path / name) == (
        f"{tmp_path / name} is a pickle, which can run any code when it is read, so it is not; convert it with "
        "transformers: AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER, safe_serialization=True)"
    )


def test_a_folder_of_gguf_files_asks_which(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    expected = f"{tmp_path} has no config.json, but 2 .gguf files; name one of them, such as {tmp_path / 'a.gguf'}"
    assert message(ModelError, pellucid.load, tmp_path) == expected


def test_a_model_without_a_tokenizer_says_so(run, tmp_path):
    shutil.copytree(run.path / "model", tmp_path / "model")
    (tmp_path / "model/tokenizer.json").unlink()
    assert message(TokenizerError, pellucid.load, tmp_path / "model").startswith(f"{tmp_path / 'model'} has no tokenizer (")


def test_a_flipped_byte_in_a_file_that_we_sealed_is_noticed(run, tmp_path):
    pellucid.convert(run.path, tmp_path / "folder", to="hf")
    path = tmp_path / "folder/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert message(PellucidError, pellucid.load, tmp_path / "folder").startswith(f"{path} is damaged (its SHA-256")
    assert message(PellucidError, pellucid.convert, tmp_path / "folder", tmp_path / "x.gguf", to="gguf").startswith(
        f"{path} is"
    )
    assert not (tmp_path / "x.gguf").exists()


def test_damaged_tokenizers_open_or_are_one_sentence(run, tmp_path):
    shutil.copytree(run.path / "model", tmp_path / "model")
    path, chance, opened, said = tmp_path / "model/tokenizer.json", random.Random(0), 0, []
    whole = json.loads(path.read_text())
    for number in range(200):
        path.write_bytes(damaged(whole, chance) if number % 2 else json.dumps(changed(whole, chance)).encode())
        try:
            pellucid.load(tmp_path / "model").generate("Alice was", max_tokens=2)
            opened += 1
        except PellucidError as error:
            said.append(str(error))
    assert opened > 20
    assert len(said) > 20


def damaged(value, chance):
    """JSON with a few wrong bytes."""
    data = bytearray(json.dumps(value).encode())
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def changed(value, chance):
    """JSON that is whole, but says something else in one place."""
    copy = json.loads(json.dumps(value))
    place = copy
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.8:
            place = place[key]
            continue
        if chance.random() < 0.3:
            del place[key]
        else:
            place[key] = chance.choice([None, True, -1, 2**40, 0.5, "", "a", [], {}, ["a"], {"type": "BPE"}])
        return copy
