"""The verbs, and what they make: `load` a model, `pretrain` and `finetune` a run, `evaluate` figures, `explain` reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from pellucid.converting import convert
from pellucid.core.errors import ConfigError, CorpusError, ModelError
from pellucid.core.machine import cpu_cores
from pellucid.core.precision import Bits, Group, Holding
from pellucid.core.progress import Progress, Silent
from pellucid.core.run import RunFolder
from pellucid.evaluation.fill import MASK, fill
from pellucid.evaluation.grading import Grades
from pellucid.evaluation.harness import Scores, run_tasks
from pellucid.evaluation.labelled import evaluate_labels
from pellucid.evaluation.likelihood import BATCH_TOKENS
from pellucid.evaluation.perplexity import Perplexity, perplexity
from pellucid.evaluation.predict import known_temperature
from pellucid.explanation.explanation import Explanation, explain_answer
from pellucid.explanation.parts import Parts, Story, checkpoints_of, parts_of, story_of
from pellucid.explanation.probes import Probes, probe
from pellucid.finetuning import teach
from pellucid.generation import generate as writing
from pellucid.generation.settings import Sampling
from pellucid.generation.text import Generation
from pellucid.loading import Dtype, end_ids, open_model, special_ids
from pellucid.model import Model
from pellucid.network.network import Network
from pellucid.text.chat import ChatTemplate, Message, encode_chat
from pellucid.text.columns import Columns
from pellucid.text.corpus import Corpus
from pellucid.text.labelled import classes_of, read_rows
from pellucid.text.tables import Table
from pellucid.text.tokenizer import Tokenizer
from pellucid.training import pretrain as pretraining
from pellucid.training.finetune_recipe import FinetuneRecipe, TaskName
from pellucid.training.recipe import LENGTHS, Recipe

LABELLED_OPTIONS = ("train", "text_column", "label_column", "column_names", "multi_separator", "on_empty", "long")
SHARED = ("encoding", "on_bad_bytes", "html_breaks", "batch_tokens", "progress")  # options of text and of labelled data alike

__all__ = [
    "Explanation",
    "Generation",
    "Model",
    "Run",
    "TaskRun",
    "convert",
    "evaluate",
    "explain",
    "explain_labels",
    "explain_parts",
    "explain_training",
    "finetune",
    "load",
    "pretrain",
]


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    path: Path

    @property
    def model(self) -> Model:
        return load(self.path)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every line of `metrics.jsonl`."""
        return RunFolder(self.path).read_metrics()


@dataclass(frozen=True)
class TaskRun(Run):
    """A finished fine-tuning run."""

    grades: Grades | None  # on the test rows; None if there are none


def load(
    source: str | Path,
    *,
    device: str = "cpu",
    dtype: Dtype | None = None,
    revision: str | None = None,
    precision: Bits | None = None,
    group: Group = 32,
    symmetric: bool = False,
) -> Model:
    """A model from a run folder (its model, or its newest checkpoint if it is not finished), a Hugging Face-shaped folder, a
    `.gguf` file, a llama2.c `.bin` file, or the hub by its name.

    Without `dtype` weights keep the type they are stored in; quantised ones become fp32. Weights that we wrote are compared
    with their hash: a flipped byte is an error that names the file.
    With a `precision` (auto, fp32, bf16, f16, int8, int4) the model is for reading and writing only, and faster at it: it can
    neither be saved nor asked for gradients. int4 has a scale for each `group` of weights (32, 64, 128), and a zero point
    unless `symmetric`.
    """
    if precision is None and (group, symmetric) != (32, False):
        raise ConfigError("group and symmetric have no effect without precision='int4'; leave them out")
    if precision is not None and dtype is not None:
        raise ConfigError(f"dtype {dtype!r} and precision {precision!r} both say how weights are held; leave one out")
    holding = None if precision is None else Holding(precision=precision, group=group, symmetric=symmetric)
    torch.set_num_threads(min(torch.get_num_threads(), cpu_cores()))  # torch does not know of a container's quota
    opened = open_model(source, device=device, dtype=dtype, revision=revision, holding=holding)
    return Model(*opened, ends=end_ids(special_ids(opened.path, opened.tokenizer)))


