"""Who may ask, how much and how often; and what is kept of a request."""

import asyncio
import hashlib
import json
import logging
import socket
import urllib.error
import urllib.request

import httpx
import pytest
from served import error_of, listening

from pellucid.core.errors import ConfigError
from pellucid.serving import ServeSettings

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
KEYS = ("the first key of two".replace(" ", "-"), "the-second-key-of-two")
LONG = {"prompt": "Alice", "max_tokens": 60, "logit_bias": {"0": -100}}  # never ends by itself


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def test_a_key_is_needed_on_every_path_but_the_sign_of_life_and_the_page(with_server):
    async def inside(server):
        get = server.client.get
        for path in ("/v1/models", "/readyz", "/metrics", "/openapi.json", "/tokenizer_info", "/nowhere"):
            error = error_of(await get(path), 401)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            error_of(await get(path, headers=bearer("wrong-key-of-many-letters")), 401)
            error_of(await get(path, headers={"authorization": f"Basic {KEYS[0]}"}), 401)
            for key in KEYS:
                assert (await get(path, headers=bearer(key))).status_code == (404 if path == "/nowhere" else 200)
        error_of(await server.post(COMPLETIONS, prompt="a"), 401)
        error_of(await get("/v1/models", headers={"authorization": b"Bearer \xff\xfe"}), 401)
        return (await get("/livez")).status_code, await get("/"), (await get("/page/theme.js")).status_code

    live, page, script = with_server(inside, keys=KEYS)
    assert (live, page.status_code, script) == (200, 200, 200)
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "", "[::2]:80"])
def test_a_name_that_is_not_ours_is_refused(with_server, host):
    async def inside(server):
        return error_of(await server.client.get("/livez", headers={"host": host}), 400)

    assert with_server(inside)["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "models.example:1"])
def test_our_names_are_known(with_server, host):
    async def inside(server):
        return (await server.client.get("/livez", headers={"host": host})).status_code

    assert with_server(inside, hosts=("models.example",)) == 200


def test_an_open_server_is_known_by_its_addresses_but_not_by_any_name(with_server):
    async def inside(server):
        status = (await server.client.get("/livez", headers={"host": "10.0.0.1:80"})).status_code
        return status, error_of(await server.client.get("/livez", headers={"host": "evil.example"}), 400)

    assert with_server(inside, host="0.0.0.0", keys=KEYS)[0] == 200


def test_other_sites_may_call_only_if_they_are_listed(with_server):
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}

    async def inside(server):
        good, bad = {"origin": "https://good.example"}, {"origin": "https://bad.example"}
        allowed = await server.client.options(COMPLETIONS, headers=good | asking)
        refused = await server.client.options(COMPLETIONS, headers=bad | asking)
        answer = await server.client.get("/v1/models", headers=good | bearer(KEYS[0]))
        return allowed, refused, answer, await server.client.get("/v1/models", headers=good)

    allowed, refused, answer, without_key = with_server(inside, origins=("https://good.example",), keys=KEYS)
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == "https://good.example"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert answer.headers["access-control-allow-origin"] == "https://good.example"
    assert without_key.status_code == 401
    assert without_key.headers["access-control-allow-origin"] == "https://good.example"  # so that the page can read why
    assert refused.status_code == 401
    assert "access-control-allow-origin" not in refused.headers


def test_without_a_list_no_other_site_may_call(with_server):
    async def inside(server):
        return await server.client.get("/v1/models", headers={"origin": "https://bad.example"})

    assert not [name for name in with_server(inside).headers if name.startswith("access-control")]


def test_a_body_that_is_too_large_is_refused_by_its_length_and_by_its_bytes(with_server):
    async def parts():
        for _ in range(20):
            yield b"x" * 1000

    async def inside(server):
        said = await server.client.post(COMPLETIONS, content=b"x" * 5000)
        return said, await server.client.post(COMPLETIONS, content=parts())

    for answer in with_server(inside, max_body=4000):
        assert error_of(answer, 413)["code"] == "body_too_large"


