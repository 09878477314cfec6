"""The recipe of fine-tuning: what task is learnt from which labels, and how much of a model changes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pellucid.core.errors import ConfigError
from pellucid.training.recipe import Schedule
from pellucid.training.settings import Section, Settings

LENGTHS = ("epochs", "steps")
TaskName = Literal["classify", "tag", "regress", "continue", "instruct", "seq2seq", "prefer"]
LABELLED = ("classify", "tag", "regress")  # tasks that end in a head for labels
WRITING = ("instruct", "seq2seq")  # tasks that end in texts
FILES = ("train", "validation", "validation_fraction")
PARTS = (*FILES, "test", "test_fraction", "split_seed", "long")
ROWS = (*PARTS, "text_column", "label_column", "split_column", "column_names", "on_empty", "encoding", "on_bad_bytes")
READ = {  # what each task reads of the section `data`
    "classify": (*ROWS, "html_breaks", "multi_separator", "max_labels"),
    "regress": (*ROWS, "html_breaks"),
    "tag": ROWS,
    "continue": (*FILES, "text_column", "encoding", "on_bad_bytes", "html_breaks"),
    "instruct": (*PARTS, "graded_answers"),
    "seq2seq": (*PARTS, "graded_answers", "text_column", "label_column"),
    "prefer": PARTS,
}


class Task(Section):
    """What is learnt."""

    name: TaskName | None = Field(
        None,
        description="classify (without it), tag, regress, continue, instruct, seq2seq or prefer; see pellucid finetune --help",
    )
    pooling: Literal["mean", "first", "last"] | None = Field(
        None, description="what a classifier reads: the mean over the text, its first or its last token; without it what suits"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: a class counts by the inverse of its frequency"
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that is spread over all labels")
    beta: float = Field(0.1, gt=0, le=10, description="of DPO: how dearly a move away from the model as it was is paid")
    pack: bool = Field(True, description="several conversations in one sequence, which do not see one another")

    def without_effect(self) -> dict[str, str]:
        used = {
            "classify": ("pooling", "class_weights", "smoothing"),
            "tag": ("class_weights", "smoothing"),
            "regress": ("pooling",),
            "prefer": ("beta",),
            "instruct": ("pack",),
            None: ("pooling", "class_weights", "smoothing", "beta", "pack"),
        }.get(self.name, ())
        idle = [name for name in ("pooling", "class_weights", "smoothing", "beta", "pack") if name not in used]
        return dict.fromkeys(idle, f"with task {self.name}")


class Examples(Section):
    """Where labelled text comes from and how it is split."""

    train: list[str] = Field(
        [], description="csv, tsv, jsonl, json or parquet files, folders, globs or hf:NAME; text to continue"
    )
    validation: list[str] = Field([], description="files to choose the best checkpoint by; without them a share of the data")
    test: list[str] = Field([], description="files to grade the result on; without them a share of the data")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="share held out for validation; 0: none")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="share held out for the test; 0: none")
    graded_answers: int = Field(32, ge=1, description="instruct, seq2seq: test rows whose answers are written and graded")
    text_column: str | None = Field(None, description="column that holds the text; without it recognised")
    label_column: str | None = Field(None, description="column that holds the label, or several with commas between")
    split_column: str | None = Field(None, description="column that says train, validation or test; without it recognised")
    column_names: list[str] = Field([], description="names of the columns of csv and tsv files without a header row")
    split_seed: int = Field(0, ge=0, lt=2**63, description="which rows are held out; another seed of a run leaves them")
    multi_separator: str | None = Field(None, description="what stands between the labels of a text that can have several")
    max_labels: int | None = Field(None, ge=2, description="more distinct labels are taken for a mistake; without it 200")
    on_empty: Literal["error", "drop"] = Field("error", description="what to do with empty texts")
    long: Literal["error", "cut", "split", "drop"] = Field("error", description="what to do with texts that exceed the context")
    encoding: str | None = Field(None, description="encoding of text files; without it UTF-8, or UTF-16 by its mark")
    on_bad_bytes: Literal["error", "replace"] = Field("error", description="what to do with bytes that it does not allow")
    html_breaks: bool = Field(False, description="turn HTML line breaks into newlines")

    def without_effect(self) -> dict[str, str]:
        idle = {"validation_fraction": "when validation files are given"} if self.validation else {}
        return idle | ({"test_fraction": "when test files are given"} if self.test else {})


class Method(Section):
    """How much of the model changes."""

    name: Literal["full", "lora", "head"] | None = Field(
        None,
        description="full (without it): all weights; lora: low-rank adapters beside the matrices; head: that for labels alone",
    )
    rank: int = Field(16, ge=1, le=4096, description="lora: width of the adapters")
    alpha: float = Field(32.0, gt=0, description="lora: the adapters' share is alpha / rank")
    adapter_dropout: float = Field(0.0, ge=0, lt=1, description="lora: share of its input that an adapter does not see")
    targets: list[str] = Field(["all"], description="lora: the adapted matrices, such as attn.q and attn.v; all: every one")
    freeze: int = Field(0, ge=0, description="full: so many blocks from below stay as they are, and the embedding")
    layer_decay: float = Field(1.0, gt=0, le=1, description="full: each block learns so much slower than the one above it")
    fresh: bool = Field(False, description="begin with fresh weights: to measure what pretraining was worth")

    def without_effect(self) -> dict[str, str]:
        own = {"lora": ("rank", "alpha", "adapter_dropout", "targets"), "full": ("freeze", "layer_decay", "fresh")}
        idle = [name for kind, names in own.items() for name in names if kind != (self.name or kind)]
        return dict.fromkeys(idle, f"with method {self.name}")


class TuningOptimizer(Section):
    """How weights move."""

    name: Literal["adamw", "muon"] = Field(
        "adamw", description="adamw; muon: Muon for the blocks' matrices, AdamW for the rest"
    )
    learning_rate: float | None = Field(None, gt=0, le=100, description="peak rate; without it what suits method and size")
    head_learning_rate: float | None = Field(None, gt=0, le=100, description="peak rate of a head for labels; without it 0.005")
    weight_decay: float = Field(0.01, ge=0, description="decay of the blocks' matrices, times their learning rate")
    momentum: float = Field(0.95, ge=0, lt=1, description="momentum of Muon")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of AdamW's second moment")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")

    def rates(self) -> dict[str, float]:
        """The peak rate, for all weights alike."""
        assert self.learning_rate is not None, "decided before a job runs"
        return {"matrix_learning_rate": self.learning_rate, "learning_rate": self.learning_rate}

    def without_effect(self) -> dict[str, str]:
        return {"momentum": "with adamw"} if self.name == "adamw" else {}


class TuningSchedule(Schedule):
    """The learning rate over the run, as shares of its steps."""

    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps in which the rate rises")
    decay: float = Field(0.9, ge=0, le=1, description="share of the steps in which wsd falls")


class Tuning(Section):
    """How long, how much at a time, and on what."""

    epochs: float | None = Field(None, gt=0, description="times that every example is learnt; without a length what suits")
    steps: int | None = Field(None, ge=1, description="optimizer steps; instead of epochs")
    batch_size: int = Field(32, ge=1, description="examples per step (pairs, with task prefer)")
    micro_tokens: int = Field(2048, ge=1, description="most tokens per forward pass; changes memory and speed only")
    context_length: int | None = Field(None, ge=2, description="longest sequence, in tokens; without it the model's")
    dropout: float | None = Field(None, ge=0, lt=1, description="share of activations dropped while learning; without it usual")
    seed: int = Field(0, ge=0, lt=2**63, description="of fresh weights and of the order of the examples")
    device: str = Field("auto", description="auto, cpu or cuda")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of matrix products; trained weights are fp32")
    threads: int | Literal["auto"] = Field("auto", description="CPU threads")
    recompute: bool = Field(False, description="activation checkpointing: less memory, a third more work")
    evaluate_every: int | Literal["auto"] = Field("auto", description="steps between evaluations; auto: 10 over the run")
    target_loss: float | None = Field(None, gt=0, description="stop when the validation loss is at or below this")
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations without a lower validation loss")
    checkpoint_every: int | Literal["auto"] = Field("auto", description="steps between checkpoints; auto: at each evaluation")
    keep: int = Field(1, ge=1, description="newest checkpoints to keep, besides the best one")
    prompt: str = Field("", description="text that the samples answer or continue")
    tensorboard: bool = Field(False, description="write TensorBoard events too (extra `track`)")

    @model_validator(mode="after")
    def makes_sense(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given; the length of a run is one of them")
        for name in ("threads", "evaluate_every", "checkpoint_every"):
            if isinstance(value := getattr(self, name), int) and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        return self


class FinetuneRecipe(Settings):
    """A whole fine-tuning run. Every field is also an option of `pellucid finetune`, by its dotted name."""

    verb = "finetune"

    task: Task = Task()
    data: Examples = Examples()
    method: Method = Method()
    optimizer: TuningOptimizer = TuningOptimizer()
    schedule: TuningSchedule = TuningSchedule()
    training: Tuning = Tuning()

    def settled(self) -> FinetuneRecipe:
        """The recipe with task and method written out. Raises `ConfigError` for what they make idle in other sections."""
        return self.override(
            {"task": {"name": self.task.name or "classify"}, "method": {"name": self.method.name or "full"}}
        ).fitting()

    def fitting(self) -> Self:
        """The same recipe, unless a section has something that the task makes idle."""
        task = self.task.name or "classify"
        if self.method.name == "head" and task not in LABELLED:
            raise ConfigError(f"method head needs a head for labels, which task {task} has not; use full or lora")
        if "head_learning_rate" in self.optimizer.model_fields_set and task not in LABELLED:
            raise ConfigError(f"optimizer.head_learning_rate has no effect with task {task}; leave it out")
        if self.method.name == "head":
            for name in ("name", "weight_decay"):  # of what is in blocks
                if getattr(self.optimizer, name) != TuningOptimizer.model_fields[name].default:
                    raise ConfigError(f"optimizer.{name} has no effect with method head; leave it out")
        if self.method.fresh and task == "prefer":
            raise ConfigError(
                "method.fresh makes no sense with task prefer, which begins with a model's own answers; leave it out"
            )
        for name, field in Examples.model_fields.items():
            if getattr(self.data, name) != field.default and name not in READ[task]:
                raise ConfigError(f"data.{name} has no effect with task {task}; leave it out")
        if self.training.prompt and task in LABELLED:
            raise ConfigError(f"training.prompt has no effect with task {task}, which writes no text; leave it out")
        return self
