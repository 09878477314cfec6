"""What `pellucid convert` writes: transformers and llama.cpp are the judges of the ids and of the answers."""

import json
import math
import shutil

import pytest
import tiny
import torch
from llama_cpp import LlamaCpp, smollm2
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import pellucid
from pellucid import converting
from pellucid.core.errors import ConfigError, ModelError, PellucidError, TokenizerError
from pellucid.core.gguf import open_gguf
from pellucid.loading import open_files
from pellucid.network.families import FAMILIES
from pellucid.network.weights import save_network
from pellucid.text.tokenizer import Tokenizer

PROMPTS = ["The capital of France is", "def add(a, b):\n    return", " 1234 dogs, naïve café 天地 😀\n\n", "x"]
CHAT = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with byte-pair tokens; nobody may change it."""
    changes = {"tokenizer": {"kind": "bpe", "vocab_size": 300}, "model": {"context_length": 64}}
    return tiny.pretrain(tmp_path_factory.mktemp("runs") / "run", steps=4, **changes).path


@pytest.fixture(scope="module")
def smollm():
    return pellucid.load(smollm2())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SmolLM2 as a Hugging Face folder; nobody may change it."""
    return pellucid.convert(smollm2(), tmp_path_factory.mktemp("smollm2") / "hf", to="hf")


def message(error, call, *arguments, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    return str(caught.value)


def greedy(model, ids, tokens):
    return model.generate(ids, max_tokens=tokens, temperature=0.0).tokens


class TestTransformers:
    def test_a_real_model_is_the_same_one_there(self, smollm, folder):
        theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert {weight.dtype for weight in theirs.parameters()} == {torch.float32}
        for prompt in PROMPTS:
            assert tokenizer(prompt)["input_ids"] == smollm.tokenizer.encode(prompt, framed=True), prompt
        ids = tokenizer("The capital of France is", return_tensors="pt")
        made = theirs.generate(**ids, max_new_tokens=8, do_sample=False)[0].tolist()
        assert made == [*ids["input_ids"][0].tolist(), *greedy(smollm, "The capital of France is", 8)]
        assert tokenizer.apply_chat_template(CHAT, tokenize=False).endswith("<|im_start|>user\nName a colour.<|im_end|>\n")
        assert (theirs.generation_config.eos_token_id, theirs.generation_config.pad_token_id) == (2, 2)

    def test_ids_that_end_a_text_are_those_of_the_folder_it_came_from(self, run, tmp_path):
        shutil.copytree(run / "model", tmp_path / "source")
        (tmp_path / "source/generation_config.json").write_text('{"eos_token_id": [0, 7], "temperature": 0.6}')
        pellucid.convert(tmp_path / "source", tmp_path / "copy", to="hf")
        assert json.loads((tmp_path / "copy/generation_config.json").read_text())["eos_token_id"] == [0, 7]
        assert json.loads((tmp_path / "copy/config.json").read_text())["eos_token_id"] == [0, 7]
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "copy").generation_config.eos_token_id == [0, 7]


class TestLlamaCpp:
    def test_a_model_trained_here_runs_there(self, run, tmp_path):
        model, judge = pellucid.load(run), LlamaCpp(pellucid.convert(run, tmp_path / "tiny.gguf", to="gguf"))
        for prompt in ["Alice was", *PROMPTS]:
            ids = model.tokenizer.encode(prompt)
            assert judge.encode(prompt) == ids, prompt
        ids = model.tokenizer.encode("Alice was beginning")
        assert judge.greedy(ids, 20) == greedy(model, ids, 20)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["f32", "q8_0"])
    @torch.no_grad()
    def test_a_real_model_runs_there(self, smollm, tmp_path, dtype):
        path = pellucid.convert(smollm2(), tmp_path / "model.gguf", to="gguf", dtype=dtype)
        judge, model = LlamaCpp(path, context=256), smollm if dtype == "f32" else pellucid.load(path)
        for prompt in PROMPTS:
            assert judge.encode(prompt) == smollm.tokenizer.encode(prompt), prompt
            ids = smollm.tokenizer.encode(prompt)
            probabilities = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
            for id, logprob in judge.logprobs(ids).items():  # with q8_0 it rounds what goes into a product too
                assert float(probabilities[id]) == pytest.approx(math.exp(logprob), abs=1e-3 if dtype == "f32" else 0.03)
            if dtype == "f32":
                assert judge.greedy(ids, 24) == greedy(smollm, ids, 24)
        template = judge.ask("apply-template", messages=CHAT)["prompt"]
        assert "<|im_start|>user\nName a colour.<|im_end|>\n" in template

    def test_a_padded_embedding_has_a_token_for_every_row(self, data, tmp_path):
        config = FAMILIES["gpt2"].new(
            vocab_size=50304, context_length=32, d_model=32, layers=1, heads=2, kv_heads=2, d_head=16, d_mlp=64
        )
        network, tokenizer = tiny.randomised(config), Tokenizer.load(data / "tokenizers/gpt2")
        (tmp_path / "model").mkdir()
        save_network(network, tmp_path / "model", end_of_text=tokenizer.end_of_text)
        tokenizer.save(tmp_path / "model")
        path = pellucid.convert(tmp_path / "model", tmp_path / "model.gguf", to="gguf")
        ids = LlamaCpp(path).encode("Once upon a time")
        assert ids == tokenizer.encode("Once upon a time") == pellucid.load(path).tokenizer.encode("Once upon a time")


