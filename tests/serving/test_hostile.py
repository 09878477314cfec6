"""Whatever comes is answered by an answer or by an error object, and never by a failure of ours."""

import asyncio
import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import error_of, served

from pellucid.generation.constrain import Matcher

COMPLETIONS = "/v1/completions"
FAIR = {"model": "tiny", "prompt": "Alice", "max_tokens": 2}
JSON = {"content-type": "application/json"}

RAW = {
    "empty": b"",
    "no JSON": b"hello",
    "no UTF-8": b'{"model": "tiny", "prompt": "\xff"}',
    "a raw NUL": b'{"model": "tiny", "prompt": "\0"}',
    "a list": b"[]",
    "a text": b'"tiny"',
    "null": b"null",
    "NaN": b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
    "Infinity": b'{"model": "tiny", "prompt": "a", "temperature": Infinity}',
    "1e309": b'{"model": "tiny", "prompt": "a", "temperature": 1e309}',
    "many digits": b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
    "a large integer": b'{"model": "tiny", "prompt": "a", "seed": 9999999999999999999999}',
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep and open": b'{"prompt":' + b"[" * 100_000,
    "deep in a schema": json.dumps(FAIR)[:-1].encode() + b', "response_format": ' + b'{"a":' * 300 + b"1" + b"}" * 301,
    "half a character": b'{"model": "tiny", "prompt": "\\ud800"}',
    "half a character in a name": b'{"model": "tiny", "prompt": "a", "\\udfff": 1}',
    "a field twice": b'{"model": "tiny", "prompt": "a", "prompt": "b"}',
    "a byte order mark": b'\xef\xbb\xbf{"model": "tiny", "prompt": "a"}',
    "more behind it": b'{"model": "tiny", "prompt": "a"} {}',
}


@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
def test_a_body_that_is_no_request_is_a_400(with_server, body):
    async def inside(server):
        for path in (COMPLETIONS, "/v1/embeddings", "/tokenize"):
            error = error_of(await server.client.post(path, content=body, headers=JSON), 400)
            error["message"].encode()
        return await server.ask(COMPLETIONS, prompt="a", max_tokens=1)

    assert with_server(inside)["choices"]


FIELDS = [
    {"prompt": None},
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": [1, "a"]},
    {"prompt": [True, False]},
    {"prompt": [1.0]},
    {"prompt": [-1]},
    {"prompt": [2**40]},
    {"prompt": [[99_999]]},
    {"prompt": {"a": 1}},
    {"prompt": ["a"] * 129},
    {"prompt": "a" * 100_000},
    {"prompt": list(range(300)) * 300},
    {"max_tokens": True},
    {"max_tokens": -1},
    {"max_tokens": 0},
    {"max_tokens": 1.5},
    {"max_tokens": 10**30},
    {"max_tokens": "5"},
    {"temperature": -1},
    {"temperature": 1e300},
    {"temperature": "hot"},
    {"top_p": 0},
    {"top_p": 1.1},
    {"top_k": 0},
    {"top_k": True},
    {"min_p": -0.1},
    {"typical_p": 0},
    {"repetition_penalty": 0},
    {"repetition_penalty": 1e-300},
    {"presence_penalty": 3},
    {"seed": -1},
    {"seed": 2**63},
    {"n": 0},
    {"n": 100_000},
    {"n": 128, "prompt": ["a", "b", "c"]},
    {"best_of": 3},
    {"logprobs": 21},
    {"logprobs": True},
    {"stop": ""},
    {"stop": ["a"] * 10_000},
    {"stop": "a" * 1000},
    {"stop": [1]},
    {"stop_token_ids": [-1]},
    {"stop_token_ids": [99_999]},
    {"stop_token_ids": list(range(1000))},
    {"logit_bias": {"5": 1000}},
    {"logit_bias": {"-5": 1}},
    {"logit_bias": {"01": 1}},
    {"logit_bias": {"99999": 1}},
    {"logit_bias": {"x": 1}},
    {"logit_bias": {str(n): 1 for n in range(2000)}},
    {"logit_bias": [1]},
    {"stream": 1},
    {"stream": "yes"},
    {"echo": "no"},
    {"suffix": "b"},
    {"audio": {}},
    {"__class__": 1},
    {"model": 5},
    {"store": True},
    {"store": 0},
    {"metadata": {"a": 1}},
    {"metadata": {str(n): "x" for n in range(17)}},
    {"user": "x" * 10_000},
    {"regex": "(" * 5000},
    {"regex": "a{100000}{100000}{100000}"},
    {"regex": "x" * 20_000},
    {"regex": "(?=a)b"},
    {"choices": []},
    {"choices": [""]},
    {"choices": ["a"] * 2000},
    {"response_format": {"type": "xml"}},
    {"response_format": "json"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "#/nowhere"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["x" * 70_000]}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array", "minItems": -1}}}},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: str(fields)[:60])
def test_a_field_that_makes_no_sense_is_a_400(with_server, fields):
    async def inside(server):
        return error_of(await server.client.post(COMPLETIONS, json=FAIR | fields), 400)

    assert with_server(inside)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "string", "pattern": "(a*)*(a*)*b"},
        {"type": "string", "minLength": 10**9},
        {"anyOf": [{"type": "object", "additionalProperties": {"anyOf": [{"type": "array"}] * 50}}] * 50},
        {"type": "integer", "minimum": 10**300},
        {"not": {}},
        {"type": "\0"},
    ],
    ids=lambda schema: str(schema)[:50],
)
def test_a_schema_without_end_ends(with_server, schema):
    format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}

    async def inside(server):
        answer = await server.client.post(COMPLETIONS, json=FAIR | {"response_format": format, "max_tokens": 8})
        assert answer.status_code in (200, 400), answer.text
        return await server.ask(COMPLETIONS, prompt="a", max_tokens=1)

    assert with_server(inside)["choices"]


