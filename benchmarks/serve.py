"""Tokens a second of the server with many clients, as a share of the engine's without one; and those of llama.cpp's server.

A Llama-shaped network with random weights, those of benchmarks/decode.py. Clients that each wait for their answer before they
ask again work through one list of requests: prompts and answers of mixed lengths, greedy, streamed. `pellucid serve` and the
server of xllamacpp get them over HTTP, from a process of its own; the engine alone gets all of them at once. Each is a process
of its own with as many slots as there are clients, warmed up by a few short requests; they go in turns, and the figures are
medians over the turns. The time to the first token and that between two pieces of text are the clients'.

    python benchmarks/serve.py [--size 124M] [--precisions bf16 int8] [--clients 16] [--requests 64] [--turns 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from alone import alone
from decode import BITS, SHAPES, prepare

from pellucid.core.machine import cpu_cores

CONTEXT = 512
Asked = tuple[list[int], int]  # a prompt and how many tokens are to follow
Found = dict[str, float]


def requests(size: str, count: int, prompts: tuple[int, int], answers: tuple[int, int]) -> list[Asked]:
    """Prompts of random tokens, none of which is the end of text."""
    chance, vocabulary = random.Random(1), SHAPES[size]["vocab_size"]
    return [
        ([chance.randrange(1, vocabulary) for _ in range(chance.randint(*prompts))], chance.randint(*answers))
        for _ in range(count)
    ]


def offline(folder: Path, precision: str, threads: int, slots: int, asked: list[Asked]) -> Found:
    """The engine without a server."""
    import torch

    import pellucid
    from pellucid.generation.engine import Engine
    from pellucid.generation.generate import requested
    from pellucid.generation.settings import Sampling
    from pellucid.generation.text import Text

    torch.set_num_threads(threads)
    model = pellucid.load(folder, precision=precision)
    model.compile(if_it_pays=True)
    network, tokenizer = model.network, model.tokenizer
    engine = Engine(network, known=tokenizer.vocab_size, slots=slots, length=CONTEXT)
    sampling = Sampling(temperature=0.0, logit_bias=((0, -100.0),))

    def write(several: list[Asked]) -> float:
        for ids, most in several:
            engine.add(Text(requested(network, tokenizer, ids, most, sampling, [], model.ends, 0), tokenizer, None))
        begun = time.perf_counter()
        while engine.busy:
            engine.step()
        return time.perf_counter() - begun

    write(warm(asked))
    return {"tokens_per_second": sum(most for _, most in asked) / write(asked)}


def warm(asked: list[Asked]) -> list[Asked]:
    return [(ids[:16], 8) for ids, _ in asked[:4]]


@contextmanager
def address_of(words: list[Any]) -> Iterator[tuple[str, int]]:
    """Start a server that says where it is; end it."""
    process = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "http://" in line:
                host, port = line.split("http://")[1].split("/")[0].strip().split(":")
                break
        else:
            raise SystemExit(f"{words[0]} did not start")
        yield host, int(port)
    finally:
        process.terminate()
        process.wait(60)


def served(words: list[Any], more: dict[str, Any], clients: int, asked: list[Asked]) -> Found:
    """A server, and clients in another process."""
    with address_of(words) as (host, port):
        return alone(crowd, host, port, more, clients, asked)


def crowd(host: str, port: int, more: dict[str, Any], clients: int, asked: list[Asked]) -> Found:
    """What clients see: each asks for the next of the requests when its last is answered."""

    async def ask(ids: list[int], most: int, first: list[float], between: list[float]) -> None:
        fields = {"model": "model", "prompt": ids, "max_tokens": most, "temperature": 0, "stream": True}
        body = json.dumps(fields | more).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        reader, writer = await asyncio.open_connection(host, port, limit=2**20)
        begun = last = time.perf_counter()
        writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
        status, pieces, tail = await reader.readline(), 0, b""
        if b" 200 " not in status:
            raise SystemExit(f"a server answered {status!r}: {await reader.read()!r:.500}")
        async for line in reader:
            if line.startswith(b"data: {"):
                now = time.perf_counter()
                (between if pieces else first).append(now - last)
                last, pieces, tail = now, pieces + 1, line
        writer.close()
        used = json.loads(tail[6:]).get("usage") or {}
        assert used.get("completion_tokens") == most, f"{most} tokens were asked for: {tail!r:.500}"
        assert time.perf_counter() > begun

    async def all_of(several: list[Asked]) -> tuple[float, list[float], list[float]]:
        waiting, first, between = iter(several), list[float](), list[float]()

        async def client() -> None:
            for ids, most in waiting:
                await ask(ids, most, first, between)

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - begun, first, between

    asyncio.run(all_of(warm(asked)))
    seconds, first, between = asyncio.run(all_of(asked))
    found = {"tokens_per_second": sum(most for _, most in asked) / seconds}
    for name, times in (("first_token", first), ("between", between)):
        cuts = quantiles(times, n=20)
        found |= {f"{name}_p50_ms": 1000 * cuts[9], f"{name}_p95_ms": 1000 * cuts[18]}
    return found


def llama_server(file: str, threads: str, slots: str) -> None:
    """Run llama.cpp's server until it is ended."""
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = file
    options.n_ctx, options.n_parallel, options.verbosity = CONTEXT * int(slots), int(slots), -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(options)
    print(server.listening_address, flush=True)
    time.sleep(10**6)