@pytest.mark.parametrize("fields", [{"max_body": 1_000_000}, {"keys": KEYS}], ids=["too large", "no key"])
def test_a_client_that_still_sends_sees_why_it_is_refused(model, fields):
    """Closed upon at once, it would see that the connection was reset; few clients look for an answer then."""
    with listening(model, **fields) as (port, _):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{COMPLETIONS}", b"x" * 12_000_000)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        assert caught.value.status == (401 if "keys" in fields else 413)
        assert json.load(caught.value)["error"]["message"]


def test_a_client_that_asks_before_it_sends_is_refused_at_once(model):
    with listening(model, max_body=1000) as (port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_key_has_so_many_requests_and_takes_none_of_anothers(with_server):
    async def inside(server):
        def ask(key):
            return server.client.post(COMPLETIONS, json={"model": "tiny", **LONG}, headers=bearer(key))

        under_way = [asyncio.ensure_future(ask(KEYS[0])) for _ in range(2)]
        await asyncio.sleep(0.02)
        refused, other = await ask(KEYS[0]), await ask(KEYS[1])
        done = await asyncio.gather(*under_way)
        return refused, [one.status_code for one in (*done, other, await ask(KEYS[0]))]

    refused, statuses = with_server(inside, per_key=2, keys=KEYS)
    error = error_of(refused, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "too_many_requests")
    assert refused.headers["retry-after"] == "1"
    assert statuses == [200] * 4


@pytest.mark.parametrize("streamed", [False, True])
def test_who_has_the_whole_answer_may_ask_again_at_once(with_server, streamed):
    async def inside(server):
        again = []

        async def watched(scope, receive, send):
            async def watch(message):
                if message.get("body", b"").endswith(b"[DONE]\n\n" if streamed else b"}"):
                    again.append(await server.post(COMPLETIONS, prompt="a", max_tokens=1))
                await send(message)

            await server.app(scope, receive, watch)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(watched), base_url="http://localhost") as client:
            await client.post(COMPLETIONS, json={"model": "tiny", "prompt": "a", "max_tokens": 2, "stream": streamed})
        return again

    [again] = with_server(inside, per_key=1)
    assert again.status_code == 200, again.text


def test_the_queue_is_bounded_and_empties(with_server):
    async def inside(server):
        asked = [asyncio.ensure_future(server.post(COMPLETIONS, **LONG)) for _ in range(6)]
        done = await asyncio.gather(*asked)
        full = await server.refused(400, COMPLETIONS, **LONG, n=5)
        later = await server.ask(COMPLETIONS, prompt="a", max_tokens=1, n=4)
        metrics = (await server.client.get("/metrics")).text
        return done, full, later, metrics, server.service.worker.taken

    done, full, later, metrics, taken = with_server(inside, slots=1, queue=3)
    refused = [answer for answer in done if answer.status_code != 200]
    assert len(refused) == 2
    for answer in refused:
        assert error_of(answer, 429)["code"] == "queue_full"
        assert answer.headers["retry-after"]
    assert full["param"] == "n"
    assert len(later["choices"]) == 4
    assert 'pellucid_rejected_total{code="queue_full"} 2.0' in metrics
    assert taken == 0


def test_an_id_is_the_clients_if_it_is_sane(with_server):
    async def inside(server):
        found = []
        for asked in ("trace-1", "x" * 500, "a b", 'a"', ""):
            answer = await server.client.get("/livez", headers={"x-request-id": asked})
            found.append(answer.headers["x-request-id"])
        return found

    sane, *made = with_server(inside)
    assert sane == "trace-1"
    assert all(id.startswith("req-") for id in made)
    assert len(set(made)) == len(made)


def lines_of(caplog):
    return [json.loads(record.message) for record in caplog.records if record.name == "pellucid.serving"]


