"""Behind a real socket: clients that go, that are slow, that speak no HTTP; and an end that loses nobody's answer."""

import contextlib
import json
import socket
import time

import httpx
import pytest
from served import error_of, listening, slowed, wait

COMPLETIONS = "/v1/completions"
LONG = {"model": "tiny", "prompt": "Alice", "max_tokens": 240, "logit_bias": {"0": -100}}


def request_of(body, **headers):
    """A request as bytes."""
    payload = json.dumps(body).encode()
    lines = [
        f"POST {COMPLETIONS} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + payload


def all_of(connection):
    """Everything until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65_536):
            found += part
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_takes_its_work_along(model, stream):
    with listening(model) as (port, app):
        engine = slowed(app, 0.02)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request_of(LONG | {"stream": stream}))
            wait(lambda: engine.places and engine.places[0].text.tokens)
            begun = time.monotonic()
        wait(lambda: not engine.places)
        assert time.monotonic() - begun < 1.5  # what was left would have taken four seconds
        wait(lambda: not app.state.service.worker.taken)


def test_a_stream_comes_piece_by_piece(model):
    with listening(model) as (port, app):
        slowed(app, 0.02)
        body = LONG | {"max_tokens": 30, "stream": True}
        with httpx.stream("POST", f"http://127.0.0.1:{port}{COMPLETIONS}", json=body) as answer:
            times = [time.monotonic() for line in answer.iter_lines() if line.startswith("data: {")]
        assert len(times) > 15
        assert times[-1] - times[0] > 0.3


def test_a_client_that_never_finishes_its_head_is_told_and_let_go(model):
    with listening(model, read_timeout=0.4) as (port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        time.sleep(0.2)
        connection.sendall(b"X-Slow: 1\r\n")
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "request_timeout"


def test_a_second_head_must_come_in_time_too(model):
    with listening(model, read_timeout=0.5) as (port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez HTTP/1.1\r\nHo")
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answer


def test_a_connection_without_a_request_is_closed_in_silence(model):
    with listening(model, read_timeout=0.4) as (port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        assert all_of(connection) == b""
        with socket.create_connection(("127.0.0.1", port)) as kept:
            kept.settimeout(10)
            kept.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert all_of(kept).endswith(b'{"status":"ok"}')


def test_a_body_that_trickles_is_a_408(model):
    with listening(model, read_timeout=0.4) as (port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(request_of(LONG)[:-20])
        answer = all_of(connection)
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["error"]["code"] == "request_timeout"


def test_a_client_that_does_not_read_is_let_go(model):
    """Its answer is megabytes, of which the system's buffers hold a part."""
    with listening(model, read_timeout=0.5, timeout=60) as (port, app):
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall(request_of(LONG | {"stream": True, "logprobs": 20, "n": 60, "max_tokens": 200}))
            wait(lambda: app.state.service.worker.taken)
            wait(lambda: not app.state.service.worker.taken, 30)
        assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200


def test_what_is_no_http_is_an_error_object_too(model):
    with listening(model) as (port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "invalid_http"


def test_many_clients_get_their_own_answers(model):
    from concurrent.futures import ThreadPoolExecutor

    def ask(number):
        body = {"model": "tiny", "prompt": f"client {number}", "max_tokens": 12, "seed": number, "stream": bool(number % 2)}
        answer = httpx.post(f"http://127.0.0.1:{port}{COMPLETIONS}", json=body, timeout=60)
        if not number % 2:
            return answer.json()["choices"][0]["text"]
        events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
        return "".join(event["choices"][0]["text"] for event in events)

    with listening(model) as (port, app):
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(ask, range(32)))
        assert app.state.service.worker.taken == 0
    expected = [model.generate(f"client {number}", max_tokens=12, seed=number).text for number in range(32)]
    assert found == expected


def test_a_connection_is_kept_for_further_requests(model):
    with listening(model) as (port, _), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(3):
            error_of(client.post(COMPLETIONS, json={"model": "tiny"}), 400)
            assert client.post(COMPLETIONS, json=LONG | {"max_tokens": 2}).status_code == 200
        stream = client.get("/v1/models").extensions["network_stream"]
        assert stream is not None


def test_an_answer_waits_for_nothing(model):
    """A system that gathers small pieces (Nagle's algorithm) would hold each answer back for 40 ms."""
    with listening(model) as (port, _), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        times = []
        for _ in range(20):
            begun = time.monotonic()
            client.get("/livez")
            times.append(time.monotonic() - begun)
    assert min(times[1:]) < 0.03
    assert sorted(times)[10] < 0.04
