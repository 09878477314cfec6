"""Paths that only read: embeddings, labels, scores, tokens; each against what the library says."""

import base64

import labellers
import numpy as np
import pytest
import tiny
import torch

from pellucid.api import Model
from pellucid.network.families import FAMILIES
from pellucid.text.chat import with_chat_tokens


def test_embeddings_are_the_librarys_as_numbers_and_as_bytes(with_server, model):
    texts = ["Alice", "Down, down, down. Would the fall never come to an end?", "the White Rabbit"]

    async def inside(server):
        ids = await server.ask("/v1/embeddings", input=[model.tokenizer.encode(text) for text in texts])
        packed = await server.ask("/v1/embeddings", input=texts, encoding_format="base64")
        return await server.ask("/v1/embeddings", input=texts), packed, ids

    plain, packed, ids = with_server(inside)
    expected = model.embed(texts).numpy()
    for answer in (plain, ids):
        assert np.allclose([one["embedding"] for one in answer["data"]], expected, atol=1e-5)
    found = [np.frombuffer(base64.b64decode(one["embedding"]), dtype="<f4") for one in packed["data"]]
    assert np.array_equal(found, np.array([one["embedding"] for one in plain["data"]], dtype=np.float32))
    assert plain["usage"]["prompt_tokens"] == sum(len(model.tokenizer.encode(text)) for text in texts)
    assert [one["index"] for one in plain["data"]] == [0, 1, 2]


def test_what_has_no_vector_is_refused(with_server, model):
    async def inside(server):
        empty = await server.refused(400, "/v1/embeddings", input=["a", ""])
        long = await server.refused(400, "/v1/embeddings", input="many words " * 300)
        return empty, long, await server.refused(400, "/v1/embeddings", input=[[5, 100_000]])

    empty, long, unknown = with_server(inside)
    assert empty["message"] == "text 1 is empty; give at least one character"
    assert long["code"] == "context_length_exceeded"
    assert unknown["message"] == f"token id 100000 is not in the vocabulary of {model.config.vocab_size}"


def test_scores_are_the_librarys(with_server, model):
    async def inside(server):
        return await server.ask("/v1/score", input=["Alice was", "Down"]), await server.refused(
            400, "/v1/score", input="a " * 500
        )

    answer, long = with_server(inside)
    for one, text in zip(answer["data"], ("Alice was", "Down"), strict=True):
        assert one["token_logprobs"] == pytest.approx(model.score(text).tolist(), abs=1e-5)
        assert one["logprob"] == pytest.approx(sum(one["token_logprobs"]))
        assert "".join(one["tokens"]) == text
    assert long["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"problem": "multi"},
        {"problem": "regression", "labels": ("value",)},
        {"head": "tag", "labels": ("O", "B-who", "I-who")},
    ],
    ids=["one", "several", "number", "tags"],
)
def test_labels_are_the_librarys(with_server, options):
    labeller = labellers.labeller(**options)
    names = {
        "label": lambda said: said.label,
        "labels": lambda said: [*said.labels],
        "probabilities": lambda said: said.probabilities,
        "value": lambda said: said.value,
        "words": lambda said: [*said.words],
        "tags": lambda said: [*said.tags],
    }

    async def inside(server):
        refused = await server.refused(400, "/v1/completions", prompt="a")
        long = await server.refused(400, "/v1/classify", input=labellers.LONG)
        cut = await server.ask("/v1/classify", input=labellers.LONG, long="cut")
        return await server.ask("/v1/classify", input=labellers.TEXTS), refused, long, cut

    answer, refused, long, cut = with_server(inside, model=labeller)
    for one, said in zip(answer["data"], labeller.predict(labellers.TEXTS), strict=True):
        given = {name: value(said) for name, value in names.items() if hasattr(said, name)}
        assert {name: one[name] for name in given} == {
            name: pytest.approx(value) if isinstance(value, float | dict) else value for name, value in given.items()
        }
    assert refused["code"] == "unsupported_by_model"
    assert "/v1/classify" in refused["message"]
    assert long["code"] == "context_length_exceeded"
    assert cut["data"]