@pytest.mark.parametrize("log_text", [False, True])
def test_a_request_is_a_line_of_the_log_without_its_text_unless_asked(with_server, caplog, log_text):
    messages = [{"role": "user", "content": "my secret"}]

    async def inside(server):
        one = await server.client.post(
            CHAT,
            json={"model": "tiny", "messages": messages, "max_tokens": 4, "stream": True, "logit_bias": {"0": -100}},
            headers=bearer(KEYS[0]) | {"x-request-id": "mine"},
        )
        return one, await server.client.post(COMPLETIONS, json={"model": "tiny", "prompt": 5}, headers=bearer(KEYS[1]))

    with caplog.at_level(logging.INFO, "pellucid.serving"):
        with_server(inside, keys=KEYS, log_text=log_text)
    first, second = lines_of(caplog)
    assert (first["id"], first["method"], first["path"], first["status"]) == ("mine", "POST", CHAT, 200)
    assert first["completion_tokens"] == 4
    assert first["prompt_tokens"] > 4
    assert first["finish_reasons"] == ["length"]
    assert first["seconds"] >= first["first_token_seconds"] >= first["queue_seconds"] >= 0
    assert first["key"] == hashlib.sha256(KEYS[0].encode()).hexdigest()[:12]
    assert (second["status"], second["error"]) == (400, "invalid_value")
    assert not [key for key in KEYS if key in caplog.text]
    assert ("my secret" in caplog.text) == log_text


def test_figures_for_prometheus(with_server):
    async def inside(server):
        await server.ask(COMPLETIONS, prompt="Alice", max_tokens=5, n=2, logit_bias={"0": -100})
        await server.client.get("/nowhere")
        return (await server.client.get("/metrics")).text

    text = with_server(inside)
    for line in (
        'pellucid_finished_total{reason="length"} 2.0',
        "pellucid_completion_tokens_total 10.0",
        "pellucid_time_to_first_token_seconds_count 2.0",
        "pellucid_inter_token_seconds_count 8.0",
        "pellucid_queue_seconds_count 2.0",
        "pellucid_texts_running 0.0",
        "pellucid_texts_waiting 0.0",
        "pellucid_cache_used_ratio 0.0",
        'pellucid_requests_total{path="/v1/completions",status="200"} 1.0',
        'pellucid_requests_total{path="other",status="404"} 1.0',
    ):
        assert line in text.splitlines(), text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": "0.0.0.0"}, "host 0.0.0.0 lets other machines connect"),
        ({"host": "example.org"}, "host example.org lets other machines connect"),
        ({"keys": ("short",)}, "an API key must have at least 16 characters"),
        ({"keys": ("with a space in the middle",)}, "an API key must have at least 16 characters"),
        ({"slots": 0}, "slots must be at least 1, not 0"),
        ({"timeout": 0.0}, "timeout must be above 0 seconds, not 0.0"),
        ({"port": 70_000}, "port must be from 0 to 65535, not 70000"),
        ({"origins": ("*",)}, "the origin '*' is not of the form"),
        ({"hosts": ("a:80",)}, "the host 'a:80' is not a name"),
        ({"name": ""}, "name must have 1 to 200 characters"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(fields, message):
    with pytest.raises(ConfigError) as caught:
        ServeSettings(**fields)
    assert str(caught.value).startswith(message)
    assert "short" not in str(caught.value)  # no key is shown


def test_a_context_beyond_the_models_is_one_sentence(model):
    from pellucid.serving import create_app

    with pytest.raises(ConfigError, match=r"^context 5,000 exceeds the model's own, 256; give that or less$"):
        create_app(model, ServeSettings(context=5000))


def test_a_smaller_context_is_the_servers(with_server):
    async def inside(server):
        fits = await server.ask(COMPLETIONS, prompt=[5] * 20, max_tokens=10)
        return fits, await server.refused(400, COMPLETIONS, prompt=[5] * 20, max_tokens=20)

    fits, refused = with_server(inside, context=32)
    assert fits["usage"]["total_tokens"] <= 30
    assert refused == {
        "message": "this model's maximum context length is 32 tokens, but the prompt has 20 and max_tokens 20 more; "
        "shorten the prompt, or ask for fewer tokens",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "context_length_exceeded",
    }
