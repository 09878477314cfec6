"""From a recipe to what the loop is given: tokenizer, token views, dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pellucid.core.errors import ConfigError, RunError
from pellucid.core.machine import cache_folder
from pellucid.core.progress import Progress
from pellucid.network.config import ModelConfig
from pellucid.network.families import FAMILIES
from pellucid.network.sizes import parse_size
from pellucid.text.corpus import Corpus
from pellucid.text.store import TokenStore, TokenView
from pellucid.text.tokenizer import Tokenizer
from pellucid.training.recipe import Data, Model, Tokens

DEFAULT_SIZE = "2M"  # what ten minutes on two cores teach best


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A corpus as tokens, split."""

    tokenizer: Tokenizer
    training: TokenView
    validation: TokenView


def absolute(sources: Sequence[str]) -> list[str]:
    """The same sources under names that hold from any working directory."""
    return [name if name == "-" or name.startswith("hf:") else str(Path(name).absolute()) for name in sources]


def open_corpus(data: Data, sources: Sequence[str]) -> Corpus:
    """The corpus at `sources`, read as the recipe says."""
    return Corpus.open(
        list(sources),
        text_field=data.text_field,
        encoding=data.encoding,
        on_bad_bytes=data.on_bad_bytes,
        html_breaks=data.html_breaks,
        deduplicate=data.deduplicate,
    )


def fingerprint(corpus: Corpus, held_out: Corpus | None, tokenizer: Tokenizer) -> dict[str, str]:
    """Hashes of what a run reads: what a resume must find unchanged."""
    hashes = {"corpus": corpus.fingerprint(), "tokenizer": tokenizer.fingerprint}
    return hashes | ({"validation text": held_out.fingerprint()} if held_out else {})


def prepare(corpus: Corpus, held_out: Corpus | None, share: float, tokenizer: Tokenizer, progress: Progress) -> Prepared:
    """Tokenize, and split: learn from the corpus and hold out other text, or without that a `share` of the corpus."""
    cache = cache_folder() / "stores"
    store = TokenStore.build(corpus, tokenizer, cache, progress=progress)
    if held_out:
        training, validation = store.view(), TokenStore.build(held_out, tokenizer, cache, progress=progress).view()
    else:
        training, validation = store.split(share)
    return Prepared(tokenizer=tokenizer, training=training, validation=validation)


def make_tokenizer(corpus: Corpus, held_out: Corpus | None, tokens: Tokens, progress: Progress) -> Tokenizer:
    """Train the tokenizer that the recipe asks for, or load it. Characters of the held-out text are counted in."""
    if tokens.kind == "chars":
        return Tokenizer.train_chars(chain(corpus, held_out or ()))
    if tokens.kind == "bpe":
        return Tokenizer.train_bpe(corpus, tokens.vocab_size, progress=progress)
    path = Path(tokens.kind)
    if not path.exists():
        raise ConfigError(f"tokenizer {tokens.kind!r} is neither bpe nor chars nor a file; give the path of a tokenizer.json")
    return Tokenizer.load(path)


def check_unchanged(now: dict[str, str], then: dict[str, str]) -> None:
    """Refuse to resume on other text or another tokenizer."""
    for name, value in then.items():
        if now.get(name) != value:
            raise RunError(
                f"the {name} is not the one this run began with (its SHA-256 was {value[:12]}, "
                f"now {now.get(name, 'none')[:12]}); put it back, or start anew with --force"
            )


def dimensions(model: Model, vocab_size: int) -> ModelConfig:
    """The network's configuration: the size, and whatever the recipe sets by hand."""
    if model.d_model and model.layers and model.heads and model.d_mlp:
        d_model, layers, heads, d_mlp = model.d_model, model.layers, model.heads, model.d_mlp
    else:
        size = parse_size(model.size or DEFAULT_SIZE, vocab_size, tied=model.tied)
        d_model, layers = model.d_model or size.d_model, model.layers or size.layers
        heads = model.heads or (size.heads if d_model == size.d_model else max(1, d_model // size.d_head))
        d_mlp = model.d_mlp or (size.d_mlp if d_model == size.d_model else max(32, round(d_model / 12) * 32))
    if d_model % heads:
        raise ConfigError(f"model.d_model ({d_model}) must be a multiple of model.heads ({heads})")
    return FAMILIES["qwen3"].new(
        vocab_size=vocab_size,
        context_length=model.context_length,
        d_model=d_model,
        layers=layers,
        heads=heads,
        kv_heads=model.kv_heads or heads,
        d_head=d_model // heads,
        d_mlp=d_mlp,
        tied=model.tied,
    )
