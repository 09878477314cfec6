"""Tokens a second: our engine against transformers' `generate`, the same weights, side by side.

Llama-shaped networks with random weights: 124M (12 x 768, 50,304 tokens) and 10M (6 x 384, 8,192 tokens). A prompt of random
tokens for each text is continued greedily; what is measured is the rate of new tokens after the first. Random weights write no
text that repeats itself, so the engine's guesses, which save steps where a text does, are no help here. Every measurement is a
process of its own, after a short text to warm up; the contenders go in turns; the figures are medians over the turns.

    python benchmarks/decode.py [--sizes 10M 124M] [--batches 1 8] [--tokens 64] [--prompt 32] [--turns 3]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from alone import alone, quiet

from pellucid.core.machine import cpu_cores

SHAPES = {
    "10M": {"vocab_size": 8192, "d_model": 384, "layers": 6, "heads": 6, "kv_heads": 6, "d_head": 64, "d_mlp": 1024},
    "124M": {"vocab_size": 50304, "d_model": 768, "layers": 12, "heads": 12, "kv_heads": 12, "d_head": 64, "d_mlp": 2048},
}


def prepare(folder: Path, size: str) -> None:
    """A model folder that both sides open."""
    from pellucid.network.build import build
    from pellucid.network.families import FAMILIES
    from pellucid.network.weights import save_network

    network = build(FAMILIES["llama"].new(context_length=1024, **SHAPES[size]), seed=0)
    for weight in network.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.05)
    folder.mkdir()
    save_network(network, folder, end_of_text=0)


def prompts(size: str, batch: int, length: int) -> list[list[int]]:
    import torch

    draw = torch.Generator().manual_seed(1)
    return torch.randint(1, SHAPES[size]["vocab_size"], (batch, length), generator=draw).tolist()


def ours(folder: Path, size: str, threads: int, precision: str, batch: int, prompt: int, tokens: int) -> float:
    """Tokens a second of the engine."""
    import torch

    from pellucid.core.device import DTYPES
    from pellucid.generation.engine import Engine
    from pellucid.generation.settings import Sampling
    from pellucid.generation.text import Request, Text
    from pellucid.network.weights import load_network
    from pellucid.text.tokenizer import Tokenizer

    torch.set_num_threads(threads)
    network, words = load_network(folder).to(DTYPES[precision]).eval(), Tokenizer.train_chars(["a"])
    vocabulary = SHAPES[size]["vocab_size"]

    class Mute:
        def push(self, _: int) -> str:  # what has no tokenizer has no text
            return ""

        def finish(self) -> str:
            return ""

    def write(most: int) -> float:
        engine = Engine(network, known=vocabulary, slots=batch, length=prompt + most)
        for ids in prompts(size, batch, prompt):
            request = Request(prompt=ids, vocabulary=vocabulary, max_tokens=most, sampling=Sampling(temperature=0.0))
            text = Text(request, words)
            text.decoder, text.ends = Mute(), frozenset()
            engine.add(text)
        while any(place.unread for place in engine.places) or engine.waiting:
            engine.step()
        done, begun = sum(len(place.text.tokens) for place in engine.places), time.perf_counter()
        while engine.busy:
            engine.step()
        return (batch * most - done) / (time.perf_counter() - begun)

    write(8)
    return write(tokens)


def theirs(folder: Path, size: str, threads: int, precision: str, batch: int, prompt: int, tokens: int) -> float:
    """Tokens a second of transformers: what further tokens take beyond those of a text of one."""
    import torch
    from transformers import AutoModelForCausalLM

    quiet()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    ).eval()
    ids = torch.tensor(prompts(size, batch, prompt))

    def write(most: int) -> float:
        begun = time.perf_counter()
        options = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": 0}
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return time.perf_counter() - begun

    write(8)
    return batch * (tokens - 1) / (write(tokens) - min(write(1), write(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cpu_cores())
    asked = parser.parse_args()
    rates: dict[str, float] = {}
    with TemporaryDirectory() as temporary:
        for size, batch in product(asked.sizes, asked.batches):
            folder = Path(temporary) / size
            if not folder.exists():
                alone(prepare, folder, size)
            contenders = {
                f"{name}_{precision}": partial(
                    alone, side, folder, size, asked.threads, precision, batch, asked.prompt, asked.tokens
                )
                for name, side in (("ours", ours), ("transformers", theirs))
                for precision in ("fp32", "bf16")
            }
            turns: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(asked.turns):
                for name, contender in contenders.items():
                    turns[name].append(contender())
            for name, found in turns.items():
                rates[f"{size}_batch{batch}_{name}"] = median(found)
                each = ", ".join(f"{rate:,.0f}" for rate in found)
                print(f"{size:>5} batch {batch:<3} {name:<18} {median(found):8,.0f} tokens/s ({each})", file=sys.stderr)
    ratios = {
        f"{size}_batch{batch}_{precision}": rates[f"{size}_batch{batch}_ours_{precision}"]
        / max(rates[f"{size}_batch{batch}_transformers_{one}"] for one in ("fp32", "bf16"))
        for size, batch, precision in product(asked.sizes, asked.batches, ("fp32", "bf16"))
    }
    print(json.dumps({"ratios_to_their_best": ratios, "tokens_per_second": rates, "threads": asked.threads}))


if __name__ == "__main__":
    main()