def test_there_and_back_again_is_bit_for_bit_the_same(run, tmp_path):
    pellucid.convert(run, tmp_path / "model.gguf", to="gguf")
    pellucid.convert(tmp_path / "model.gguf", tmp_path / "back", to="hf")
    before, after = load_file(run / "model/model.safetensors"), load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert open_files(run / "model").config == open_files(tmp_path / "back").config
    one, other = (Tokenizer.load(folder) for folder in (run / "model", tmp_path / "back"))
    assert all(one.encode(prompt) == other.encode(prompt) for prompt in PROMPTS)
    assert (one.end_of_text, one.special_ids) == (other.end_of_text, other.special_ids)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("f32", "F32"), ("bf16", "BF16"), ("f16", "F16"), ("q8_0", "Q8_0"), ("q4_0", "Q4_0"), ("q4_1", "Q4_1")],
)
def test_every_type_of_gguf_is_written_and_read(run, tmp_path, dtype, stored):
    path = pellucid.convert(run, tmp_path / "model.gguf", to="gguf", dtype=dtype)
    kinds = {tensor.type for tensor in open_gguf(path).tensors.values() if len(tensor.shape) > 1}
    assert kinds == {stored}
    assert pellucid.load(path).generate("Alice was", max_tokens=3).tokens
    assert LlamaCpp(path).greedy([5, 6], 2)


def test_without_a_type_weights_keep_theirs(run, tmp_path):
    half = pellucid.convert(run, tmp_path / "half", to="hf", dtype="bf16")
    assert {tensor.dtype for tensor in load_file(half / "model.safetensors").values()} == {torch.bfloat16}
    path = pellucid.convert(half, tmp_path / "half.gguf", to="gguf")
    assert {tensor.type for tensor in open_gguf(path).tensors.values() if len(tensor.shape) > 1} == {"BF16"}
    back = pellucid.convert(path, tmp_path / "back", to="hf")
    first, second = (load_file(folder / "model.safetensors") for folder in (half, back))
    assert all(torch.equal(first[name], second[name]) for name in first)


class TestNothingIsLost:
    @pytest.mark.parametrize("to", ["hf", "gguf"])
    def test_what_is_there_stays_unless_force_is_given(self, run, tmp_path, to):
        path = tmp_path / "model.gguf"
        path.write_text("precious")
        text = message(PellucidError, pellucid.convert, run, path, to=to)
        assert text == f"{path} exists already; choose another name, or pass --force to replace it"
        assert path.read_text() == "precious"
        path.unlink()
        pellucid.convert(run, path, to=to)
        pellucid.convert(run, path, to=to, force=True)
        assert pellucid.load(path).config.layers == 1

    def test_force_replaces_models_only(self, run, tmp_path):
        (tmp_path / "mine.gguf").mkdir()
        (tmp_path / "mine.gguf/notes.txt").write_text("precious")
        for to in ("hf", "gguf"):
            text = message(ModelError, pellucid.convert, run, tmp_path / "mine.gguf", to=to, force=True)
            assert text.endswith("mine.gguf is not a model of this form, so it will not be replaced; choose another name")
        assert (tmp_path / "mine.gguf/notes.txt").read_text() == "precious"

    def test_a_model_may_take_its_own_place(self, run, tmp_path):
        path = pellucid.convert(run, tmp_path / "model.gguf", to="gguf")
        expected = greedy(pellucid.load(path), "Alice", 5)
        pellucid.convert(path, path, to="gguf", force=True)
        assert greedy(pellucid.load(path), "Alice", 5) == expected

    def test_a_failure_half_way_leaves_nothing(self, run, tmp_path):
        shutil.copytree(run / "model", tmp_path / "source")
        (tmp_path / "source/manifest.json").unlink()
        tensors = load_file(tmp_path / "source/model.safetensors")
        tensors["model.norm.weight"][0] = float("nan")
        save_file(tensors, tmp_path / "source/model.safetensors", metadata={"format": "pt"})
        for to, name in (("gguf", "x.gguf"), ("hf", "x")):
            assert "values that are not finite in model.norm" in message(
                ModelError, pellucid.convert, tmp_path / "source", tmp_path / name, to=to
            )
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


