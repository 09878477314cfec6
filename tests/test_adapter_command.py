"""`pellucid adapter merge` and adapters as models: what is served with the adapter is what is written without it."""

import json
import shutil

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

import pellucid
from pellucid.network.adapters import LoRA, adapted, attach
from pellucid.network.families import FAMILIES
from pellucid.network.labels import with_labels
from pellucid.network.peft import save_adapter
from pellucid.network.weights import save_network

TEXT = "Alice was be"


def shaken(network, seed=0, **options):
    """The network with an adapter, and a head for labels if it has one, that say something."""
    attach(network, LoRA(**options), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("lora_b") or name.startswith("head."):
                weight.normal_(0.0, 0.2, generator=generator)
    return network


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, and beside it an adapter on it that names it by a relative path; nobody may change them."""
    folder = tmp_path_factory.mktemp("made")
    run = tiny.pretrain(folder / "run", steps=4)
    save_adapter(shaken(run.model.network, rank=4), folder / "adapter", base="../run")
    return folder


@pytest.fixture
def merge(cli, tmp_path):
    """The command's one sentence for what it refuses; nothing is written."""

    def call(adapter, *words):
        code, out, err = cli("adapter", "merge", adapter, "--out", tmp_path / "merged", *words)
        assert (code, out) == (2, "")
        assert err.startswith("pellucid: ")
        assert err.count("\n") == 1
        assert not list(tmp_path.glob("*merged*"))
        return err.removeprefix("pellucid: ").rstrip("\n")

    return call


@torch.no_grad()
def logits(model):
    return model(torch.tensor([model.tokenizer.encode(TEXT)])).logits


def test_from_an_adapter_to_a_model_that_stands_alone(cli, made, tmp_path):
    adapter, run = pellucid.load(made / "adapter"), pellucid.load(made / "run")
    assert len(adapted(adapter.network)) == 7
    assert not adapter.network.training
    assert not any(weight.requires_grad for weight in adapter.network.parameters())
    assert adapter.tokenizer.fingerprint == run.tokenizer.fingerprint
    assert (logits(adapter) - logits(run)).abs().max() > 1e-2

    code, out, err = cli("adapter", "merge", made / "adapter", "--out", tmp_path / "merged")
    assert (code, out, err) == (0, f"{tmp_path / 'merged'}: written\n", "")
    shutil.copytree(tmp_path / "merged", tmp_path / "elsewhere/merged")
    merged = pellucid.load(tmp_path / "elsewhere/merged")
    assert not adapted(merged.network)
    assert (logits(merged) - logits(adapter)).abs().max() < 1e-4
    assert merged.generate(TEXT, max_tokens=4, temperature=0).text == adapter.generate(TEXT, max_tokens=4, temperature=0).text
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        said = theirs(torch.tensor([merged.tokenizer.encode(TEXT)])).logits
    assert (said - logits(adapter)).abs().max() < 1e-4
    assert not {"adapter_config.json", "adapter_model.safetensors"} & {path.name for path in (tmp_path / "merged").iterdir()}


def test_a_loaded_adapter_saves_what_it_answers(made, tmp_path):
    model = pellucid.load(made / "adapter")
    before = logits(model)
    model.save(tmp_path / "saved")
    assert torch.equal(logits(model), before)
    assert len(adapted(model.network)) == 7
    assert (logits(pellucid.load(tmp_path / "saved")) - before).abs().max() < 1e-4


def test_the_base_is_found_from_where_one_is_or_from_the_adapter(made, tmp_path, monkeypatch):
    expected = logits(pellucid.load(made / "adapter"))
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(pellucid.load(made / "adapter")), expected)
    shutil.copytree(made / "adapter", tmp_path / "a/b/adapter")
    shutil.copytree(made / "run", tmp_path / "a/run")
    monkeypatch.chdir(tmp_path / "a/b")
    assert torch.equal(logits(pellucid.load("adapter")), expected)


def test_a_base_that_has_moved_can_be_named(cli, made, tmp_path):
    shutil.copytree(made / "adapter", tmp_path / "adapter")
    words = ("adapter", "merge", tmp_path / "adapter", "--out", tmp_path / "merged")
    assert cli(*words, "--base", made / "run")[0] == 0
    assert (logits(pellucid.load(tmp_path / "merged")) - logits(pellucid.load(made / "adapter"))).abs().max() < 1e-4


@pytest.mark.parametrize(("word", "dtype"), [("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_the_type_of_the_merged_weights(cli, made, tmp_path, word, dtype):
    assert cli("adapter", "merge", made / "adapter", "--out", tmp_path / "merged", "--dtype", word)[0] == 0
    network = pellucid.load(tmp_path / "merged").network
    assert {weight.dtype for weight in network.parameters()} == {dtype}


def test_an_adapter_can_be_opened_in_another_type(made):
    network = pellucid.load(made / "adapter", dtype="bf16").network
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    assert len(adapted(network)) == 7


def test_force_replaces_a_model_only(cli, made, tmp_path):
    words = ("adapter", "merge", made / "adapter", "--out", tmp_path / "merged")
    assert cli(*words)[0] == 0
    code, _, err = cli(*words)
    assert (code, "exists already" in err) == (2, True)
    assert cli(*words, "--force")[0] == 0
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/precious.txt").write_text("x")
    code, _, err = cli("adapter", "merge", made / "adapter", "--out", tmp_path / "letters", "--force")
    assert (code, "will not be replaced" in err) == (2, True)
    assert (tmp_path / "letters/precious.txt").exists()


def test_an_adapter_with_its_own_tokenizer_uses_it(made, tmp_path):
    shutil.copytree(made / "adapter", tmp_path / "adapter")
    shutil.copytree(made / "run", tmp_path / "run")
    tokenizer = pellucid.load(made / "run").tokenizer
    tokenizer.save(tmp_path / "adapter")
    path = tmp_path / "adapter/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": "{{ messages }}"}))
    assert pellucid.load(tmp_path / "adapter").tokenizer.chat_template == "{{ messages }}"
    assert pellucid.load(made / "adapter").tokenizer.chat_template is None


