"""The promise: whatever is sent is refused with a 4xx, and the next request is answered as if nothing had been.

PELLUCID_ATTACK_REQUESTS=1000 pytest -m slow -s tests/journeys/test_serve_attack.py
"""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
from test_serve_load import resident, settled

import pellucid

REQUESTS = int(os.environ.get("PELLUCID_ATTACK_REQUESTS", "10000"))
THREADS, MOST, PATIENCE = 8, 300_000, 2.0  # PATIENCE: seconds that the server waits for slow clients
SLOW = 40  # of the clients that are slow, each for as long as it is let

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + REQUESTS)]

FAIR = {"model": "stories", "prompt": "Lily", "max_tokens": 12, "temperature": 0}
COMPLETIONS, CHAT, EMBEDDINGS, TOKENIZE, RESPONSES = (
    "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/v1/responses",
)  # fmt: skip
PATHS = (COMPLETIONS, CHAT, EMBEDDINGS, TOKENIZE, RESPONSES, "/v1/score", "/v1/classify", "/detokenize")


def raw(text):
    """A body as it is, with the fields of a fair request around what is wrong."""
    return lambda chance: (COMPLETIONS, b'{"model":"stories","prompt":"a","max_tokens":2,' + text + b"}")


def fields(**wrong):
    return lambda chance: (COMPLETIONS, json.dumps(FAIR | wrong).encode())


def schema(schema):
    return fields(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})


def any_path(body):
    return lambda chance: (chance.choice(PATHS), body)


def number(name, *values):
    return lambda chance: (COMPLETIONS, b'{"model":"stories","prompt":"a","%s":%s}' % (name, chance.choice(values)))


def noise(chance):
    return chance.choice(PATHS), chance.randbytes(chance.randrange(1, 2000))


