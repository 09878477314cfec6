"""From a recipe to what the loop is given: tokenizer, token views, dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

from pellucid.core.errors import ConfigError
from pellucid.core.machine import cache_folder
from pellucid.core.progress import Progress
from pellucid.network.config import ModelConfig
from pellucid.network.families import FAMILIES, Family, family
from pellucid.network.presets import preset
from pellucid.network.sizes import PRESETS, parse_count, parse_size
from pellucid.text.batches import Corruption
from pellucid.text.corpus import Corpus
from pellucid.text.masking import Masking
from pellucid.text.spans import SpanCorruption
from pellucid.text.store import TokenStore, TokenView
from pellucid.text.tokenizer import Tokenizer
from pellucid.training.recipe import Data, Model, Objective, Recipe, Tokens

DEFAULT_SIZE = "2M"  # what ten minutes on two cores teach best
SHAPE = ("d_model", "layers", "heads", "kv_heads", "d_mlp")

# What each objective is learnt with: the family unless one is given, and the kinds of network that can.
OBJECTIVES: dict[str, tuple[str, tuple[str, ...]]] = {
    "clm": ("qwen3", ("decoder", "recurrent", "bag-of-words")),
    "mlm": ("bert", ("encoder",)),
    "spans": ("t5", ("encoder-decoder",)),
}
SENTINELS = tuple(f"<extra_id_{n}>" for n in range(100))
EXTRA = {"clm": (), "mlm": ("[MASK]",), "spans": SENTINELS}  # the special tokens that a new tokenizer needs


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


def make_tokenizer(
    corpus: Corpus, held_out: Corpus | None, tokens: Tokens, progress: Progress, objective: str = "clm"
) -> Tokenizer:
    """Train the tokenizer that the recipe asks for, or load it. Characters of the held-out text are counted in."""
    if tokens.kind == "chars":
        return Tokenizer.train_chars(chain(corpus, held_out or ()), extra=EXTRA[objective])
    if tokens.kind == "bpe":
        return Tokenizer.train_bpe(corpus, tokens.vocab_size, progress=progress, extra=EXTRA[objective])
    if tokens.kind == "wordpiece":
        return Tokenizer.train_wordpiece(corpus, tokens.vocab_size, progress=progress, extra=EXTRA[objective])
    path = Path(tokens.kind)
    if not path.exists():
        raise ConfigError(
            f"tokenizer {tokens.kind!r} is neither bpe, wordpiece nor chars, nor a file; give the path of a tokenizer.json"
        )
    return Tokenizer.load(path)


def settled(recipe: Recipe) -> Recipe:
    """The recipe with family and objective written out, of which either follows from the other, and rates that suit them."""
    name, asked = recipe.objective.name, recipe.model.family
    size = recipe.model.size
    model = preset(size) if size is not None else None
    if asked is not None and asked not in FAMILIES:
        raise ConfigError(f"family {asked!r} is not known; choose {', '.join(FAMILIES)}")
    if size is not None and model is None and size.lower() not in PRESETS:
        parse_count(size)  # refuses what is none, before a tokenizer is trained
    if asked and model and asked != model.family:
        raise ConfigError(f"size {recipe.model.size!r} is a {model.family} model, not a {asked} one; leave out one of the two")
    chosen = family(asked or (model.family if model else OBJECTIVES[name or "clm"][0]), "model.family")
    kind = chosen.shape.get("architecture", "decoder")
    suited = next(objective for objective, (_, kinds) in OBJECTIVES.items() if kind in kinds)
    if name not in (None, suited):
        article = "an" if kind.startswith("e") else "a"
        raise ConfigError(f"{chosen.name} is {article} {kind} network, which learns with --objective {suited}, not with {name}")
    rates = recipe.optimizer.rates(suited)
    return recipe.override({"model": {"family": chosen.name}, "objective": {"name": suited}, "optimizer": rates})


def dimensions(model: Model, vocab_size: int) -> ModelConfig:
    """The network's configuration: the size, and whatever the recipe sets by hand."""
    published = preset(model.size) if model.size else None
    chosen = family(model.family or (published.family if published else "qwen3"), "model.family")
    common: dict[str, Any] = {"vocab_size": vocab_size, "context_length": model.context_length, "dropout": model.dropout}
    if published is not None:
        if given := [name for name in SHAPE if getattr(model, name) is not None]:
            raise ConfigError(f"size {model.size!r} is a published model with its own model.{given[0]}; leave that out")
        if "tied" in model.model_fields_set:
            common |= {"tied": model.tied, "head_scale": scale_of_head(chosen, published.d_model, tied=model.tied)}
        return replace(published, **common)
    kind = chosen.shape.get("architecture", "decoder")
    common["tied"] = model.tied
    if kind in ("recurrent", "bag-of-words"):
        layers = model.layers or 2
        weights = {"recurrent": 8 * layers, "bag-of-words": layers - 1}[kind]  # of the blocks, for each feature squared
        d_model = model.d_model or width(model.size or DEFAULT_SIZE, vocab_size, weights, tied=model.tied)
        return chosen.new(**common, d_model=d_model, layers=layers)
    if model.d_model and model.layers and model.heads and model.d_mlp:
        d_model, layers, heads, d_mlp = model.d_model, model.layers, model.heads, model.d_mlp
    else:
        size = parse_size(model.size or DEFAULT_SIZE, vocab_size, tied=model.tied)
        wide = 1.0 if chosen.gated else 1.5  # two matrices as wide as this have as many weights as three
        d_model, layers = model.d_model or size.d_model, model.layers or size.layers
        heads = model.heads or (size.heads if d_model == size.d_model else max(1, d_model // size.d_head))
        d_mlp = model.d_mlp or round(wide * (size.d_mlp if d_model == size.d_model else max(32, round(d_model / 12) * 32)))
        if kind == "encoder-decoder" and not model.layers:
            layers = max(1, round(layers * 12 / 28))  # a block of the encoder has 12 d_model^2 weights, one of the decoder 16
    attention: dict[str, Any] = {"heads": heads, "kv_heads": model.kv_heads or heads, "d_mlp": d_mlp}
    if kind == "encoder-decoder":
        attention |= {"decoder_layers": layers, "head_scale": scale_of_head(chosen, d_model, tied=model.tied)}
    if d_model % heads:
        raise ConfigError(f"model.d_model ({d_model}) must be a multiple of model.heads ({heads})")
    if model.kv_heads not in (None, heads) and not chosen.grouped:
        raise ConfigError(f"{chosen.name} has as many key/value heads as heads; leave out model.kv_heads ({model.kv_heads})")
    return chosen.new(**common, d_model=d_model, layers=layers, d_head=d_model // heads, **attention)


def scale_of_head(chosen: Family, d_model: int, *, tied: bool) -> float:
    """T5 scales down what a head reads that is also the embedding."""
    return d_model**-0.5 if tied and chosen.shape.get("architecture") == "encoder-decoder" else 1.0


def width(size: str, vocab_size: int, weights: int, *, tied: bool) -> int:
    """Features of a network of `size` parameters whose blocks have `weights` times that squared."""
    known, embeddings = PRESETS.get(size.lower()), vocab_size * (1 if tied else 2)
    count = known if isinstance(known, float) else parse_count(size)
    if count < 8 * embeddings:
        raise ConfigError(
            f"a size of {count:,.0f} parameters is too small for a vocabulary of {vocab_size:,}: "
            f"its embedding alone has {8 * embeddings:,}; choose a larger --size or a smaller --vocab-size"
        )
    wide = count / embeddings if not weights else (math.sqrt(embeddings**2 + 4 * weights * count) - embeddings) / (2 * weights)
    return max(8, round(wide / 8) * 8)


def corruption(objective: Objective, tokenizer: Tokenizer, config: ModelConfig) -> Corruption | None:
    """What is done to a window of text so that there is something to predict; None: nothing, it is read on."""
    special = tokenizer.special_ids | {cast(int, tokenizer.end_of_text)}
    if objective.name == "mlm":
        if tokenizer.mask is None:
            raise ConfigError("objective mlm needs a tokenizer with a mask token such as [MASK]; use --tokenizer bpe or chars")
        starts = tokenizer.word_starts() if objective.whole_words else None
        return Masking(
            mask=tokenizer.mask, special=special, vocab=tokenizer.vocab_size, rate=objective.rate, word_starts=starts
        )
    if objective.name == "spans":
        if not tokenizer.sentinels:
            raise ConfigError(
                "objective spans needs a tokenizer with sentinels <extra_id_0>, <extra_id_1> ...; use --tokenizer bpe or chars"
            )
        return SpanCorruption(
            sentinels=tokenizer.sentinels,
            start=config.start_token,
            end_of_text=cast(int, tokenizer.end_of_text),
            density=objective.rate,
            mean_span=objective.mean_span,
        )
    return None