@torch.no_grad()
@pytest.mark.parametrize(("family", "pooling"), [("bert", "first"), ("bert", "mean"), ("qwen3", "last")])
def test_a_classifier_takes_its_head_along(cli, made, tmp_path, family, pooling):
    tokenizer = pellucid.load(made / "run").tokenizer
    sizes = {"context_length": 32, "d_model": 24, "layers": 1, "heads": 2, "kv_heads": 2, "d_head": 12, "d_mlp": 40}
    network = tiny.randomised(FAMILIES[family].new(vocab_size=tokenizer.vocab_size, **sizes))
    (tmp_path / "base").mkdir()
    save_network(network, tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    labelled = with_labels(network, head="classify", labels=["dull", "fine"], problem="multi", pooling=pooling, seed=0)
    save_adapter(shaken(labelled, targets=("attn.v",)), tmp_path / "adapter", base=str(tmp_path / "base"))
    ids = torch.tensor([tokenizer.encode(TEXT)])
    model = pellucid.load(tmp_path / "adapter")
    assert (model.config.labels, model.config.problem, model.config.pooling) == (("dull", "fine"), "multi", pooling)
    assert torch.equal(model(ids).logits, labelled(ids).logits)
    assert cli("adapter", "merge", tmp_path / "adapter", "--out", tmp_path / "merged")[0] == 0
    shutil.rmtree(tmp_path / "base")
    merged = pellucid.load(tmp_path / "merged")
    assert merged.config == model.config
    assert (merged(ids).logits - labelled(ids).logits).abs().max() < 1e-4


class TestRefused:
    def test_a_model_that_is_no_adapter(self, merge, made):
        assert merge(made / "run") == (
            f"{made / 'run/model'} is not an adapter: it has no adapter_config.json; "
            "name a folder that `finetune` or peft wrote"
        )

    def test_a_path_that_is_not_there(self, merge, made):
        assert merge(made / "nothing").startswith(f"{made / 'nothing'} does not exist")

    def test_a_base_that_is_not_there(self, merge, made, tmp_path):
        shutil.copytree(made / "adapter", tmp_path / "adapter")
        assert merge(tmp_path / "adapter") == (
            f"{tmp_path / 'adapter'} is an adapter for ../run, which cannot be opened "
            "(../run does not exist; give a run folder, a model folder, a .gguf file, a llama2.c .bin file, "
            "or a model's name on the hub); put that model there, or name it with: pellucid adapter merge --base"
        )

    def test_another_base(self, merge, made, tmp_path):
        save_network(tiny.randomised(tiny.config(52, d_model=24, d_head=12)), tmp_path)
        pellucid.load(made / "run").tokenizer.save(tmp_path)
        assert merge(made / "adapter", "--base", tmp_path).startswith(
            f"{made / 'adapter'} is an adapter for ../run, and does not fit {tmp_path}: "
        )

    def test_the_same_base_trained_further(self, merge, made, tmp_path):
        other = tiny.pretrain(tmp_path / "other", steps=6).path
        assert merge(made / "adapter", "--base", other) == (
            f"{made / 'adapter'} is an adapter for ../run as it was in training, and the weights of {other} are others; "
            "put back that base, or name it with: pellucid adapter merge --base"
        )

    def test_an_adapter_as_a_base(self, merge, made):
        assert merge(made / "adapter", "--base", made / "adapter") == (
            f"{made / 'adapter'} is an adapter; make a model of it first, "
            f"with: pellucid adapter merge {made / 'adapter'} --out FOLDER"
        )

    def test_an_adapter_that_names_itself(self, merge, made, tmp_path):
        shutil.copytree(made / "adapter", tmp_path / "adapter")
        path = tmp_path / "adapter/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(path.parent)}))
        assert "is an adapter; make a model of it first" in merge(tmp_path / "adapter")

    def test_commands_that_need_a_whole_model(self, cli, made, tmp_path):
        for words in (("convert", made / "adapter", tmp_path / "a.gguf", "--to", "gguf"), ("info", made / "adapter")):
            code, out, err = cli(*words)
            assert (code, out) == (2, "")
            assert "is an adapter; make a model of it first, with: pellucid adapter merge" in err
        assert not (tmp_path / "a.gguf").exists()

    def test_a_tokenizer_with_more_tokens_than_the_base(self, merge, made, tmp_path):
        shutil.copytree(made / "adapter", tmp_path / "adapter")
        tokenizer = pellucid.load(made / "run").tokenizer
        tokenizer.backend.add_special_tokens(["<|one|>"])
        tokenizer.save(tmp_path / "adapter")
        assert merge(tmp_path / "adapter", "--base", made / "run") == (
            f"{tmp_path / 'adapter'}: the tokenizer has 53 tokens, but the network's vocabulary is 52; "
            "put back the tokenizer that belongs to it"
        )

    def test_a_type_that_there_is_not(self, merge, made):
        assert "q8_0" in merge(made / "adapter", "--dtype", "q8_0")


def test_the_help_teaches(cli):
    _, out, _ = cli("adapter", "merge", "--help")
    for word in ("adapter_config.json", "--base", "--dtype", "--force", "peft"):
        assert word in out
