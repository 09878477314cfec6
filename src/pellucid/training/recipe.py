"""The recipe: everything a training run needs, in one validated TOML file."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pellucid.training.settings import Section, Settings

LENGTHS = ("steps", "tokens", "minutes")


class Data(Section):
    """Where text comes from and how it is split."""

    corpus: list[str] = Field([], description="files, folders, globs, - or hf:NAME")
    validation: list[str] = Field([], description="files of held-out text; without them a share of the corpus is held out")
    validation_fraction: float = Field(
        0.05, gt=0, lt=1, description="share of the corpus held out, chosen by hash of each document"
    )
    text_field: str | None = Field(None, description="column that holds the text in jsonl, csv, tsv and parquet")
    encoding: str | None = Field(None, description="encoding of text files; without it UTF-8, or UTF-16 by its mark")
    on_bad_bytes: Literal["error", "replace"] = Field(
        "error", description="what to do with bytes that the encoding does not allow"
    )
    html_breaks: bool = Field(False, description="turn HTML line breaks into newlines")
    deduplicate: bool = Field(False, description="drop exact copies of documents")
    document_masks: bool = Field(False, description="no attention across the documents packed into one sequence")

    def without_effect(self) -> dict[str, str]:
        return {"validation_fraction": "when validation files are given"} if self.validation else {}


class Tokens(Section):
    """How text becomes tokens."""

    kind: str = Field("bpe", description="bpe, wordpiece, chars, or the path of a tokenizer.json")
    vocab_size: int = Field(8192, ge=1, description="tokens that a new bpe or wordpiece tokenizer has")

    def without_effect(self) -> dict[str, str]:
        idle = self.kind not in ("bpe", "wordpiece")
        return {"vocab_size": f"with tokenizer {self.kind!r}, which decides its own"} if idle else {}


class Objective(Section):
    """What the network learns to predict."""

    name: Literal["clm", "mlm", "spans"] | None = Field(
        None, description="clm: the next token; mlm: masked tokens; spans: what was cut out; without it what suits the family"
    )
    rate: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are masked or cut out")
    whole_words: bool = Field(False, description="mask whole words")
    mean_span: float = Field(3.0, ge=1, description="mean length in tokens of what is cut out")

    def without_effect(self) -> dict[str, str]:
        used = {"clm": (), "mlm": ("rate", "whole_words"), "spans": ("rate", "mean_span")}
        idle = (
            [] if self.name is None else [name for name in ("rate", "whole_words", "mean_span") if name not in used[self.name]]
        )
        return dict.fromkeys(idle, f"with objective {self.name}")


class Model(Section):
    """The network's dimensions; what is not given follows from the size."""

    family: str | None = Field(None, description="qwen3, llama, gpt2, bert, roberta, t5, lstm, bag-of-words ...")
    size: str | None = Field(
        None, description="tiny, small, base, large, xl, a published model such as gpt2-medium, or a number of parameters: 25M"
    )
    context_length: int = Field(256, ge=2, description="longest sequence, in tokens")
    d_model: int | None = Field(None, ge=1, description="features per position")
    layers: int | None = Field(None, ge=1, description="blocks")
    heads: int | None = Field(None, ge=1, description="attention heads")
    kv_heads: int | None = Field(None, ge=1, description="key/value heads; without it as many as heads")
    d_mlp: int | None = Field(None, ge=1, description="neurons of each MLP")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped while learning")
    tied: bool = Field(True, description="use the embedding as the head's weight")

    def without_effect(self) -> dict[str, str]:
        if self.family in ("lstm", "bag-of-words"):
            idle = dict.fromkeys(("heads", "kv_heads", "d_mlp"), f"with {self.family}, which has no attention")
            idle |= {"dropout": f"with {self.family}, which drops nothing"} if self.family == "bag-of-words" else {}
            return idle | ({"size": "when d_model and layers are given"} if self.size and self.d_model and self.layers else {})
        given = self.d_model and self.layers and self.heads and self.d_mlp
        return {"size": "when d_model, layers, heads and d_mlp are all given"} if given and self.size else {}