def test_a_grammar_is_first_asked_where_it_keeps_nobodys_text_waiting(with_server, monkeypatch):
    """Of one such as ((a{100}){100}){100} the first tokens take a second to find, and may be too many."""
    allowed, threads = Matcher.allowed, []

    def seen(self):
        threads.append(threading.current_thread().name)
        return allowed(self)

    async def inside(server):
        monkeypatch.setattr(Matcher, "allowed", seen)
        return await server.ask(COMPLETIONS, prompt="a", max_tokens=2, regex="[ab]{9}", n=2)

    with_server(inside)
    assert [name.startswith("pellucid-compile") for name in threads[:2]] == [True, True]
    assert not any(name.startswith("pellucid-compile") for name in threads[2:])


def test_a_nul_in_a_text_is_a_character(with_server, model):
    async def inside(server):
        return await server.ask("/tokenize", prompt="a\0b")

    assert model.tokenizer.decode(with_server(inside)["tokens"]) == "a\0b"


def test_every_token_forbidden_still_gives_an_answer(with_server, model):
    async def inside(server):
        biases = {str(id): -100 for id in range(model.config.vocab_size)}
        return await server.ask(COMPLETIONS, prompt="a", max_tokens=3, logit_bias=biases)

    assert with_server(inside)["choices"]


def test_other_media_types_are_refused(with_server):
    async def inside(server):
        form = await server.client.post(COMPLETIONS, content=json.dumps(FAIR), headers={"content-type": "text/plain"})
        good = await server.client.post(
            COMPLETIONS, content=json.dumps(FAIR), headers={"content-type": "Application/JSON; charset=utf-8"}
        )
        return error_of(form, 415), good.status_code

    error, status = with_server(inside)
    assert (error["code"], status) == ("unsupported_media_type", 200)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/page/../app.py", 404),
        ("GET", "/page/..%2fapp.py", 404),
        ("GET", "/page/nothing.js", 404),
        ("GET", COMPLETIONS, 405),
        ("DELETE", COMPLETIONS, 405),
        ("POST", "/livez", 405),
        ("TRACE", "/", 405),
        ("POST", "/v1/completions/", 404),
    ],
)
def test_every_refusal_is_an_error_object(with_server, method, path, status):
    async def inside(server):
        answer = await server.client.request(method, path)
        return error_of(answer, status), answer.headers

    _, headers = with_server(inside)
    assert (status == 405) == ("allow" in headers)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*{name for fields in FIELDS for name in fields}, "stream_options", "service_tier"])


def test_any_fields_at_all_get_an_answer_or_an_error_object(model):
    loop = asyncio.new_event_loop()
    entered = served(model)
    server = loop.run_until_complete(entered.__aenter__())

    @settings(max_examples=150, suppress_health_check=[*HealthCheck])
    @given(st.dictionaries(NAMES, VALUES, max_size=3))
    def attack(fields):
        body = FAIR | {"stream": False} | fields
        answer = loop.run_until_complete(server.client.post(COMPLETIONS, json=body))
        assert answer.status_code in (200, 400, 404)
        assert answer.status_code == 200 or error_of(answer, answer.status_code)["type"] != "server_error"

    try:
        attack()
    finally:
        loop.run_until_complete(entered.__aexit__(None, None, None))
        loop.close()