def test_an_encoder_only_gives_vectors(with_server):
    words = labellers.tokenizer()
    encoder = Model(tiny.randomised(FAMILIES["bert"].new(vocab_size=words.vocab_size, **labellers.SIZE)), words)

    async def inside(server):
        refused = [await server.refused(400, path, **fields) for path, fields in ASKED]
        return refused, await server.ask("/v1/embeddings", input="Alice")

    refused, answer = with_server(inside, model=encoder)
    assert {error["code"] for error in refused} == {"unsupported_by_model"}
    assert np.allclose(answer["data"][0]["embedding"], encoder.embed("Alice")[0], atol=1e-5)


ASKED = [
    ("/v1/completions", {"prompt": "a"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ("/v1/responses", {"input": "a"}),
    ("/v1/classify", {"input": "a"}),
    ("/v1/score", {"input": "a"}),
]


def test_an_encoder_decoder_writes_but_repeats_no_prompt(with_server):
    words = labellers.tokenizer()
    size = labellers.SIZE | {"decoder_layers": 1}
    t5 = Model(tiny.randomised(FAMILIES["t5"].new(vocab_size=words.vocab_size, **size)), words)

    async def inside(server):
        error = await server.refused(400, "/v1/completions", prompt="Alice", echo=True, logprobs=1)
        return error, await server.ask("/v1/completions", prompt="Alice", max_tokens=6, seed=1, logprobs=1)

    error, answer = with_server(inside, model=t5)
    assert error["param"] == "echo"
    assert answer["choices"][0]["text"] == t5.generate("Alice", max_tokens=6, seed=1).text


def test_tokens_there_and_back(with_server, model):
    async def inside(server):
        there = await server.ask("/tokenize", prompt="Alice <|endoftext|>", return_token_strs=True)
        back = await server.ask("/detokenize", tokens=there["tokens"])
        info = (await server.client.get("/tokenizer_info")).json()
        return there, back, info, await server.refused(400, "/detokenize", tokens=[99_999])

    there, back, info, unknown = with_server(inside)
    assert there["tokens"] == model.tokenizer.encode("Alice <|endoftext|>")
    assert "".join(there["token_strs"]) == back["prompt"] == "Alice <|endoftext|>"
    assert (info["eos_token"], info["vocab_size"]) == ("<|endoftext|>", model.tokenizer.vocab_size)
    assert "im_start" in info["chat_template"]
    assert unknown["message"].startswith("99999 is not a token of this tokenizer")


def test_the_name_of_a_special_token_alone_is_that_token(with_server, model):
    """lm-evaluation-harness asks so for the token that begins a text."""

    async def inside(server):
        return await server.ask("/tokenize", prompt="<|endoftext|>", add_special_tokens=False)

    assert with_server(inside)["tokens"] == [model.tokenizer.end_of_text]


def test_a_model_says_what_it_is(with_server, model):
    chatty = Model(model.network, with_chat_tokens(model.tokenizer)[0])

    async def inside(server):
        return (await server.client.get("/v1/models")).json()["data"]

    [plain], [other] = with_server(inside), with_server(inside, model=chatty)
    assert plain["parameters"] == sum(weight.numel() for weight in model.network.parameters())
    assert (plain["chat_template"], other["chat_template"]) == (False, True)


def test_work_between_steps_changes_no_text(with_server):
    """Embeddings are made on the thread that writes, while it writes."""
    import asyncio

    async def inside(server):
        alone = await server.ask("/v1/completions", prompt="Alice", max_tokens=40, seed=2)
        embeddings = [server.ask("/v1/embeddings", input=[f"text {n}" for n in range(20)]) for _ in range(5)]
        [together, *_] = await asyncio.gather(server.ask("/v1/completions", prompt="Alice", max_tokens=40, seed=2), *embeddings)
        return alone, together

    alone, together = with_server(inside)
    assert alone["choices"] == together["choices"]
    assert torch.is_inference_mode_enabled() is False
