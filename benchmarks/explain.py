"""What explaining costs: all attributions of a prompt, head cards, patches in batches beside one at a time, taps, memory.

    python benchmarks/explain.py --model SmolLM2.gguf --text FILE

Prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch

import pellucid
from pellucid.core.device import choose
from pellucid.explanation.attribution import attribute
from pellucid.explanation.gradients import gradient_times_input
from pellucid.explanation.heads import head_cards
from pellucid.explanation.lens import logit_lens
from pellucid.explanation.patching import Run, patch, places_of
from pellucid.explanation.patterns import patterns_of
from pellucid.explanation.question import ask, read
from pellucid.explanation.removal import Removal
from pellucid.explanation.rows import difference
from pellucid.explanation.shares import direct_shares
from pellucid.explanation.windows import windows_of
from pellucid.network.build import build
from pellucid.network.families import FAMILIES
from pellucid.network.taps import Taps
from pellucid.text.tokenizer import Tokenizer

FIRST = "When Mary and John went to the store, John gave a drink to"
SECOND = "When Mary and John went to the store, Mary gave a drink to"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a decoder: a path or a name")
    parser.add_argument("--text", type=Path, required=True, help="a file of plain text")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--long", type=int, default=2000, help="tokens of the long text, for memory")
    parser.add_argument("--singles", type=int, default=30, help="patches that are timed one at a time")
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    model = pellucid.load(options.model)
    found = {"taps": taps(model, text), "patching": patching(model, options.singles), "heads": heads(text)}
    print(json.dumps(found), flush=True)
    compute = choose()
    model.network.eval().hold_in(compute.dtype)
    found["attributions"] = {"precision": compute.precision, **attributions(model, text, options.tokens)}
    found["memory"] = memory(model, text, options.long)
    print(json.dumps({name: {key: rounded(value) for key, value in part.items()} for name, part in found.items()}))


def rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


def cut(model: pellucid.Model, text: str, tokens: int) -> str:
    return model.tokenizer.decode(model.tokenizer.encode(text)[:tokens])


def seconds(work: object, times: int = 1) -> float:
    """The least of some times."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        best = min(best, time.perf_counter() - start)
    return best


def attributions(model: pellucid.Model, text: str, tokens: int) -> dict[str, float]:
    """All methods with their faithfulness, beside one forward pass of the same prompt."""
    asked = ask(model.network, model.tokenizer, cut(model, text, tokens))
    ids = torch.tensor([asked.ids])
    with torch.inference_mode():
        one = seconds(lambda: model.network.encode(ids), times=3)
    took = seconds(lambda: attribute(asked))
    return {"tokens": len(asked.ids), "units": len(asked.units), "seconds": took, "forward_passes": took / one}


def heads(text: str) -> dict[str, float]:
    """Cards of a 10M model, ablations included."""
    shape = {"d_model": 384, "layers": 6, "heads": 6, "kv_heads": 6, "d_head": 64, "d_mlp": 1024, "context_length": 256}
    network = build(FAMILIES["llama"].new(vocab_size=4096, tied=True, **shape), seed=0).eval()
    small = Tokenizer.train_bpe([text], 4096)
    ids = windows_of(network, small, [text], count=16, length=128)
    took = seconds(lambda: head_cards(network, small, ids))
    return {"parameters": sum(weight.numel() for weight in network.parameters()), "heads": 36, "seconds": took}


def patching(model: pellucid.Model, singles: int) -> dict[str, float]:
    """Every place in batches, beside whole passes with one edit each."""
    network = model.network.eval()
    asked = ask(network, model.tokenizer, FIRST, target=" Mary", foil=" John")
    found = patch(asked, SECOND)
    together = seconds(lambda: patch(asked, SECOND)) / len(found.patched)
    other = asked.rows(read(network, model.tokenizer, SECOND)[1])
    run = Run(network, asked.rows(asked.ids)[0], other[0], len(asked.ids))
    places = list(places_of(network, len(asked.ids)))
    places = places[:: max(1, len(places) // singles)]

    def one_at_a_time() -> None:
        with torch.no_grad():
            for place in places:
                difference(network, [run.row], Taps(edit={place.site: run.edit(place.site, [(0, place)])}))

    alone = seconds(one_at_a_time) / len(places)
    return {"places": len(found.patched), "ratio": alone / together, "rank_correlation": found.correlation or 0.0}


def taps(model: pellucid.Model, text: str) -> dict[str, object]:
    """A pass with taps on nothing and on everything, beside a pass without, in turns."""
    network = model.network.eval()
    ids = torch.tensor([model.tokenizer.encode(text)[:128]])
    passes = {"without": lambda: network.encode(ids), "off": lambda: network.encode(ids, None, Taps())}
    passes["all"] = lambda: network.encode(ids, None, Taps("*"))
    with torch.inference_mode():
        equal = all(torch.equal(passes["without"](), run()) for run in passes.values())
        times = {name: float("inf") for name in passes}
        for _ in range(5):
            for name, run in passes.items():
                times[name] = min(times[name], seconds(run))
    return {"bitwise_equal": equal, "off": times["off"] / times["without"], "all": times["all"] / times["without"]}


def memory(model: pellucid.Model, text: str, tokens: int) -> dict[str, float]:
    """What a long text adds to the memory that the model took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asked = ask(model.network, model.tokenizer, cut(model, text, tokens))
    gradient_times_input(asked)
    direct_shares(asked)
    logit_lens(asked)
    patterns = patterns_of(asked)
    Removal(asked)(np.ones((4, len(asked.units)), dtype=np.bool_))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    page = 0.0 if patterns is None else len(json.dumps(patterns.to_json())) / 1e6
    return {"tokens": len(asked.ids), "megabytes_more": (after - before) / 1024, "patterns_megabytes": page}


if __name__ == "__main__":
    main()