class TestRefusals:
    def test_types_and_names_that_do_not_go_together(self, run, tmp_path):
        call, out = pellucid.convert, tmp_path / "out"
        assert message(ConfigError, call, run, out, to="hf", dtype="q8_0") == (
            "q8_0 is a type of GGUF files only; use --to gguf, or one of f32, bf16, f16"
        )
        assert message(ConfigError, call, run, out, to="gguf") == (
            f"{out} does not end in .gguf, by which programs know such a file; name it {out}.gguf"
        )
        assert message(ConfigError, call, run, out, to="onnx").startswith("a model is converted to hf or gguf, as f32, bf16,")
        assert not any(tmp_path.iterdir())

    def test_a_vocabulary_of_characters_is_not_one_of_llama_cpp(self, tmp_path):
        run = tiny.pretrain(tmp_path / "run")
        expected = (
            "llama.cpp would read other tokens than this tokenizer (it reads chars its own way); train one with --tokenizer bpe"
        )
        assert message(TokenizerError, pellucid.convert, run.path, tmp_path / "x.gguf", to="gguf") == expected
        assert pellucid.load(pellucid.convert(run.path, tmp_path / "hf", to="hf")).tokenizer.kind == "chars"

    def test_an_encoder_goes_to_a_folder_only(self, run, tmp_path):
        config = FAMILIES["bert"].new(vocab_size=300, context_length=16, d_model=8, layers=1, heads=2, kv_heads=2, d_head=4)
        (tmp_path / "bert").mkdir()
        save_network(tiny.randomised(config), tmp_path / "bert")
        Tokenizer.load(run / "model").save(tmp_path / "bert")
        text = message(ModelError, pellucid.convert, tmp_path / "bert", tmp_path / "x.gguf", to="gguf")
        assert text == "a bert model cannot be written as GGUF, only llama, mistral, qwen2, qwen3, gpt2; use --to hf"
        copy = pellucid.convert(tmp_path / "bert", tmp_path / "copy", to="hf")
        assert not (copy / "generation_config.json").exists()
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(pellucid.load(copy).network(ids).logits, pellucid.load(tmp_path / "bert").network(ids).logits)


def test_a_gguf_file_is_written_a_tensor_at_a_time(run, tmp_path, monkeypatch):
    """The memory that it takes is that of the largest tensor, not that of the model."""
    at_once, read = [], converting.ModelFiles.tensor

    def tensor(self, name):
        at_once.append(name)
        return read(self, name)

    monkeypatch.setattr(converting.ModelFiles, "tensor", tensor)
    monkeypatch.setattr(converting.ModelFiles, "network", lambda *_, **__: pytest.fail("the whole network was read"))
    pellucid.convert(run, tmp_path / "model.gguf", to="gguf")
    assert len(at_once) > 10


def test_the_command(cli, run, tmp_path):
    assert cli("convert", run, tmp_path / "x.gguf", "--to", "gguf", "--dtype", "q8_0") == (
        0,
        f"{tmp_path / 'x.gguf'}: written\n",
        "",
    )
    assert cli("convert", tmp_path / "x.gguf", tmp_path / "x", "--to", "hf")[0] == 0
    code, _, error = cli("convert", tmp_path / "x", tmp_path / "x.gguf", "--to", "gguf")
    assert (code, error) == (
        2,
        f"pellucid: {tmp_path / 'x.gguf'} exists already; choose another name, or pass --force to replace it\n",
    )
    assert cli("convert", tmp_path / "x", tmp_path / "x.gguf", "--to", "gguf", "--force")[0] == 0
