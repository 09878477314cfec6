"""The promise: however many come, go, cancel and vanish, everybody gets the answer to their own request, and nothing is left.

PELLUCID_LOAD_SECONDS=180 PELLUCID_LOAD_CLIENTS=64 pytest -m slow -s tests/journeys/test_serve_load.py
"""

import asyncio
import json
import os
import random
import signal
import socket
import struct
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

import httpx
import pytest
import tiny

import pellucid

SECONDS = float(os.environ.get("PELLUCID_LOAD_SECONDS", "600"))
CLIENTS = int(os.environ.get("PELLUCID_LOAD_CLIENTS", "64"))
SLOTS, REQUESTS, WARM = 16, 96, 0.2  # WARM: the share of the time in which memory may still grow
FLAT = 1.03

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 600)]

BEGINNINGS = [
    "Once upon a time",
    "Lily and Tom went to the park",
    "The big dog",
    "One day, a little girl named Mia",
    "Ben was sad",
]


def make_requests(model):
    """Requests with seeds, and the answer that each has alone."""
    chance, made = random.Random(0), []
    for number in range(REQUESTS):
        prompt = f"{chance.choice(BEGINNINGS)}. {number} {' and a cat' * chance.randrange(0, 30)}"
        asked = {"seed": number, "max_tokens": chance.randrange(4, 100), "temperature": chance.choice([0.0, 0.7, 1.0, 1.3])}
        if chance.random() < 0.3:
            asked["stop"] = ["."]
        expected = model.generate(prompt, **asked)
        made.append(({"model": "stories", "prompt": prompt, **asked}, expected.text, len(expected.tokens)))
    return made


