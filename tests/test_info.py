"""What `pellucid info` says, against the files themselves, and without reading the weights."""

import hashlib
import json
import re
import shutil
from dataclasses import asdict

import pytest
import tiny
from llama_cpp import smollm2

import pellucid
from pellucid.core.gguf import open_gguf
from pellucid.describe import describe
from pellucid.loading import ModelFiles
from pellucid.network.families import FAMILIES
from pellucid.network.weights import save_network
from pellucid.text.tokenizer import Tokenizer

ATTENTION = {"heads": 2, "kv_heads": 2, "d_head": 4, "d_mlp": 16}
SIZES = {"lstm": {}, "bag-of-words": {}, "t5": ATTENTION | {"decoder_layers": 1}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run; nobody may change it."""
    changes = {"tokenizer": {"kind": "bpe", "vocab_size": 300}}
    return tiny.pretrain(tmp_path_factory.mktemp("runs") / "run", steps=2, **changes).path


def test_a_real_model_is_described_without_reading_its_weights(cli, monkeypatch):
    monkeypatch.setattr(ModelFiles, "network", lambda *_, **__: pytest.fail("the weights were read"))
    facts = json.loads(cli("info", smollm2(), "--json")[1])
    assert (facts["family"], facts["architecture"], facts["context_length"]) == ("llama", "decoder", 8192)
    # the published count; all of it is multiplied with, since the head is the embedding
    assert facts["parameters"] == {"total": 134_515_008, "embedding": 49152 * 576, "active": 134_515_008}
    assert facts["memory"]["cache_per_1000_tokens"] == {"fp32": 46_080_000, "bf16": 23_040_000}
    tokenizer = facts["tokenizer"]
    assert (tokenizer["kind"], tokenizer["size"], tokenizer["chat_template"]) == ("bpe", 49152, True)
    assert tokenizer["special"]["<|im_end|>"] == 2
    [file] = facts["files"]
    data = smollm2().read_bytes()
    assert file == {"name": smollm2().name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_memory_of_weights_is_that_of_the_files(run, tmp_path):
    memory = describe(run)["memory"]["weights"]
    for name, dtype in (("fp32", "f32"), ("bf16", "bf16"), ("int8", "q8_0"), ("int4", "q4_0")):
        path = pellucid.convert(run, tmp_path / f"{dtype}.gguf", to="gguf", dtype=dtype)
        assert memory[name] == sum(tensor.data.nbytes for tensor in open_gguf(path).tensors.values())


def test_a_table_for_people(cli, run):
    code, out, error = cli("info", run)
    assert (code, error) == (0, "")
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in out.split("\n\n")[0].splitlines())
    assert lines["path"] == str(run / "model")
    assert lines["tokenizer"] == "bpe, 300 tokens, no chat template"
    assert lines["context"] == "16 tokens"
    assert lines["dimensions"] == "d_model 32, layers 1, heads 2, kv_heads 2, d_head 16, d_mlp 64"
    sha = hashlib.sha256((run / "model/model.safetensors").read_bytes()).hexdigest()
    [line] = [line for line in out.splitlines() if "model.safetensors" in line]
    assert line.split()[0] == "model.safetensors"
    assert line.endswith(sha)
    assert "SHA-256" not in cli("info", run, "--no-hashes")[1]
    assert sha not in cli("info", run, "--no-hashes")[1]


def test_everything_about_the_network_is_in_the_json(cli, run):
    facts = json.loads(cli("info", run, "--json", "--sites")[1])
    assert facts["config"] == json.loads(json.dumps(asdict(pellucid.load(run).config)))
    assert facts["config"] == describe(run)["config"]
    assert [site["name"] for site in facts["sites"]] == [site.name for site in pellucid.load(run).sites()]
    assert [file["name"] for file in facts["files"]] == sorted(path.name for path in (run / "model").iterdir())


def test_a_model_without_a_tokenizer_is_described_all_the_same(cli, run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    (tmp_path / "model/tokenizer.json").unlink()
    code, out, _ = cli("info", tmp_path / "model")
    assert code == 0
    assert f"tokenizer     {tmp_path / 'model'} has no tokenizer (" in out


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_described(cli, run, tmp_path, name):
    known = FAMILIES[name]
    config = known.new(vocab_size=300, context_length=16, d_model=8, layers=1, **SIZES.get(name, ATTENTION))
    network = tiny.randomised(config)
    save_network(network, tmp_path)
    Tokenizer.load(run / "model").save(tmp_path)
    facts = describe(tmp_path)
    assert facts["parameters"]["total"] == sum(weight.numel() for weight in network.parameters())
    assert bool(facts["memory"]["cache_per_1000_tokens"]) == (config.architecture in ("decoder", "encoder-decoder"))
    assert cli("info", tmp_path)[0] == 0


def test_labels_and_what_their_scores_mean_are_told(cli, run, tmp_path):
    labels = ("bad", "[bold]good")
    config = tiny.config(300, head="classify", labels=labels, problem="multi", pooling="last")
    save_network(tiny.randomised(config), tmp_path)
    Tokenizer.load(run / "model").save(tmp_path)
    assert json.loads(cli("info", tmp_path, "--json")[1])["config"]["labels"] == list(labels)
    [line] = [line for line in cli("info", tmp_path)[1].splitlines() if line.startswith("labels ")]
    assert line.split(maxsplit=1)[1] == (
        "2: bad, [bold]good (of a text any may be right: a sigmoid of each score; pooling last)"
    )


def test_what_is_not_whole_is_not_described(cli, run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    code, _, error = cli("info", tmp_path / "model")
    assert (code, error.startswith(f"pellucid: {path} is not a whole safetensors file")) == (2, True)
