"""A network as lm-evaluation-harness (extra `eval`) asks models, with the conventions of its own backend for transformers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.progress import Progress
from pellucid.evaluation.likelihood import Pair, likelihoods
from pellucid.generation import generate as writing
from pellucid.generation.settings import Sampling
from pellucid.network.network import Network
from pellucid.text.tokenizer import Tokenizer

ROOM = 256  # tokens that an answer may have, where a task does not say: lm-eval's own
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}  # what a task may ask of generation


def adapter(network: Network, tokenizer: Tokenizer, *, ends: frozenset[int], batch_tokens: int, progress: Progress) -> Any:
    """The network as a `lm_eval.api.model.LM`, with the conventions of lm-eval's own backend for transformers.

    A text's special tokens are special tokens; a text without a context follows the beginning (or else the end) of a text;
    spaces at the end of a context belong to the continuation; what exceeds the context loses its beginning.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    context = network.config.context_length
    found = tokenizer.end_of_text if tokenizer.beginning is None else tokenizer.beginning
    if found is None:
        raise ModelError("this model's tokenizer has no beginning and no end of text, so nothing can stand before a text")
    beginning: int = found

    class Adapter(TemplateLM):  # type: ignore[misc]
        shortened = 0

        @property
        def eot_token_id(self) -> int | None:
            return tokenizer.end_of_text

        @property
        def prefix_token_id(self) -> int:
            return beginning

        @property
        def max_length(self) -> int:
            return context

        @property
        def tokenizer_name(self) -> str:
            return tokenizer.fingerprint

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if add_special_tokens is None:
                add_special_tokens = not string.startswith(tokenizer.decode([beginning], special=True))
            return tokenizer.encode(string, special=True, framed=add_special_tokens)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            return found

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            pairs = [(before, after) for _, before, after in requests]
            self.shortened += sum(len(before) + len(after) > context + 1 for before, after in pairs)
            with progress.task("scoring", len(pairs), "answers") as task:
                found = likelihoods(network, pairs, batch_tokens=batch_tokens, task=task)
            return [(one.logprob, one.greedy) for one in found]

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> list[float]:
            pairs: list[Pair] = []
            owners: list[int] = []
            for number, (text,) in enumerate(request.args for request in requests):
                windows = get_rolling_token_windows(self.tok_encode(text), beginning, max_seq_len=context, context_len=1)
                pairs += map(make_disjoint_window, windows)
                owners += [number] * (len(pairs) - len(owners))
            totals = [0.0] * len(requests)
            with progress.task("scoring", len(pairs), "windows") as task:
                found = likelihoods(network, pairs, batch_tokens=batch_tokens, task=task)
            for number, one in zip(owners, found, strict=True):
                totals[number] += one.logprob
            return totals

        def generate_until(self, requests: Any, **_: Any) -> list[str]:
            asked = [request.args for request in requests]
            prompts = [self.tok_encode(prompt) for prompt, _ in asked]
            seen = Counter[str]()
            groups: dict[tuple[str, int], list[int]] = {}  # an answer that is asked for again is drawn anew
            for number, arguments in enumerate(asked):
                groups.setdefault((str(arguments[1]), seen[str(arguments)]), []).append(number)
                seen[str(arguments)] += 1
            answers: dict[int, str] = {}
            with progress.task("answering", len(asked), "answers") as task:
                for (_options, again), group in groups.items():
                    options = normalize_gen_kwargs(asked[group[0]][1], ROOM)
                    room = check_generation(options, context)
                    order = sorted(group, key=lambda number: -len(prompts[number]))
                    while order:
                        size = max(1, batch_tokens // min(len(prompts[order[0]]) + room, context))
                        together, order = order[:size], order[size:]
                        self.shortened += sum(len(prompts[number]) > context - room for number in together)
                        done = writing.generate(
                            network,
                            tokenizer,
                            [prompts[number][-(context - room) :] for number in together],
                            max_tokens=room,
                            sampling=sampling(options, again),
                            stop=[stop for stop in options["until"] if stop],
                            ends=ends,
                        )
                        for number, one in zip(together, done, strict=True):
                            alone = tokenizer.decode(one.tokens)  # as their backend reads it: a first space may be dropped
                            answers[number] = one.text if alone.startswith(" ") else one.text.removeprefix(" ")
                        task.advance(len(together))
            return [answers[number] for number in range(len(asked))]

    return Adapter()


def check_generation(options: dict[str, Any], context: int) -> int:
    """How many tokens an answer may have; refuses what a task asks for in vain."""
    if unknown := options.keys() - KNOWN:
        raise ConfigError(f"a task asks generation for {', '.join(sorted(unknown))}, which there is not here; leave it out")
    room = int(options["max_gen_toks"])
    if not 1 <= room < context:
        raise ModelError(
            f"a task asks for answers of {room:,} tokens, which with its questions exceed the model's context of {context:,}; "
            "leave that task out, or evaluate a model with a longer context"
        )
    return room


def sampling(options: dict[str, Any], seed: int) -> Sampling:
    """How a task wants its answers drawn: the likeliest token each time, unless it says otherwise."""
    if not options["do_sample"]:
        return Sampling(temperature=0.0)
    temperature, top_p = float(options.get("temperature", 1.0)), float(options.get("top_p", 1.0))
    return Sampling(temperature=temperature, top_k=options.get("top_k"), top_p=top_p, seed=seed)