def main() -> None:
    if sys.argv[1:2] == ["--llama-server"]:
        return llama_server(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="124M")
    parser.add_argument("--precisions", nargs="+", choices=BITS, default=["bf16", "int8"])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompts", nargs=2, type=int, default=(16, 192), metavar=("LEAST", "MOST"))
    parser.add_argument("--answers", nargs=2, type=int, default=(16, 128), metavar=("LEAST", "MOST"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cpu_cores())
    chosen = parser.parse_args()
    asked = requests(chosen.size, chosen.requests, tuple(chosen.prompts), tuple(chosen.answers))
    with_llama = find_spec("xllamacpp") is not None
    if not with_llama:
        print("llama.cpp is left out: there is no xllamacpp here", file=sys.stderr)
    found: dict[str, Any] = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / chosen.size
        alone(prepare, folder, chosen.size, [BITS[precision] for precision in chosen.precisions] if with_llama else [])
        for precision in chosen.precisions:
            serve = [
                sys.executable,
                "-m",
                "pellucid.cli",
                "serve",
                folder,
                "--port",
                0,
                "--name",
                "model",
                "--context",
                CONTEXT,
            ]
            serve += ["--slots", chosen.clients, "--precision", precision]
            ours = {"logit_bias": {"0": -100}, "stream_options": {"include_usage": True}}
            contenders: dict[str, Callable[[], Found]] = {
                "engine": partial(alone, offline, folder, precision, chosen.threads, chosen.clients, asked),
                "server": partial(served, serve, ours, chosen.clients, asked),
            }
            if with_llama:
                file = folder / f"{BITS[precision]}.gguf"
                llama = [sys.executable, __file__, "--llama-server", file, chosen.threads, chosen.clients]
                theirs = {"ignore_eos": True, "cache_prompt": False, "stream_options": {"include_usage": True}}
                contenders["llama.cpp"] = partial(served, llama, theirs, chosen.clients, asked)
            turns = [{name: contender() for name, contender in contenders.items()} for _ in range(chosen.turns)]
            medians = {
                name: {figure: median(turn[name][figure] for turn in turns) for figure in turns[0][name]} for name in contenders
            }
            rates = {name: figures["tokens_per_second"] for name, figures in medians.items()}
            shares = {"server_of_engine": rates["server"] / rates["engine"]}
            if with_llama:
                shares["server_of_llama.cpp"] = rates["server"] / rates["llama.cpp"]
            found[precision] = {"shares": shares, "figures": medians}
            for name, figures in medians.items():
                each = ", ".join(f"{turn[name]['tokens_per_second']:,.0f}" for turn in turns)
                rest = ", ".join(f"{figure} {value:,.1f}" for figure, value in figures.items() if figure != "tokens_per_second")
                print(f"{precision:>5} {name:<10} {rates[name]:8,.0f} tokens/s ({each}) {rest}", file=sys.stderr)
    settings = {
        name: getattr(chosen, name) for name in ("size", "clients", "requests", "prompts", "answers", "turns", "threads")
    }
    print(json.dumps({"found": found, **settings}))


if __name__ == "__main__":
    main()