class Crowd:
    """Clients, what they do, and what they saw."""

    def __init__(self, port, asked, until):
        self.port, self.asked, self.until = port, asked, until
        self.done, self.wrong = Counter(), list[str]()
        self.times, self.first, self.tokens = list[float](), list[float](), 0

    async def client(self, number):
        """One client after another, each with its own connections."""
        chance = random.Random(number)
        while time.monotonic() < self.until:
            options = {"base_url": f"http://127.0.0.1:{self.port}", "timeout": 120}
            async with httpx.AsyncClient(**options) as http:
                for _ in range(chance.randrange(1, 12)):
                    if time.monotonic() >= self.until:
                        break
                    weights = {self.whole: 4, self.stream: 3, self.leave: 1, self.cancel: 1, self.vanish: 1}
                    [act] = chance.choices([*weights], [*weights.values()])
                    try:
                        await act(http, chance, *chance.choice(self.asked))
                        self.done[act.__name__] += 1
                    except Exception as error:
                        self.wrong.append(f"{act.__name__}: {error!r:.300}")
                    await asyncio.sleep(chance.expovariate(10))

    def check(self, body, found, expected, began, count):
        if found != expected:
            self.wrong.append(f"{body['prompt'][:40]!r} with seed {body['seed']} got {found[:80]!r}, not {expected[:80]!r}")
        self.times.append(time.monotonic() - began)
        self.tokens += count

    async def whole(self, http, chance, body, expected, count):
        began = time.monotonic()
        answer = await http.post("/v1/completions", json=body)
        if answer.status_code != 200:
            raise RuntimeError(answer.text)
        self.check(body, answer.json()["choices"][0]["text"], expected, began, count)

    async def stream(self, http, chance, body, expected, count, leave_after=None):
        began, text = time.monotonic(), ""
        async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
            if answer.status_code != 200:
                raise RuntimeError(answer.status_code)
            events, ended = 0, False
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    if not events:
                        self.first.append(time.monotonic() - began)
                    text += json.loads(line[6:])["choices"][0]["text"]
                    events += 1
                    if events == leave_after:
                        break
        if leave_after is None and not ended:
            raise RuntimeError("a stream did not end")
        if ended:
            self.check(body, text, expected, began, count)
        elif not expected.startswith(text.rstrip("\ufffd")):
            self.wrong.append(f"seed {body['seed']} began with {text[:80]!r}, not {expected[:80]!r}")

    async def leave(self, http, chance, *asked):
        """Read a part of a stream, and go."""
        await self.stream(http, chance, *asked, leave_after=chance.randrange(1, 20))

    async def cancel(self, http, chance, body, expected, count):
        """Ask, and think better of it: while waiting, while the prompt is read, or in the middle."""
        try:
            async with asyncio.timeout(chance.expovariate(2)):
                await self.whole(http, chance, body, expected, count)
        except TimeoutError:
            return

    async def vanish(self, http, chance, body, expected, count):
        """Break off in the middle of the request, or after it, without a word: the connection is reset."""
        payload = json.dumps(body | {"stream": chance.random() < 0.5}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        sent = head.encode() + f"Content-Length: {len(payload)}\r\n\r\n".encode() + payload
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.write(sent if chance.random() < 0.7 else sent[: chance.randrange(1, len(sent))])
        await writer.drain()
        await asyncio.sleep(chance.expovariate(3))
        writer.transport.abort()


def resident(pid):
    """Megabytes of memory that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def watch(pid, samples):
    while True:
        samples.append((time.monotonic(), resident(pid)))
        await asyncio.sleep(0.5)


async def crowded(port, pid, asked):
    begun = time.monotonic()
    crowd, samples = Crowd(port, asked, begun + SECONDS), []
    watching = asyncio.ensure_future(watch(pid, samples))
    await asyncio.gather(*map(crowd.client, range(CLIENTS)))
    watching.cancel()
    warm = [megabytes for when, megabytes in samples if when > begun + WARM * SECONDS]
    tenth = max(1, len(warm) // 10)
    return crowd, (median(warm[:tenth]), median(warm[-tenth:])), time.monotonic() - begun


def figures(port):
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def settled(port, check, seconds=20.0):
    """The figures, once they are as they should be."""
    end, seen = time.monotonic() + seconds, set()
    while not check(found := figures(port)):
        seen.add((found["pellucid_texts_running"], found["pellucid_texts_waiting"], found["pellucid_cache_used_ratio"]))
        assert time.monotonic() < end, f"running, waiting, cache used: {sorted(seen)}"
        time.sleep(0.05)
    return found


def percentiles(seconds):
    cut = quantiles(seconds, n=100)
    return {"p50": round(cut[49], 4), "p95": round(cut[94], 4), "p99": round(cut[98], 4)}


def test_a_crowd_is_served_and_leaves_nothing_behind(data, tmp_path):
    source = data / "weights/stories260K/stories260K.bin"
    asked = make_requests(pellucid.load(source, precision="fp32"))
    log = (tmp_path / "log").open("w")
    words = ("--port", 0, "--name", "stories", "--precision", "fp32", "--compile", "no", "--slots", SLOTS)
    process = tiny.command("serve", source, *words, stderr=log)
    try:
        port = int(process.stdout.readline().split()[2].rsplit(":", 1)[1].split("/")[0])
        crowd, (start, end), seconds = asyncio.run(crowded(port, process.pid, asked))
        found = settled(port, lambda now: not (now["pellucid_texts_running"] or now["pellucid_texts_waiting"]))
        assert found["pellucid_cache_used_ratio"] == 0

        body = {
            "model": "stories",
            "prompt": "a",
            "n": SLOTS,
            "max_tokens": 400,
            "stream": True,
            "logit_bias": {"1": -100, "2": -100},
        }
        with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()  # which closes the answer when it is forgotten
            next(lines)
            settled(port, lambda now: now["pellucid_texts_running"] == SLOTS)  # every slot can still be had
        settled(port, lambda now: not now["pellucid_texts_running"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    logged = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    report = {
        "seconds": round(seconds), "clients": CLIENTS, "requests": sum(crowd.done.values()), "by_kind": dict(crowd.done),
        "checked": len(crowd.times), "wrong": len(crowd.wrong), "tokens_per_second": round(crowd.tokens / seconds),
        "answer_seconds": percentiles(crowd.times), "first_token_seconds": percentiles(crowd.first),
        "resident_mb": {"warm": round(start, 1), "end": round(end, 1)},
        "log": dict(Counter(str(line["status"]) for line in logged)),
        "left": sum(line.get("client_left", False) for line in logged),
    }  # fmt: skip
    print(json.dumps(report))
    assert not crowd.wrong, crowd.wrong[:5]
    assert end < FLAT * start
    assert not [line for line in logged if line["status"] >= 500 or line["status"] == 429]
    assert min(crowd.done[kind] for kind in ("whole", "stream", "leave", "cancel", "vanish")) > 0
