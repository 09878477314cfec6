"""Tokens a second, side by side in one run: our engine, transformers' `generate` and llama.cpp, on the same weights.

Llama-shaped networks with random weights: 124M (12 x 768, 50,304 tokens) and 10M (6 x 384, 8,192 tokens). A prompt of random
tokens for each text is continued greedily; what is measured is the rate of new tokens after the first, and of the prompt's
tokens up to it. Random weights write no text that repeats itself, so the engine's guesses, which save steps where a text does,
are no help here. `ours` is with a compiled step. Every measurement is a process of its own, after a short text
to warm up; the contenders go in turns; the figures are medians over the turns.

    python benchmarks/decode.py [--sizes 10M 124M] [--batches 1 8] [--tokens 64] [--prompt 32] [--turns 3] [--llama PYTHON]

`--llama` names a Python that has llama-cpp-python, built for this machine: pip install --no-binary llama-cpp-python with
CMAKE_ARGS=-DGGML_NATIVE=ON. (With llama-cpp-python 0.3.36 and AMX its 8 and 4 bits end in an illegal instruction on some
machines; CFLAGS and CXXFLAGS of "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" leave AMX out.)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice, product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from alone import alone, quiet

from pellucid.core.machine import cpu_cores

SHAPES = {
    "10M": {"vocab_size": 8192, "d_model": 384, "layers": 6, "heads": 6, "kv_heads": 6, "d_head": 64, "d_mlp": 1024},
    "124M": {"vocab_size": 50304, "d_model": 768, "layers": 12, "heads": 12, "kv_heads": 12, "d_head": 64, "d_mlp": 2048},
}
BITS = {"fp32": "f32", "bf16": "bf16", "f16": "f16", "int8": "q8_0", "int4": "q4_0"}  # ours: llama.cpp's
PLAIN = ("fp32", "bf16")  # which transformers has too


def prepare(folder: Path, size: str, files: list[str]) -> None:
    """A model folder that all sides open, and files for llama.cpp."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    import pellucid
    from pellucid.network.build import build
    from pellucid.network.families import FAMILIES
    from pellucid.network.weights import save_network

    network = build(FAMILIES["llama"].new(context_length=1024, **SHAPES[size]), seed=0)
    draw = torch.Generator().manual_seed(0)  # the same in every run, for which a compiled step is then kept
    for weight in network.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.05, generator=draw)
    folder.mkdir()
    save_network(network, folder, end_of_text=0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # a tokenizer of so many tokens, which no measurement uses
    merges = [*islice(product(alphabet, alphabet), SHAPES[size]["vocab_size"] - len(alphabet) - 1)]
    tokens = ["<|endoftext|>", *alphabet, *map("".join, merges)]
    words = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words.add_special_tokens(["<|endoftext|>"])
    words.save(str(folder / "tokenizer.json"))
    for dtype in files:
        pellucid.convert(folder, folder / f"{dtype}.gguf", to="gguf", dtype=dtype)


def ours(
    folder: Path, threads: int, precision: str, compiled: bool, batch: int, prompt: int, tokens: int
) -> tuple[float, float]:
    """Tokens a second of the engine: new ones, and those of the prompt."""
    import torch

    import pellucid
    from pellucid.generation.rates import write

    torch.set_num_threads(threads)
    model = pellucid.load(folder, precision=precision)
    if compiled:
        model.compile()
    write(model.network, model.tokenizer, batch, prompt, 8)
    first, rate = write(model.network, model.tokenizer, batch, prompt, tokens)
    return rate, batch * prompt / first


def theirs(folder: Path, threads: int, precision: str, batch: int, prompt: int, tokens: int) -> tuple[float, float]:
    """Those of transformers: what further tokens take beyond those of a text of one."""
    import torch
    from transformers import AutoModelForCausalLM

    quiet()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    ).eval()
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, model.config.vocab_size, (batch, prompt), generator=draw)

    def write(most: int) -> float:
        begun = time.perf_counter()
        options = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": 0}
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return time.perf_counter() - begun

    write(8)
    first = min(write(1), write(1))
    return batch * (tokens - 1) / (write(tokens) - first), batch * prompt / first


def llama(python: str, file: Path, threads: int, batch: int, prompt: int, tokens: int) -> tuple[float, float]:
    """Those of llama.cpp."""
    script = Path(__file__).with_name("llama_rate.py")
    words = [python, script, file, batch, prompt, tokens, threads]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["written"], found["prompt"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--precisions", nargs="+", choices=BITS, default=["fp32", "bf16", "int8", "int4"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cpu_cores())
    parser.add_argument("--eager", action="store_true", help="measure ours without a compiled step too")
    parser.add_argument("--llama", metavar="PYTHON", help="a Python with llama-cpp-python; without it llama.cpp is left out")
    asked = parser.parse_args()
    files = [BITS[precision] for precision in asked.precisions] if asked.llama else []
    found: dict[str, dict[str, list[float]]] = {}
    with TemporaryDirectory() as temporary:
        for size, batch in product(asked.sizes, asked.batches):
            folder = Path(temporary) / size
            if not folder.exists():
                alone(prepare, folder, size, files)
            lengths = (batch, asked.prompt, asked.tokens)
            contenders: dict[str, Callable[[], tuple[float, float]]] = {}
            for precision in asked.precisions:
                for name, compiled in (("ours", True), ("eager", False))[: 1 + asked.eager]:
                    mine = partial(alone, ours, folder, asked.threads, precision, compiled, *lengths)
                    contenders[f"{name}_{precision}"] = mine
                if precision in PLAIN:
                    contenders[f"transformers_{precision}"] = partial(alone, theirs, folder, asked.threads, precision, *lengths)
                if asked.llama:
                    file = folder / f"{BITS[precision]}.gguf"
                    contenders[f"llama.cpp_{precision}"] = partial(llama, asked.llama, file, asked.threads, *lengths)
            turns: list[dict[str, tuple[float, float]]] = []
            for _ in range(asked.turns):
                turns.append({})
                for name, contender in [*contenders.items()]:
                    try:
                        turns[-1][name] = contender()
                    except subprocess.CalledProcessError as error:  # some builds of llama.cpp end in illegal instructions
                        print(f"{name} is left out: {error}", file=sys.stderr)
                        del contenders[name]
            found[f"{size}_batch{batch}"] = {
                name: [median(turn[name][at] for turn in turns) for at in (0, 1)] for name in contenders
            }
            for name in contenders:
                written, read = found[f"{size}_batch{batch}"][name]
                each = ", ".join(f"{turn[name][0]:,.0f}" for turn in turns)
                print(
                    f"{size:>5} batch {batch:<3} {name:<18} {written:8,.0f} tokens/s ({each}), prompt {read:8,.0f}",
                    file=sys.stderr,
                )
    print(json.dumps({"tokens_per_second_new_and_of_prompt": found, "threads": asked.threads}))


if __name__ == "__main__":
    main()
