"""A network's dimensions and parts, in one vocabulary for all families."""

import math
import re
import sys
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin

from pellucid.core.errors import ConfigError

Architecture = Literal["decoder", "encoder", "encoder-decoder", "recurrent", "bag-of-words"]
Problem = Literal["single", "multi", "regression"]
Pooling = Literal["mean", "first", "last"]

# No published model comes near these; beyond them a file is damaged or hostile, and nothing is allocated for it.
LARGEST = {"layers": 4096, "decoder_layers": 4096, "context_length": 2**31, "labels": 2**20}
LARGEST_OTHER = 2**24
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # what moves a terminal's cursor, or cannot be written


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary wavelengths are stretched, so that a model reads further than it was first trained to."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: float  # by how much the longest wavelengths grow
    original_context: int = 0  # llama3, yarn: the context before
    low: float = 1.0  # turns over the original context below which a wavelength is stretched (llama3), fully (yarn: beta_slow)
    high: float = 4.0  # turns above which it stays as it is (yarn: beta_fast)
    attention_factor: float = 1.0  # yarn: multiplies cosines and sines
    truncate: bool = True  # yarn: round the range of pairs between the two to whole pairs

    @staticmethod
    def attention(factor: float, scale: float) -> float:
        """YaRN's attention factor where a file does not say it (Peng et al., 2023, equation 22)."""
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    def __post_init__(self) -> None:
        check_types(self)
        blended = 0 < self.original_context <= LARGEST["context_length"] and 0 < self.low < self.high
        if self.factor <= 0 or not (blended or self.kind == "linear"):
            raise ConfigError(f"rotary positions cannot be stretched as {self} says")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a network is made of. The defaults are those of a modern decoder; a family's module says what differs."""

    family: str = "qwen3"
    architecture: Architecture = "decoder"
    vocab_size: int
    context_length: int  # the longest sequence, in tokens
    d_model: int
    layers: int  # blocks; of an encoder-decoder: the encoder's
    decoder_layers: int = 0  # of an encoder-decoder
    start_token: int = 0  # of an encoder-decoder: what the decoder's text begins with
    tied: bool = True  # the head's weight is the embedding's
    dropout: float = 0.0  # share of embeddings and of every block's contributions dropped while training

    # attention
    heads: int = 1
    kv_heads: int = 1  # heads that keys and values have; each serves heads / kv_heads query heads
    d_head: int = 2
    qk_norm: bool = False  # queries and keys are normed
    attention_bias: bool = False  # queries, keys and values have biases
    output_bias: bool = False  # and so has what leads out of attention
    scaled: bool = True  # scores are divided by sqrt(d_head)
    cross: bool = False  # each block also attends to an encoder's output

    # positions
    positions: Literal["rotary", "learned", "relative", "none"] = "rotary"
    rope_theta: float = 10_000.0  # rotary: base of the wavelengths
    rope_scaling: RopeScaling | None = None
    position_offset: int = 0  # learned: rows of the table before that of the first position
    relative_buckets: int = 32  # relative: how many distances are told apart
    relative_distance: int = 128  # from here on all distances are one

    # the MLP
    d_mlp: int = 1
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    mlp_bias: bool = False

    # norms
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_first: bool = True  # before attention and MLP, and once more at the end; else after each of them
    norm_embedding: bool = False

    # around the blocks
    token_types: int = 0  # segments that an embedding tells apart
    head: Literal["lm", "mlm", "none", "classify", "tag"] = "lm"  # mlm: dense layer, activation and norm before the scores
    head_scale: float = 1.0  # multiplies what the head reads
    pooler: bool = False  # a dense layer and its activation over the first position
    pooler_activation: Literal["tanh", "relu"] = "tanh"

    # a head that scores labels: of whole texts (classify), or of every token (tag)
    labels: tuple[str, ...] = ()  # their names, in the order of the scores
    problem: Problem = "single"  # of a text: one of the labels (softmax); any of them (a sigmoid each); numbers
    pooling: Pooling = "mean"  # of a text: the mean of its positions; the first, through the pooler; the last

    def __post_init__(self) -> None:
        check_types(self)
        for field in fields(self):
            value, least, most = getattr(self, field.name), int(field.default != 0), LARGEST.get(field.name, LARGEST_OTHER)
            if field.type is int and not least <= value <= most:
                raise ConfigError(f"{field.name} must be from {least} to {most:,}, not {value}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.heads * self.d_head > LARGEST_OTHER:
            raise ConfigError(f"heads times d_head must be at most {LARGEST_OTHER:,}, not {self.heads * self.d_head:,}")
        if self.architecture == "encoder-decoder" and not self.decoder_layers:
            raise ConfigError("decoder_layers must be at least 1 in an encoder-decoder, not 0")
        if self.positions == "relative" and not 4 <= self.relative_buckets < 2 * self.relative_distance:
            raise ConfigError(
                f"relative_buckets ({self.relative_buckets}) must be at least 4 "
                f"and below twice the relative_distance ({self.relative_distance})"
            )
        if self.positions == "rotary" and self.d_head % 2:
            raise ConfigError(f"d_head ({self.d_head}) must be even, since rotary positions turn features in pairs")
        if self.rope_theta <= 1:
            raise ConfigError(f"rope_theta must be a finite number above 1, not {self.rope_theta}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if not 0 <= self.norm_eps < 1:
            raise ConfigError(f"norm_eps must be at least 0 and below 1, not {self.norm_eps}")
        self.check_labels()

    def check_labels(self) -> None:
        """Refuse a head, labels, a meaning and a pooling that do not go together."""
        if self.architecture == "encoder-decoder" and self.scores_labels:
            raise ConfigError(f"an encoder-decoder scores no labels, it writes its answer: use --task seq2seq, not {self.head}")
        check_names(self.labels)
        if self.scores_labels != bool(self.labels):
            what = "needs the names of its labels" if self.scores_labels else "scores no labels, so it can have none"
            raise ConfigError(f"a network whose head is {self.head} {what}, not {self.labels!r:.80}")
        if self.causal and self.pooling == "first":
            raise ConfigError(f"the first position of a {self.architecture} sees one token only: pool mean or last, not first")
        if self.causal and self.pooler:
            raise ConfigError(f"only an encoder has a pooler, not a network that is {self.architecture}")
        if self.head != "classify":
            if (self.problem, self.pooling) != ("single", "mean"):
                raise ConfigError(f"only a head that is classify has a problem and a pooling, not {self.head}")
            return
        if self.problem == "single" and len(self.labels) < 2:
            raise ConfigError(
                f"a text that has one of the labels (single) needs at least 2 to choose from, not {self.labels!r}"
            )
        if self.architecture == "bag-of-words" and self.pooling != "mean":
            raise ConfigError(f"a bag of words has no order, so its pooling must be mean, not {self.pooling}")
        if self.pooler != (self.pooling == "first"):
            raise ConfigError(f"a classifier has a pooler where its pooling is first, and only there, not {self.pooling}")

    @property
    def causal(self) -> bool:
        """Whether a position sees earlier ones only, unless a mask says otherwise."""
        return self.architecture != "encoder"

    @property
    def generates(self) -> bool:
        """Whether it continues texts."""
        return self.architecture != "encoder" and self.head == "lm"

    @property
    def scores_labels(self) -> bool:
        """Whether the head scores labels, not tokens."""
        return self.head in ("classify", "tag")

    @property
    def head_bias(self) -> bool:
        """Whether the scores have a bias. Those of a causal network at a text's last token have none, as in transformers."""
        return self.head in ("mlm", "tag") or (self.head == "classify" and not (self.causal and self.pooling == "last"))

    def describe(self) -> str:
        """The dimensions in words."""
        depth = f"{self.layers} + {self.decoder_layers}" if self.decoder_layers else str(self.layers)
        heads = f", {self.heads} heads" if self.architecture not in ("recurrent", "bag-of-words") else ""
        labels = f", {len(self.labels)} labels" if self.labels else ""
        return f"{self.family} {self.architecture} of {depth} layers, {self.d_model} features{heads}{labels}"

    def encoder(self) -> "ModelConfig":
        """The encoder of an encoder-decoder."""
        return replace(self, architecture="encoder", decoder_layers=0, head="none")

    def decoder(self) -> "ModelConfig":
        """The decoder of an encoder-decoder."""
        return replace(self, architecture="decoder", layers=self.decoder_layers, decoder_layers=0, cross=True)


def is_number(value: Any) -> bool:
    """Whether a value can be a float: JSON knows numbers that are none, such as NaN, and whole ones too large."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_names(labels: object) -> None:
    """Refuse labels that are no names, each its own."""
    if not isinstance(labels, tuple):
        raise ConfigError(f"labels must be a tuple of names, not {labels!r:.80}")
    if len(labels) > LARGEST["labels"]:
        raise ConfigError(f"labels must be at most {LARGEST['labels']:,}, not {len(labels):,}")
    seen = set[str]()
    for label in labels:
        if not isinstance(label, str) or not label.strip() or UNPRINTABLE.search(label):
            raise ConfigError(f"labels must be names, not {label!r:.80}")
        if label in seen:
            raise ConfigError(f"labels must differ from one another, not have twice {label!r:.80}")
        seen.add(label)


def check_types(config: Any) -> None:
    """Refuse values of other types than the fields': what a file says may be anything."""
    for field in fields(config):
        value, kind = getattr(config, field.name), field.type
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ConfigError(f"{field.name} must be one of {', '.join(get_args(kind))}, not {value!r}")
        elif kind is int:
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{field.name} must be a whole number, not {value!r}")
        elif kind is float:
            if not is_number(value):
                raise ConfigError(f"{field.name} must be a finite number, not {value!r}")
        elif kind in (bool, str) and not isinstance(value, kind):
            raise ConfigError(f"{field.name} must be of type {kind.__name__}, not {value!r}")