def pretrain(
    corpus: str | Path | Sequence[str | Path] | Corpus | Iterable[str] | None = None,
    *,
    out: str | Path,
    recipe: Recipe | str | Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    tokens: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **fields: dict[str, Any],
) -> Run:
    """Train a language model from scratch on your own text.

    `corpus` is a path, a list of paths, a `Corpus` (`Corpus.of(texts)` holds texts), or an iterator of texts; `fields` are
    sections of the recipe, such as `training={"batch_size": 16}`. Returns the finished run; raises a `PellucidError`.
    """
    base = recipe if isinstance(recipe, Recipe) else Recipe.load(Path(recipe)) if recipe is not None else Recipe()
    length = {name: value for name, value in zip(LENGTHS, (steps, tokens, minutes), strict=True) if value is not None}
    if length:
        fields["training"] = fields.get("training", {}) | length
    texts: Corpus | None = None
    if isinstance(corpus, (str, Path)):
        fields["data"] = fields.get("data", {}) | {"corpus": [str(corpus)]}
    elif isinstance(corpus, Corpus):
        texts = corpus
    elif isinstance(corpus, Sequence):
        fields["data"] = fields.get("data", {}) | {"corpus": [str(path) for path in corpus]}
    elif corpus is not None:
        texts = Corpus.of(corpus)
    chosen = base.override(fields) if fields else base
    if texts is None and not chosen.data.corpus and not resume:
        raise CorpusError("no corpus was given; name files, folders, globs, - or hf:NAME")
    run = pretraining.pretrain(
        chosen, Path(out), corpus=texts, resume=resume, force=force, progress=progress or Silent(), sampler=sample
    )
    return Run(run.path)


def finetune(
    model: Model | str | Path,
    data: str | Path | Sequence[str | Path] | Table | Corpus | dict[str, Any] | None = None,
    *,
    out: str | Path,
    task: TaskName | dict[str, Any] | None = None,
    recipe: FinetuneRecipe | str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **fields: dict[str, Any],
) -> TaskRun:
    """Teach a model a task from labelled data. Returns the finished run, with its grades; raises a `PellucidError`.

    `model` is a path or a name (or a `Model` that was loaded from one), `data` are files, or rows in memory
    (`text.tabular.given(texts, labels)`, and `Corpus.of(texts)` for the task continue). `fields` are sections of the recipe,
    such as `method={"name": "lora"}`; so may be `task` and `data`: `data={"train": ["train.csv"], "test": ["test.csv"]}`.
    """
    chosen, sources = _finetuning(data, task, recipe, fields)
    taught = teach(
        chosen, _path_of(model), Path(out), sources=sources, resume=resume, force=force, progress=progress or Silent()
    )
    return TaskRun(taught.run.path, taught.grades)


def _finetuning(
    data: Any,
    task: TaskName | dict[str, Any] | None,
    recipe: FinetuneRecipe | str | Path | None,
    fields: dict[str, dict[str, Any]],
) -> tuple[FinetuneRecipe, Table | Corpus | None]:
    """The recipe with what was given beside it, and data in memory."""
    base = recipe if isinstance(recipe, FinetuneRecipe) else FinetuneRecipe.load(Path(recipe)) if recipe else FinetuneRecipe()
    if task is not None:
        fields["task"] = task if isinstance(task, dict) else {"name": task}
    memory = data if isinstance(data, Table | Corpus) else None
    if isinstance(data, dict):
        fields["data"] = data
    elif data is not None and memory is None:
        paths = [data] if isinstance(data, str | Path) else data
        fields["data"] = fields.get("data", {}) | {"train": [str(path) for path in paths]}
    return (base.override(fields) if fields else base), memory


def _path_of(model: Model | str | Path) -> str | Path:
    if not isinstance(model, Model):
        return model
    if model.network.is_edited:
        raise ModelError("an edited model cannot be fine-tuned, since its edits are no weights; give the model that was edited")
    if model.path is None:
        raise ModelError("this model lies in no folder; save it first, with model.save(folder)")
    return model.path


