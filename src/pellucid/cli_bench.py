"""`pellucid bench`: how fast a model writes on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from pellucid.cli_shared import USUAL_HOLDING, Compiling, HoldingOptions, compile_steps, show_json


def bench(
    model: str,
    *,
    texts: Annotated[list[int] | None, Parameter(negative=())] = None,
    prompt: int = 64,
    tokens: int = 64,
    holding: HoldingOptions = USUAL_HOLDING,
    compile: Compiling = "auto",
    json: bool = False,
) -> None:
    """Measure how fast a model writes on this machine, and how near that is to what its memory allows.

        pellucid bench runs/base --precision int8

    A token needs every matrix of the model once, so that memory sets a limit: the share of it says what is left to gain. Texts
    that are written together share each reading. A network of a few megabytes fits into the processor's caches, and can be
    faster than the limit.

    Parameters
    ----------
    model
        a run folder, a model folder, a .gguf file, a llama2.c .bin file, or a model's name on the hub
    texts
        how many texts are written at once; may be given several times; without it 1 and 8
    prompt
        tokens of each text's prompt, which are drawn at random
    tokens
        tokens to write
    json
        print the result as JSON
    """
    from pellucid import api

    loaded = api.load(model, **asdict(holding))
    compile_steps(loaded, compile)
    found = loaded.rates(texts=texts or (1, 8), prompt=prompt, tokens=tokens)
    if json:
        return show_json({"model": model, **asdict(found)})
    memory = found.memory_bytes_per_second / 1e9
    print(f"{found.precision}: {found.matrices_bytes / 1e6:,.1f} MB of matrices, memory read at {memory:,.1f} GB/s")
    print(f"{'texts':>5} {'tokens/s':>10} {'of the limit':>13} {'first token':>12} {'prompt tokens/s':>16}")
    for rate in found.rates:
        first = f"{1000 * rate.first_token_seconds:,.0f} ms"
        share = f"{100 * rate.share_of_memory_limit:,.0f} %"
        print(
            f"{rate.texts:>5} {rate.tokens_per_second:>10,.0f} {share:>13} {first:>12} {rate.prompt_tokens_per_second:>16,.0f}"
        )
