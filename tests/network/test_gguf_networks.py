"""Decoders in GGUF and llama2.c files: llama.cpp is the judge of what we write, and of what we read."""

import json
import random
import struct
import warnings

import numpy as np
import pytest
import tiny
import torch
from llama_cpp import LlamaCpp, smollm2

from pellucid.converting import convert, padded
from pellucid.core.errors import ModelError, PellucidError
from pellucid.core.gguf import open_gguf, write_gguf
from pellucid.loading import open_files, open_model
from pellucid.network.config import RopeScaling
from pellucid.network.families import FAMILIES
from pellucid.network.gguf import Written, config_of, gguf_metadata
from pellucid.text.formats import to_gguf
from pellucid.text.tokenizer import Tokenizer

SIZES = {"vocab_size": 50304, "context_length": 64, "d_model": 64, "layers": 2, "heads": 4, "d_mlp": 96}
GROUPED = SIZES | {"kv_heads": 2, "d_head": 32}
SCALINGS = {
    "linear": RopeScaling(kind="linear", factor=4.0),
    "llama3": RopeScaling(kind="llama3", factor=8.0, original_context=2048),
    "yarn": RopeScaling(kind="yarn", factor=4.0, original_context=16, low=1.0, high=32.0, attention_factor=1.2),
}
BIASED = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
CONFIGS = {
    "llama": FAMILIES["llama"].new(**GROUPED, norm_eps=1e-5),
    "llama with all biases, untied": FAMILIES["llama"].new(**GROUPED, **BIASED, tied=False, rope_theta=5e5),
    "mistral": FAMILIES["mistral"].new(**GROUPED),
    "qwen2": FAMILIES["qwen2"].new(**GROUPED | {"d_head": 16}, rope_theta=1e6),
    "qwen3": FAMILIES["qwen3"].new(**GROUPED, tied=False),
    "gpt2": FAMILIES["gpt2"].new(**SIZES, kv_heads=4, d_head=16, activation="gelu_tanh", norm_eps=1e-5),
    **{f"llama, {name}": FAMILIES["llama"].new(**GROUPED, rope_scaling=scaling) for name, scaling in SCALINGS.items()},
    "qwen3, yarn": FAMILIES["qwen3"].new(**GROUPED, rope_scaling=SCALINGS["yarn"]),
}
PROMPT = "Once upon a time there was a little rabbit, and it said: how doth the little crocodile improve his shining tail"


@pytest.fixture(scope="module")
def vocabulary(data):
    return to_gguf(Tokenizer.load(data / "tokenizers/gpt2"))


def write(path, config, vocabulary, dtype="f32"):
    """A random network as a GGUF file."""
    network = tiny.randomised(config)
    metadata = gguf_metadata(config) | padded(vocabulary, config.vocab_size)
    write_gguf(path, metadata, Written(config, network.state_dict().__getitem__), dtype)
    return network


