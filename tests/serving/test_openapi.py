"""/openapi.json: valid, complete, and what the server really takes and gives."""

import json

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

KEY = "0123456789abcdef"


def described(with_server, **settings):
    async def inside(server):
        answer = await server.client.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200
        return answer.json()

    return with_server(inside, **settings)


@pytest.mark.parametrize("settings", [{}, {"keys": (KEY,)}], ids=["open", "keys"])
def test_the_description_is_valid(with_server, settings):
    document = described(with_server, **settings)
    validate(document)
    assert document["openapi"].startswith("3.1")
    assert ("security" in document) == bool(settings)


def test_every_path_is_described(with_server):
    from pellucid.serving.app import ENDPOINTS

    document = described(with_server)
    assert len(document["paths"]) == len(ENDPOINTS)
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorAnswer")


CASES = [
    ("/v1/completions", {"prompt": "Alice", "max_tokens": 3, "logprobs": 2, "echo": True}),
    ("/v1/completions", {"prompt": [[5, 6], [7]], "max_tokens": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "logprobs": True}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 3}),
    ("/v1/embeddings", {"input": ["Hi", "Ho"]}),
    ("/v1/embeddings", {"input": [4, 5], "encoding_format": "base64"}),
    ("/v1/score", {"input": "Alice"}),
    ("/tokenize", {"prompt": "Alice", "return_token_strs": True}),
    ("/detokenize", {"tokens": [1, 2]}),
]


def test_what_is_refused_is_not_described(with_server):
    document = described(with_server)
    schemas = document["components"]["schemas"]
    for name, bad in (
        ("CompletionRequest", {"prompt": "a", "logit_bias": {"x": 1}}),
        ("CompletionRequest", {"prompt": "a", "store": 0}),
        ("EmbeddingRequest", {"input": ""}),
    ):
        validator = Draft202012Validator({**schemas[name], "components": document["components"]})
        assert not validator.is_valid({"model": "tiny", **bad})
    detokenize = Draft202012Validator({**schemas["DetokenizeRequest"], "components": document["components"]})
    assert detokenize.is_valid({"model": None, "tokens": [1]})


STREAMS = [
    ("/v1/completions", {"prompt": "Alice", "max_tokens": 3, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "logprobs": True}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 3}),
]


@pytest.mark.parametrize(("path", "fields"), STREAMS, ids=[path for path, _ in STREAMS])
def test_events_are_as_described(with_server, path, fields):
    async def inside(server):
        document = (await server.client.get("/openapi.json")).json()
        return document, (await server.post(path, **fields, stream=True)).text

    document, text = with_server(inside)
    event = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
    done, told = event["properties"]["data"]["anyOf"]
    schema = Draft202012Validator({**told["contentSchema"], "components": document["components"]})
    found = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert (found[-1] == done["const"]) == (path != "/v1/responses")
    for line in found:
        assert line == done["const"] or schema.is_valid(json.loads(line)), line


@pytest.mark.parametrize(("path", "fields"), CASES, ids=[f"{path} {list(fields)}" for path, fields in CASES])
def test_requests_and_answers_are_as_described(with_server, path, fields):
    async def inside(server):
        document = (await server.client.get("/openapi.json")).json()
        return document, await server.ask(path, **fields)

    document, answer = with_server(inside)
    operation = document["paths"][path]["post"]

    def check(value, schema):
        Draft202012Validator({**schema, "components": document["components"]}).validate(value)

    check({"model": "tiny", **fields}, operation["requestBody"]["content"]["application/json"]["schema"])
    check(answer, operation["responses"]["200"]["content"]["application/json"]["schema"])
    assert json.dumps(answer)