def evaluate(
    model: Model | str | Path,
    data: str | Path | Sequence[str | Path] | Corpus | Iterable[str] | None = None,
    *,
    tasks: str | Sequence[str] | None = None,
    context: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
    **reading: Any,
) -> Perplexity | Scores | Grades:
    """How good a model is: at predicting the text of `data`, or at `tasks` of lm-evaluation-harness (extra `eval`).

    A classifier or a tagger is graded on labelled rows, `data` being what `finetune` takes; with the option `train`, such rows
    too, beside floors that learn from these. Options of reading are then those of `evaluation.labelled.evaluate_labels`.

    `data` is what `pretrain` takes as its corpus, read with the options of `Corpus.open`; `context` and `stride` are its
    window's, see `perplexity`. `tasks` are names, groups or patterns; `limit`, `num_fewshot` and `include_path` are theirs,
    see `run_tasks`. Raises a `PellucidError`.
    """
    if (data is None) == (tasks is None):
        raise ConfigError("evaluate takes a text (data) or tasks of lm-evaluation-harness (tasks), and one of them: choose one")
    of_tasks = {"limit": limit, "num_fewshot": num_fewshot, "include_path": include_path}
    idle = of_tasks if tasks is None else {"context": context, "stride": stride, **reading}
    for name, value in idle.items():
        if value is not None:
            raise ConfigError(f"{name} has no effect on {'a text' if tasks is None else 'tasks'}; leave it out")
    held = model if isinstance(model, Model) else load(model)
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "progress": progress}
    if held.config.scores_labels:
        return _evaluate_labels(held, data, model, {"tasks": tasks, "context": context, "stride": stride}, reading | options)
    for option in LABELLED_OPTIONS:
        if option in reading:
            raise ConfigError(f"{option} has no effect on a model without a head for labels; leave it out")
    if tasks is not None:
        names = [name.strip() for name in tasks.split(",") if name.strip()] if isinstance(tasks, str) else tasks
        folder = None if include_path is None else Path(include_path)
        options |= {"limit": limit, "num_fewshot": num_fewshot, "include_path": folder, "ends": held.ends}
        return run_tasks(held.network, held.tokenizer, names, **options)
    if isinstance(data, (str, Path, Sequence)):
        corpus = Corpus.open(data, **reading)
    elif reading:
        raise ConfigError(f"{next(iter(reading))} has no effect on texts in memory; leave it out")
    else:
        corpus = data if isinstance(data, Corpus) else Corpus.of(cast(Iterable[str], data))
    return perplexity(held.network, held.tokenizer, corpus, context=context, stride=stride, **options)


def _evaluate_labels(
    held: Model, data: Any, model: Model | str | Path, idle: dict[str, Any], options: dict[str, Any]
) -> Grades:
    """The grades of a classifier; options that only other models have are refused."""
    for name in (*(name for name, value in idle.items() if value is not None), *options.keys() - {*LABELLED_OPTIONS, *SHARED}):
        raise ConfigError(
            f"{name} has no effect on a classifier or a tagger, which is evaluated on labelled data; leave it out"
        )
    if not isinstance(data, str | Path | Sequence | Table):
        raise ConfigError("a classifier is evaluated on labelled data; give files, or rows: text.tabular.given(texts, labels)")
    name = str(held.path or "the model") if isinstance(model, Model) else str(model)
    options |= {"temperature": known_temperature(held.path), "name": name}
    return evaluate_labels(held.network, held.tokenizer, cast(Any, data), **options)


def explain(
    model: Model | str | Path,
    text: str | Sequence[int] | Sequence[Message],
    *,
    target: str | None = None,
    foil: str | None = None,
    against: str | Sequence[int] | Sequence[Message] | None = None,
    **options: Any,
) -> Explanation:
    """Why a model answers a text with the target rather than the foil, and how far each answer to that can be trusted.

    What is explained is a difference: of the log-probabilities of two continuations, or of the logits of two labels. Without a
    target it is the likeliest answer, without a foil the likeliest other one. A text may be token ids, or a conversation whose
    next turn is asked about. With `against`, another prompt of as many tokens, it is also found where the difference between
    both arises. `options` are those of `explanation.explanation.explain_answer`: word (a tagger's, a mask's), by (words, tokens
    or sentences), spans, methods, removal, samples, steps, seed. Raises a `PellucidError`.
    """
    held, name = _named(model)
    asked, other = (_encoded(held, given) for given in (text, against))
    options |= {"target": target, "foil": foil, "against": other, "name": name}
    return explain_answer(held.network, held.tokenizer, cast(Any, asked), **options)