@torch.no_grad()
def greedy(network, ids, tokens):
    for _ in range(tokens):
        ids = [*ids, int(network(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-tokens:]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_llama_cpp_computes_what_we_compute(tmp_path, vocabulary, name):
    config = CONFIGS[name]
    network = write(tmp_path / "model.gguf", config, vocabulary)
    judge = LlamaCpp(tmp_path / "model.gguf")
    ids = judge.encode(PROMPT)
    logprobs = network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    for id, logprob in judge.logprobs(ids).items():
        assert float(logprobs[id]) == pytest.approx(logprob, abs=0.02 if config.family == "gpt2" else 2e-3)  # GELU from a table
    assert judge.greedy(ids, 12) == greedy(network, ids, 12)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, vocabulary, name):
    config = CONFIGS[name]
    network = write(tmp_path / "model.gguf", config, vocabulary)
    files = open_files(tmp_path / "model.gguf")
    read = files.network()
    for ours, weight in network.state_dict().items():
        assert torch.equal(read.state_dict()[ours], weight), ours
    family = "llama" if config.family == "mistral" else config.family
    ids = torch.tensor([[1, 2, 3, 4]])
    assert files.config.family == family
    assert torch.allclose(read(ids).logits, network(ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_tensor_is_read_once(tmp_path, name):
    read, weights = [], tiny.randomised(CONFIGS[name]).state_dict()
    written = Written(CONFIGS[name], lambda ours: read.append(ours) or weights[ours])
    write_gguf(tmp_path / "model.gguf", gguf_metadata(CONFIGS[name]), written, "f32")
    assert len(read) == len(set(read)) >= 20
    assert written.shapes == {tensor: place.shape for tensor, place in open_gguf(tmp_path / "model.gguf").tensors.items()}


def prompt_model(tmp_path, vocabulary, name="llama", **changes):
    """A file with other metadata; None leaves one out."""
    config = CONFIGS[name]
    metadata = gguf_metadata(config) | padded(vocabulary, config.vocab_size)
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    write_gguf(tmp_path / "model.gguf", metadata, Written(config, tiny.randomised(config).state_dict().__getitem__), "f32")
    return tmp_path / "model.gguf"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"general.architecture": "gemma"},
            "general.architecture 'gemma' is not supported; known are gpt2, llama, qwen2, qwen3",
        ),
        ({"general.architecture": None}, "general.architecture None is not supported; known are gpt2, llama, qwen2, qwen3"),
        ({"split.count": 3}, "is one of 3 parts of a model; join them: llama-gguf-split --merge FIRST OUT"),
        ({"llama.block_count": None}, "does not say llama.block_count; convert the model again"),
        ({"llama.block_count": "two"}, "llama.block_count is 'two', not a whole number"),
        (
            {"llama.attention.head_count": [4, 4]},
            "llama.attention.head_count is array([4, 4], dtype=int32), not a whole number",
        ),
        ({"llama.rope.freq_base": True}, "llama.rope.freq_base is True, not a number"),
        ({"llama.rope.dimension_count": 16}, "llama.rope.dimension_count is 16, but queries and keys have 32 features"),
        ({"llama.attention.value_length": 16}, "llama.attention.value_length is 16, but queries and keys have 32 features"),
        ({"llama.rope.scaling.type": "longrope"}, "llama.rope.scaling.type is 'longrope', which is not supported"),
        (
            {"llama.expert_count": 8},
            "llama.expert_count is 8, which is not supported, and leaving it out would change the model's",
        ),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale is 0.5, which is not supported"),
        ({"llama.attention.causal": False}, "llama.attention.causal is False, which is not supported"),
        ({"llama.block_count": 4096}, "has 20 tensors, too few for llama.block_count = 4096"),
        ({"llama.block_count": 3}, "lacks 9 of 29 tensors: blk.2."),
        ({"llama.block_count": 1}, "has 9 tensors that the configuration knows nothing of: blk.1."),
        ({"llama.feed_forward_length": 97}, "ffn_gate.weight has shape (96, 64), but the configuration asks for (97, 64)"),
        ({"llama.attention.head_count_kv": 3}, "heads (4) must be a multiple of kv_heads (3)"),
        ({"llama.rope.freq_base": float("inf")}, "rope_theta must be a finite number, not inf"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": -1.0}, "rotary positions cannot be stretched as"),
    ],
)
def test_what_would_change_the_answers_is_refused(tmp_path, vocabulary, changes, expected):
    path = prompt_model(tmp_path, vocabulary, **changes)
    with pytest.raises(ModelError) as caught:
        open_model(path)
    assert str(caught.value).startswith(f"{path}")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama", "llama.attention.layer_norm_rms_epsilon"),
        ("qwen2", "qwen2.attention.layer_norm_rms_epsilon"),
        ("gpt2", "gpt2.attention.layer_norm_epsilon"),
    ],
)
def test_the_epsilon_of_the_norms_is_not_guessed(tmp_path, vocabulary, name, key):
    path = prompt_model(tmp_path, vocabulary, name, **{key: None})
    with pytest.raises(ModelError) as caught:
        open_files(path)
    assert str(caught.value) == f"{path} does not say {key}; convert the model again"


def test_keys_that_say_nothing_are_no_hindrance(tmp_path, vocabulary):
    changes = {"llama.expert_count": 0, "llama.rope.scaling.finetuned": False, "llama.vocab_size": 7, "general.url": "x"}
    changes |= {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 3.0, "llama.attention.head_count_kv": 2}
    assert open_model(prompt_model(tmp_path, vocabulary, **changes)).network.config == CONFIGS["llama"]


def test_factors_that_are_not_those_of_llama_3_are_refused(tmp_path, vocabulary):
    config = CONFIGS["llama"]
    metadata = gguf_metadata(config) | padded(vocabulary, config.vocab_size)
    tensors = dict(Written(config, tiny.randomised(config).state_dict().__getitem__))
    tensors |= {"rope_freqs.weight": np.linspace(1, 5, 16, dtype=np.float32)}
    write_gguf(tmp_path / "model.gguf", metadata, tensors, "f32")
    with pytest.raises(ModelError, match=r"rope_freqs.weight does not stretch rotary positions as Llama 3 does"):
        open_files(tmp_path / "model.gguf")


