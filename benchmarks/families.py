"""How well each kind of network uses the machine while it learns: model FLOPs over the rate of a matrix product in one run.

Every contender has about `--size` parameters and learns from the same text through the training step that `pellucid pretrain`
takes. They go in turns; the figures are medians over the turns.

    python benchmarks/families.py CORPUS [--families qwen3 gpt2 bert t5 lstm] [--size 10M] [--turns 5] [--compile]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

from pellucid.core.device import choose, matmul_rate
from pellucid.core.progress import Silent
from pellucid.network.build import parameters
from pellucid.text.corpus import Corpus
from pellucid.training.job import Job
from pellucid.training.preparation import dimensions, make_tokenizer, prepare, settled
from pellucid.training.recipe import Recipe


def contender(family: str, corpus: str, asked: argparse.Namespace) -> Job:
    """A run of this family, with nothing left open."""
    compute = choose()
    fields = {
        "data": {"corpus": [corpus]},
        "tokenizer": {"vocab_size": asked.vocab_size},
        "model": {"family": family, "size": asked.size, "context_length": asked.context},
        "optimizer": {"name": asked.optimizer},
        "training": {"steps": 10**6, "batch_size": asked.batch, "micro_batch": 2048 // asked.context},
    }
    recipe = settled(Recipe.of(fields))
    if asked.compile and family not in ("lstm", "bag-of-words"):
        recipe = recipe.override({"training": {"compile": "on"}})
    text = Corpus.open([corpus])
    tokenizer = make_tokenizer(text, None, recipe.tokenizer, Silent(), str(recipe.objective.name))
    prepared = prepare(text, None, recipe.data.validation_fraction, tokenizer, Silent())
    config = dimensions(recipe.model, tokenizer.vocab_size)
    return Job(recipe=recipe, prepared=prepared, config=config, compute=compute)


def stepper(job: Job) -> Callable[[], object]:
    """Its training step, warmed up."""
    state, step = job.start(), job.step()
    step(state)
    return lambda: step(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--families", nargs="+", default=["qwen3", "gpt2", "bert", "t5", "lstm"])
    parser.add_argument("--size", default="10M")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--optimizer", default="muon", choices=["muon", "adamw"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    jobs = {family: contender(family, asked.corpus, asked) for family in asked.families}
    steps = {family: stepper(job) for family, job in jobs.items()}
    seconds: dict[str, list[float]] = {family: [] for family in jobs}
    rates = []
    for _ in range(asked.turns):
        rates.append(matmul_rate(jobs[asked.families[0]].compute.dtype, size=2048, seconds=0.5))
        for family, step in steps.items():
            step()  # brings its memory back into the caches
            begun = time.perf_counter()
            step()
            seconds[family].append(time.perf_counter() - begun)
    rate, result = median(rates), {}
    for family, job in jobs.items():
        second = median(seconds[family])
        result[family] = {
            "parameters": parameters(job.config),
            "tokens_per_second": round(job.step_tokens / second),
            "utilisation": round(job.step_flops / second / rate, 3),
        }
        print(f"{job.config.describe():<60}{result[family]}")
    print(json.dumps({"precision": jobs[asked.families[0]].compute.precision, "matmul_flops": rate, "families": result}))


if __name__ == "__main__":
    main()