def mutilated(chance):
    """A fair request with some bytes changed, cut or doubled; what is left may be fair."""
    body = bytearray(json.dumps(FAIR | {"max_tokens": 2}).encode())
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(body))
        body[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return COMPLETIONS, bytes(body)


HUGE = b"1" + b"0" * 400
REFUSED = {
    "oversized": lambda chance: (chance.choice(PATHS), b'{"prompt":"' + b"x" * MOST * chance.randrange(1, 4) + b'"}'),
    "a long prompt": fields(prompt="word " * 50_000),
    "many prompts": fields(prompt=["a"] * 5000),
    "nested lists": any_path(b"[" * 100_000 + b"]" * 100_000),
    "nested objects": any_path(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "nested and open": any_path(b'{"prompt":' + b"[" * 100_000),
    "nested in a schema": schema(json.loads('{"items":' * 100 + "{}" + "}" * 100)),
    "NaN": raw(b'"temperature":NaN'),
    "Infinity": raw(b'"temperature":-Infinity'),
    "1e309": raw(b'"top_p":1e309'),
    "negative": number(b"max_tokens", b"-1", b"-2147483649", b"-1e20", b"-0.5"),
    "huge": number(b"max_tokens", b"2147483648", b"9223372036854775808", b"1e30", HUGE),
    "huge seed": number(b"seed", b"9223372036854775808", HUGE, b"-1"),
    "huge n": number(b"n", b"129", b"100000", b"0", HUGE),
    "booleans": number(b"max_tokens", b"true", b"false"),
    "booleans as ids": fields(prompt=[True, False]),
    "texts as numbers": number(b"temperature", b'"1"', b'"hot"', b"[]", b"{}"),
    "lone surrogates": raw(b'"stop":"\\ud800"'),
    "lone surrogates in names": raw(b'"\\udc00":1'),
    "a raw NUL": raw(b'"stop":"\0"'),
    "no UTF-8": raw(b'"stop":"\xff\xfe"'),
    "unknown tokens": fields(prompt=[5, 10**6]),
    "negative tokens": fields(prompt=[5, -1]),
    "tokens beyond 64 bits": fields(prompt=[2**70]),
    "minus infinity for all": raw(b'"logit_bias":{' + b",".join(b'"%d":-Infinity' % id for id in range(512)) + b"}"),
    "a bias too far": fields(logit_bias={str(id): -1e300 for id in range(512)}),
    "biases beyond the vocabulary": fields(logit_bias={str(id): -100 for id in range(600, 700)}),
    "10,000 stop strings": fields(stop=[str(n) for n in range(10_000)]),
    "a long stop string": fields(stop="x" * 100_000),
    "an empty stop string": fields(stop=["", ""]),
    "empty": any_path(b""),
    "an empty object": any_path(b"{}"),
    "empty everything": fields(model="", prompt="", stop="", user=""),
    "empty messages": lambda chance: (CHAT, b'{"model":"stories","messages":[]}'),
    "unbalanced regex": fields(regex="(" * 5000),
    "a regex that counts": fields(regex="((a{100}){100}){100}"),
    "lookaround": fields(regex="(?=a)(?<!b)c\\1"),
    "a schema without a way out": schema({"$ref": "#/nowhere"}),
    "a large schema": schema({"enum": ["x" * 70_000]}),
    "unknown fields": lambda chance: (COMPLETIONS, json.dumps(FAIR | {f"x{chance.random()}": 1}).encode()),
    "prototypes": fields(__proto__={"a": 1}, constructor=1),
    "another model": fields(model="../../etc/passwd\n"),
    "a field twice": raw(b'"max_tokens":2'),
    "noise": noise,
}
ANSWERED = {  # unkind, but allowed: they may be answered
    "mutilated": mutilated,
    "every token forbidden": fields(logit_bias={str(id): -100 for id in range(512)}),
    "a catastrophic regex": fields(regex="(a|aa|a*)*(a*)*b"),
    "a recursive schema": schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    "a schema of itself": schema({"$ref": "#"}),
    "a NUL": fields(prompt="a\0b"),
    "special tokens": lambda chance: (
        CHAT,
        json.dumps(
            {"model": "stories", "max_tokens": 2, "messages": [{"role": "user", "content": "</s><s><|im_end|>[INST]<<SYS>>"}]}
        ).encode(),
    ),
    "very many choices": fields(choices=[f"{n}" for n in range(1000)], max_tokens=3),
}
HEAD = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
WIRE = {  # what is no HTTP: a 4xx, or the connection is closed
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
    "a huge header": HEAD + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    "many headers": HEAD + b"".join(b"X-%d: 1\r\n" % n for n in range(10_000)) + b"\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "a length of letters": HEAD + b"Content-Length: ten\r\n\r\n",
    "a huge length": HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "length and chunks": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks of letters": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    "a path without end": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path that climbs": b"GET /page/../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "another host": b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "a NUL in the head": b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a split header": HEAD + b"X: a\rb\nc\r\n\r\n",
    "another method": b"BREW /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


def wire(port, sent):
    """The status of what is sent byte for byte; 0 if the connection was closed instead."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        found = b""
        with contextlib.suppress(ConnectionError):
            while b"\r\n" not in found and (part := connection.recv(4096)):
                found += part
    return int(found.split()[1]) if found else 0


class Attacker:
    """One that keeps its connection as long as the server lets it."""

    def __init__(self, port, seed):
        self.port, self.chance, self.seen, self.wrong = port, random.Random(seed), Counter(), list[str]()
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def post(self, path, body):
        self.connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def attack(self, count):
        for _ in range(count):
            kinds = self.chance.choices([REFUSED, ANSWERED, WIRE], [8, 1, 1])[0]
            name = self.chance.choice([*kinds])
            try:
                if kinds is WIRE:
                    status = wire(self.port, WIRE[name])
                    fine = status == 0 or 400 <= status < 500
                else:
                    status, body = self.post(*kinds[name](self.chance))
                    fine = 400 <= status < 500 or (status == 200 and kinds is ANSWERED)
                    fine = fine and (status == 200 or bool(json.loads(body)["error"]["message"]))
            except Exception as error:
                status, fine = repr(error)[:200], False
                self.connection.close()
            self.seen[status] += 1
            if not fine:
                self.wrong.append(f"{name}: {status}")
        self.connection.close()
        return self


def trickle(port):
    """A body that comes byte by byte; the seconds that the server bears it."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 30) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        connection.settimeout(0.1)
        answer = b""
        while not answer.startswith(b"HTTP/1.1 408"):
            assert time.monotonic() - begun < 60
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer += connection.recv(1000)
    return time.monotonic() - begun


def read_nothing(port):
    """Ask for megabytes and read none of them; the server lets go, which its figures say in the end."""
    bans = {"1": -100, "2": -100}
    body = json.dumps(FAIR | {"stream": True, "logprobs": 20, "n": 4, "max_tokens": 400, "logit_bias": bans})
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        time.sleep(15)
    return 0.0


def test_ten_thousand_hostile_requests_are_refused_and_the_next_is_answered(data, tmp_path):
    source = data / "weights/stories260K/stories260K.bin"
    fair = {name: FAIR[name] for name in ("max_tokens", "temperature")}
    expected = pellucid.load(source, precision="fp32").generate(FAIR["prompt"], **fair).text
    words = ("--port", 0, "--name", "stories", "--precision", "fp32", "--compile", "no", "--slots", 8, "--max-body", MOST)
    words += ("--read-timeout", PATIENCE, "--per-key", 1000, "--queue", 2000)
    log = (tmp_path / "log").open("w")
    process = tiny.command("serve", source, *words, stderr=log)
    begun, waits = time.monotonic(), list[float]()
    try:
        port = int(process.stdout.readline().split()[2].rsplit(":", 1)[1].split("/")[0])

        def ask_fairly():
            began = time.monotonic()
            status, body = Attacker(port, 0).post(COMPLETIONS, json.dumps(FAIR))
            assert status == 200, body
            assert json.loads(body)["choices"][0]["text"] == expected
            waits.append(time.monotonic() - began)

        ask_fairly()
        memory, rounds = [resident(process.pid)], 20
        attackers = [Attacker(port, seed) for seed in range(THREADS)]
        with ThreadPoolExecutor(THREADS + SLOW) as pool:
            slow = [pool.submit(trickle if n % 2 else read_nothing, port) for n in range(SLOW)]
            for _ in range(rounds):
                for attacker in pool.map(lambda one: one.attack(-(-REQUESTS // (THREADS * rounds))), attackers):
                    assert not attacker.wrong, attacker.wrong[:5]
                ask_fairly()
                memory.append(resident(process.pid))
            borne = [one.result() for one in slow]
        ask_fairly()
        settled(port, lambda now: not (now["pellucid_texts_running"] or now["pellucid_texts_waiting"]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    seen = sum((attacker.seen for attacker in attackers), Counter())
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    report = {
        "requests": sum(seen.values()), "seconds": round(time.monotonic() - begun),
        "statuses": {str(status): count for status, count in seen.items()},
        "slow_clients": SLOW, "longest_borne_seconds": round(max(borne), 1), "fair_requests": len(waits),
        "slowest_fair_answer_seconds": round(max(waits), 2), "resident_mb": [round(each) for each in memory],
    }  # fmt: skip
    print(json.dumps(report))
    assert not [line for line in lines if line["status"] >= 500]
    assert "Traceback" not in Path(tmp_path / "log").read_text()
    assert memory[-1] < 1.1 * max(memory[: rounds // 2])  # what is large for a moment is given back or used again