@pytest.mark.parametrize(("stored", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16), ("q8_0", torch.float32)])
def test_the_type_of_the_matrices_is_that_of_the_network(tmp_path, vocabulary, stored, dtype):
    config = CONFIGS["qwen3"]
    network = write(tmp_path / "model.gguf", config, vocabulary, stored)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = open_model(tmp_path / "model.gguf").network
    assert {weight.dtype for weight in read.parameters() if weight.ndim > 1} == {dtype}
    assert {weight.dtype for weight in read.parameters() if weight.ndim == 1} == {torch.float32}
    for ours, weight in network.state_dict().items():
        assert (read.state_dict()[ours].float() - weight).abs().max() < 0.02, ours
    assert torch.isfinite(read(torch.tensor([[1, 2, 3]])).logits).all()


@pytest.mark.parametrize("stored", ["bf16", "f16"])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_vectors_stay_as_precise_as_the_file_has_them(tmp_path, vocabulary, name, stored):
    """Through a folder and back into a file: what is 1.0001 does not become 1."""
    network = write(tmp_path / "model.gguf", CONFIGS[name], vocabulary, stored)
    convert(tmp_path / "model.gguf", tmp_path / "folder", to="hf")
    convert(tmp_path / "folder", tmp_path / "again.gguf", to="gguf")
    assert json.loads((tmp_path / "folder/config.json").read_text())["dtype"] == {"bf16": "bfloat16", "f16": "float16"}[stored]
    for path in (tmp_path / "model.gguf", tmp_path / "folder", tmp_path / "again.gguf"):
        read = open_model(path).network
        for ours, weight in network.state_dict().items():
            assert weight.ndim > 1 or torch.equal(read.state_dict()[ours], weight), ours
        assert torch.isfinite(read(torch.tensor([[1, 2, 3]])).logits).all()
    types = [
        {tensor: place.type for tensor, place in open_gguf(tmp_path / f"{file}.gguf").tensors.items()}
        for file in ("model", "again")
    ]
    assert types[0] == types[1]


def test_training_on_a_file_does_not_change_it(tmp_path, vocabulary):
    write(tmp_path / "model.gguf", CONFIGS["llama"], vocabulary)
    before = (tmp_path / "model.gguf").read_bytes()
    network = open_model(tmp_path / "model.gguf").network
    with torch.no_grad():
        network.embedding.weight.zero_()
    assert (tmp_path / "model.gguf").read_bytes() == before


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            FAMILIES["t5"].new(**SIZES, decoder_layers=2, kv_heads=4, d_head=16),
            "a t5 model cannot be written as GGUF, only llama",
        ),
        (FAMILIES["bert"].new(**SIZES, kv_heads=4, d_head=16), "a bert model cannot be written as GGUF, only llama"),
        (FAMILIES["qwen3"].new(**GROUPED, head="none"), "a model without a language-model head cannot be written as GGUF"),
        (FAMILIES["qwen2"].new(**GROUPED), "llama.cpp's qwen2 does not have heads of 32 features; use --to hf"),
        (FAMILIES["qwen3"].new(**GROUPED, rope_scaling=SCALINGS["llama3"]), "llama.cpp's qwen3 does not have Llama 3's rotary"),
        (FAMILIES["qwen3"].new(**GROUPED, attention_bias=True), "llama.cpp's qwen3 does not have its biases in attention"),
        (
            FAMILIES["gpt2"].new(**SIZES, kv_heads=4, d_head=16, activation="relu"),
            "llama.cpp's gpt2 does not have activation relu; use --to hf",
        ),
    ],
)
def test_what_llama_cpp_cannot_compute_is_not_written(config, expected):
    with pytest.raises(ModelError) as caught:
        gguf_metadata(config)
    assert str(caught.value).startswith(expected)