class Optimizer(Section):
    """How weights move."""

    name: Literal["muon", "adamw"] = Field("muon", description="muon: Muon for the blocks' matrices, AdamW for the rest")
    matrix_learning_rate: float | None = Field(
        None, gt=0, le=100, description="peak rate of the blocks' matrices; without it what suits optimizer and objective"
    )
    learning_rate: float | None = Field(
        None, gt=0, le=100, description="peak rate of AdamW for embedding, head, gains and biases; without it likewise"
    )
    weight_decay: float = Field(0.1, ge=0, description="decay of the blocks' matrices, times their learning rate")
    momentum: float = Field(0.95, ge=0, lt=1, description="momentum of Muon")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of AdamW's second moment")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")

    def rates(self, objective: str | None = None) -> dict[str, float]:
        """Both peak rates. A masked language model with norms after its parts, and a T5, learn best at lower ones."""
        usual = {"muon": (0.025, 0.01), "adamw": (0.003, 0.01)}
        lower = {"muon": (0.01, 0.003), "adamw": (0.001, 0.001)}
        matrices, others = (lower if objective in ("mlm", "spans") else usual)[self.name]
        return {
            "matrix_learning_rate": self.matrix_learning_rate or matrices,
            "learning_rate": self.learning_rate or others,
        }

    def without_effect(self) -> dict[str, str]:
        return {"momentum": "with adamw"} if self.name == "adamw" else {}


class Schedule(Section):
    """The learning rate over the run, as shares of its steps."""

    kind: Literal["wsd", "cosine"] = Field(
        "wsd", description="wsd: warm-up, plateau, linear decay; cosine: warm-up, cosine decay"
    )
    warmup: float = Field(0.02, ge=0, le=1, description="share of the steps in which the rate rises")
    decay: float = Field(0.5, ge=0, le=1, description="share of the steps in which wsd falls")
    floor: float = Field(0.0, ge=0, le=1, description="last rate, as a share of the peak")

    def without_effect(self) -> dict[str, str]:
        return {"decay": "with cosine"} if self.kind == "cosine" else {}

    @model_validator(mode="after")
    def fits(self) -> Self:
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"warmup ({self.warmup}) and decay ({self.decay}) together exceed 1")
        return self


class Training(Section):
    """How long, how much at a time, and on what."""

    steps: int | None = Field(None, ge=1, description="optimizer steps; instead of tokens or minutes")
    tokens: int | None = Field(None, ge=1, description="tokens to train on; instead of steps or minutes")
    minutes: float | None = Field(None, gt=0, description="training time; the number of steps is fixed after a probe")
    batch_size: int = Field(32, ge=1, description="sequences per step")
    micro_batch: int | Literal["auto"] = Field("auto", description="sequences per forward pass; changes memory and speed only")
    seed: int = Field(0, ge=0, lt=2**63, description="of the weights and the order of the data")
    device: str = Field("auto", description="auto, cpu or cuda")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of matrix products; master weights are fp32")
    threads: int | Literal["auto"] = Field("auto", description="CPU threads")
    compile: Literal["auto", "on", "off"] = Field("auto", description="torch.compile; auto: if the run is long enough to gain")
    recompute: bool = Field(False, description="activation checkpointing: less memory, a third more work")
    evaluate_every: int | Literal["auto"] = Field("auto", description="steps between evaluations; auto: 20 over the run")
    evaluate_windows: int | Literal["all"] = Field(512, description="validation sequences that an evaluation reads")
    target_loss: float | None = Field(None, gt=0, description="stop when the validation loss is at or below this")
    checkpoint_every: int | Literal["auto"] = Field("auto", description="steps between checkpoints; auto: at each evaluation")
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations without a lower validation loss")
    keep: int = Field(2, ge=1, description="newest checkpoints to keep, besides the best one")
    prompt: str = Field("", description="text that the samples continue")
    tensorboard: bool = Field(False, description="write TensorBoard events too (extra `track`)")

    @model_validator(mode="after")
    def one_length(self) -> Self:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; the length of a run is one of steps, tokens, minutes")
        for name in ("micro_batch", "threads", "evaluate_every", "evaluate_windows", "checkpoint_every"):
            if isinstance(value := getattr(self, name), int) and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        return self


class Recipe(Settings):
    """A whole pretraining run. Every field is also an option of `pellucid pretrain`, by its dotted name."""

    verb = "pretrain"

    data: Data = Data()
    tokenizer: Tokens = Tokens()
    model: Model = Model()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training = Training()