def _named(model: Model | str | Path) -> tuple[Model, str]:
    """A model, loaded if need be, and what it is called."""
    held = model if isinstance(model, Model) else load(model)
    return held, str(held.path or "the model") if isinstance(model, Model) else str(model)


def _encoded(held: Model, text: Any) -> Any:
    """A conversation as the tokens that the model answers to; anything else as it is."""
    if not isinstance(text, Sequence) or isinstance(text, str) or not text or not isinstance(text[0], Mapping):
        return text
    return encode_chat(held.tokenizer, ChatTemplate.of(held.tokenizer), text, add_generation_prompt=True)


def explain_parts(
    model: Model | str | Path, corpus: str | Path | Sequence[str | Path] | Corpus | None = None, **options: Any
) -> Parts:
    """What each attention head of a decoder does: a card with its scores, what is lost without it, and where it does most.

    The heads are watched on the first windows of a corpus, or of what the model itself writes. `options` are those of
    `explanation.parts.parts_of`: neurons (layer and number of some that get a card too), sites (further parts to
    ablate) and how (zero, mean, resample), windows, length, ablate, seed, progress. Raises a `PellucidError`.
    """
    held, name = _named(model)
    return parts_of(held.network, held.tokenizer, _texts(corpus), name=name, **options)


def explain_training(
    run: Run | str | Path,
    corpus: str | Path | Sequence[str | Path] | Corpus,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Story:
    """The heads' scores at every checkpoint that a run has kept, on the same text. Raises a `PellucidError`."""
    path = run.path if isinstance(run, Run) else Path(run)

    def opened(folder: Path) -> tuple[Network, Tokenizer]:
        found = open_model(folder)
        return found.network, found.tokenizer

    checkpoints = [(step, partial(opened, folder)) for step, folder in checkpoints_of(RunFolder(path))]
    return story_of(checkpoints, _texts(corpus) or (), name=str(path), seed=seed, progress=progress)


def explain_labels(model: Model | str | Path, data: Any, *, columns: Columns | None = None, **options: Any) -> Probes:
    """Where in a network the tags of words can be read off by a linear rule, beside a control task: linear probes.

    `data` are rows of tagged words, as `finetune` takes them for the task tag. `options` are those of
    `explanation.probes.probe`: sites, seed, progress. Raises a `PellucidError`.
    """
    held, name = _named(model)
    rows = read_rows(data, columns or Columns(), "tag", few=False).rows
    words = [row.words for row in rows if row.words is not None]
    tags = [list(classes_of(row)) for row in rows if row.words is not None]
    return probe(held.network, held.tokenizer, words, tags, name=name, **options)


def _texts(corpus: Any) -> Iterable[str] | None:
    if corpus is None:
        return None
    return (document.text for document in (corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)))


def sample(network: Network, tokenizer: Tokenizer, prompt: str) -> str:
    """What the network makes of a prompt, for the samples of a training run; with a fixed seed, so that samples compare.

    A decoder continues it. An encoder fills its masks, an encoder-decoder its gaps `<extra_id_0>`, if there are any.
    """
    kind, gap = network.config.architecture, {"encoder": MASK, "encoder-decoder": "<extra_id_0>"}
    if gap.get(kind, "") not in prompt:
        return ""
    network.eval()
    # a compiled block would be compiled again for every length
    with torch.compiler.set_stance("force_eager") if network.compiled else nullcontext():
        if kind == "encoder":
            for [best, *_] in fill(network, tokenizer, prompt, top=1):
                prompt = prompt.replace(MASK, best.token, 1)
            return prompt
        ids = tokenizer.encode(prompt, special=True, framed=kind == "encoder-decoder")
        most = min(120, network.config.context_length - max(1, len(ids)))
        settings = Sampling(temperature=0.8, top_p=0.95, seed=1)
        [text] = writing.generate(network, tokenizer, [ids], max_tokens=most, sampling=settings)
    return prompt + text.text if kind != "encoder-decoder" else tokenizer.decode(text.tokens, special=True)