class TestLlama2c:
    @pytest.fixture
    def stories(self, data, tmp_path):
        for file in (data / "weights/stories260K").iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path / "stories260K.bin"

    def test_a_real_model_tells_its_story(self, stories):
        network, tokenizer, path = open_model(stories)
        ids = tokenizer.encode("Once upon a time", framed=True)
        assert (ids, path) == ([1, 403, 407, 261, 378], stories)
        story = [432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267, 337, 410, 408, 419, 292]
        assert greedy(network, ids, 20) == story

    def test_an_untied_head_comes_last(self, stories):
        data = bytearray(stories.read_bytes())
        struct.pack_into("<i", data, 20, -512)
        stories.write_bytes(data + bytes(4 * 512 * 64))
        network = open_model(stories).network
        assert not network(torch.tensor([[1, 403]])).logits.any()

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda data: data[:-4], "has 1056536 bytes, but a llama2.c model of its dimensions has 1056540; it is cut off"),
            (lambda data: data + b"abc", "has 1056543 bytes, but a llama2.c model of its dimensions has 1056540"),
            (lambda data: data[:20], "is not of llama2.c's first format; export it with: export.py --version 0"),
            (lambda data: struct.pack("<I", 0x616B3432) + data[4:], "is not of llama2.c's first format"),
            (lambda data: struct.pack("<7i", 64, 172, 5, 0, 4, 512, 512) + data[28:], "0 heads cannot share 64 features"),
            (
                lambda data: struct.pack("<7i", 64, 172, 5, 8, 3, 512, 512) + data[28:],
                "heads (8) must be a multiple of kv_heads",
            ),
            (lambda data: struct.pack("<7i", *[2**31 - 1] * 7) + data[28:], "must be from 1 to"),
        ],
    )
    def test_a_file_of_something_else_is_one_sentence(self, stories, change, expected):
        stories.write_bytes(change(stories.read_bytes()))
        with pytest.raises(ModelError) as caught:
            open_model(stories)
        assert str(caught.value).startswith(f"{stories} ")
        assert expected in str(caught.value)

    def test_the_vocabulary_is_the_one_beside_it(self, stories):
        (stories.parent / "tokenizer.bin").write_bytes(b"another one")
        assert open_model(stories).tokenizer.vocab_size == 512
        (stories.parent / "tok512.bin").rename(stories.parent / "tok.bin")
        with pytest.raises(ModelError, match=r"2 vocabularies are beside it; put its own there and name it tok512.bin"):
            open_model(stories)
        for file in stories.parent.glob("tok*.bin"):
            file.unlink()
        with pytest.raises(ModelError, match=r"no vocabulary \(tok\*.bin\) is beside it; put its own there"):
            open_model(stories)


def mutations(whole, count, *, front, seed=0):
    """Damaged copies: cut off, or with some bytes changed, most of them at the front, where files say what they are."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        data = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.2 else whole)
        for _ in range(chance.randrange(1, 5)):
            end = min(len(data), front if chance.random() < 0.8 else len(data))
            if end:
                data[chance.randrange(end)] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        made.append(bytes(data))
    return made


def opens_or_says(path, contents):
    """How many of the damaged files could be opened all the same; every other one was a `PellucidError` of one line."""
    said = []
    for data in contents:
        path.write_bytes(data)
        try:
            network, tokenizer, _ = open_model(path)
            ids = [id for id in tokenizer.encode("Once upon") if id < network.config.vocab_size][:8] or [0]
            network(torch.tensor([ids[: network.config.context_length]]))
        except PellucidError as error:
            said.append(str(error))
    assert not [text for text in said if "\n" in text]
    return len(contents) - len(said)


@pytest.fixture
def small_gguf(tmp_path):
    tokenizer = Tokenizer.train_bpe(tiny.DOCUMENTS, 280)
    config = FAMILIES["llama"].new(**SIZES | {"vocab_size": 280, "d_model": 32, "layers": 1}, kv_heads=2, d_head=8)
    path = tmp_path / "model.gguf"
    weights = tiny.randomised(config).state_dict().__getitem__
    write_gguf(path, gguf_metadata(config) | to_gguf(tokenizer), Written(config, weights), "q8_0")
    return path


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_gguf_files_open_or_are_one_sentence(small_gguf, count):
    whole = small_gguf.read_bytes()
    assert 0 < opens_or_says(small_gguf, mutations(whole, count, front=len(whole) // 4)) < count


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_llama2c_files_open_or_are_one_sentence(data, tmp_path, count):
    source = data / "weights/stories260K"
    (tmp_path / "tok512.bin").write_bytes((source / "tok512.bin").read_bytes())
    whole = (source / "stories260K.bin").read_bytes()
    assert 0 < opens_or_says(tmp_path / "model.bin", mutations(whole, count, front=40)) < count


def test_the_configuration_of_a_real_file():
    config = config_of(open_gguf(smollm2()))
    assert (config.layers, config.heads, config.kv_heads, config.tied, config.norm_eps) == (30, 9, 3, True, 1e-5)
