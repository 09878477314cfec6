"""What users hold: a model (network, tokenizer, folder), a run, and the verbs that make them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.converting import check_free, convert, write_model
from pellucid.core.errors import ConfigError, CorpusError, ModelError
from pellucid.core.machine import cpu_cores
from pellucid.core.precision import Bits, Group, Holding
from pellucid.core.progress import Progress, Silent
from pellucid.core.run import RunFolder
from pellucid.evaluation.embed import Mode, Pooling, embed
from pellucid.evaluation.fill import MASK, Filling, fill
from pellucid.evaluation.grading import Grades
from pellucid.evaluation.harness import Scores, run_tasks
from pellucid.evaluation.labelled import evaluate_labels
from pellucid.evaluation.likelihood import BATCH_TOKENS, opening
from pellucid.evaluation.perplexity import Perplexity, perplexity
from pellucid.evaluation.predict import TOKENS, Prediction, known_temperature, predict_texts
from pellucid.finetuning import teach
from pellucid.generation import generate as writing
from pellucid.generation.constrain import Constraint
from pellucid.generation.rates import Rates, measure
from pellucid.generation.settings import Sampling, SamplingFields
from pellucid.generation.text import Generation
from pellucid.loading import Dtype, end_ids, open_model, special_ids
from pellucid.network.config import ModelConfig
from pellucid.network.masks import Mask
from pellucid.network.network import Network, Output
from pellucid.network.taps import Edit, Site, Taps
from pellucid.text.chat import ChatTemplate, Message, encode_chat
from pellucid.text.corpus import Corpus
from pellucid.text.encoded import Long
from pellucid.text.tables import Table
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.word_spans import words_of
from pellucid.training import pretrain as pretraining
from pellucid.training.finetune_recipe import FinetuneRecipe, TaskName
from pellucid.training.recipe import LENGTHS, Recipe

LABELLED_OPTIONS = ("train", "text_column", "label_column", "column_names", "multi_separator", "on_empty", "long")
SHARED = ("encoding", "on_bad_bytes", "html_breaks", "batch_tokens", "progress")  # options of text and of labelled data alike

__all__ = ["Generation", "Model", "Run", "TaskRun", "convert", "evaluate", "finetune", "load", "pretrain"]


@dataclass(frozen=True)
class Model:
    """A network with its tokenizer."""

    network: Network
    tokenizer: Tokenizer
    path: Path | None = None
    ends: frozenset[int] = frozenset()  # tokens that end a text, besides the tokenizer's end of text

    @property
    def config(self) -> ModelConfig:
        return self.network.config

    def __call__(
        self,
        ids: Int[Tensor, "batch seq"],
        mask: Mask | None = None,
        taps: Taps | None = None,
        *,
        decoder_ids: Int[Tensor, "batch decoded"] | None = None,
        types: Int[Tensor, "batch seq"] | None = None,
    ) -> Output:
        """Logits [batch seq vocab] and last hidden states [batch seq d_model] of token ids.

        An encoder-decoder needs `decoder_ids`, and answers about those; `types` are the token types of a network that has them.
        """
        for given in (ids, decoder_ids):
            if given is not None and given.numel():
                writing.check_ids(map(int, given.aminmax()), self.config.vocab_size)
        longest = max(ids.shape[1], 0 if decoder_ids is None else decoder_ids.shape[1])
        if longest > self.config.context_length:
            raise ConfigError(f"{longest:,} tokens exceed the model's context of {self.config.context_length:,}; pass fewer")
        if (decoder_ids is not None) != (self.config.architecture == "encoder-decoder"):
            raise ConfigError(
                f"a {self.config.family} model takes {'no ' if decoder_ids is not None else ''}decoder_ids: "
                "they are what the decoder of an encoder-decoder reads"
            )
        if types is not None and not self.config.token_types:
            raise ConfigError(f"this {self.config.family} model has no token types; leave types out")
        options = {"decoder_ids": decoder_ids, "types": types}
        return cast(Output, self.network(ids, mask, taps, **{name: v for name, v in options.items() if v is not None}))

    def compile(self, *, if_it_pays: bool = False, progress: Progress | None = None) -> None:
        """Have the step that writes a token compiled, for a model loaded with a `precision` that will write much.

        That takes a minute, once for each model and precision: what comes of it is kept in the cache folder. A small model then
        writes two to three times as fast. Sums are rounded in another order: a seed may write another text than before.
        Raises `ConfigError` where it cannot be done; with `if_it_pays` that is told to `progress` instead, and models of more
        than 1 GB are left as they are.
        """
        if self.network.held is None:
            raise ConfigError(
                "steps are compiled for a model that only reads; load it with a precision, such as precision='auto'"
            )
        from pellucid.generation.compiled import compile_if_it_pays, compile_steps

        (compile_if_it_pays if if_it_pays else compile_steps)(self.network, (progress or Silent()).say)

    def sites(self) -> list[Site]:
        """Every place where taps can read or edit: name, shape, meaning."""
        return self.network.sites()

    @contextmanager
    def record(self, *sites: str) -> Iterator[Taps]:
        """What passes at some sites, named or by pattern (`blocks.*.attn.pattern`), in the calls that are made meanwhile.

        `with model.record("hidden") as seen: model.score("a text")`; then `seen["hidden"]` is what passed in the last forward
        pass. Of a text that is being written that is a row for its last token, beside rows of filling (see `edit`).
        """
        if not sites:
            raise ConfigError("no site to record was given; name some, such as 'hidden' or 'blocks.*.attn.pattern'")
        taps = Taps(sites)
        with self.network.recording(taps):
            yield taps

    def edit(self, edits: Mapping[str, Edit | Tensor | float]) -> Model:
        """This model with what passes at some sites changed: by a function of it, or into a number or tensor.

        It shares the weights and can do what the model can, but for being compiled, saved or fine-tuned. A function should
        treat each position by itself: while a text is written it sees some tokens at a time, new ones of several texts or the
        next ones of a prompt, filled up to a number that is fast.
        """
        return replace(self, network=self.network.edited(Taps(edit=edits)))

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        n: int = 1,
        top_logprobs: int = 0,
        prompt_logprobs: bool = False,
        schema: dict[str, Any] | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        beams: int = 1,
        length_penalty: float = 1.0,
        **sampling: Unpack[SamplingFields],
    ) -> Any:
        """Continue a text, token ids, or a list of either. One prompt gives one `Generation`, a list gives a list of them.

        `sampling` are the settings of `Sampling`: temperature, top_k, seed ... The same seed writes the same text, alone or in
        a list. With `n` above 1 a prompt gives a list of so many. `top_logprobs` tells the likeliest tokens at each place,
        `prompt_logprobs` how likely the prompt is.
        With a `schema`, a `regex` or `choices` the text is JSON of that schema, matches, or is one of them, unless `max_tokens`
        end it before.
        `beams` above 1 search for the likeliest continuation instead of drawing one: the one of the highest sum of
        log-probabilities, divided by its length to the power of `length_penalty`.
        """
        prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # a tensor or an array of ids
        one = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], int))
        prompts: Any = [prompt] if one else prompt
        done = writing.generate(
            self.network,
            self.tokenizer,
            prompts,
            max_tokens=max_tokens,
            sampling=Sampling.of(sampling),
            stop=stop,
            ends=self.ends,
            n=n,
            top_logprobs=top_logprobs,
            prompt_logprobs=prompt_logprobs,
            constraint=Constraint.of(schema, regex, choices),
            beams=beams,
            length_penalty=length_penalty,
        )
        found: list[Any] = done if n == 1 else [done[at : at + n] for at in range(0, len(done), n)]
        return found[0] if one else found

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        schema: dict[str, Any] | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        beams: int = 1,
        length_penalty: float = 1.0,
        **sampling: Unpack[SamplingFields],
    ) -> Iterator[str]:
        """Continue a text, piece by piece; takes the options of `generate`. With `beams` the text is one piece."""
        options: dict[str, Any] = {"max_tokens": max_tokens, "stop": stop, "beams": beams, "length_penalty": length_penalty}
        options["constraint"] = Constraint.of(schema, regex, choices)
        return writing.stream(self.network, self.tokenizer, prompt, sampling=Sampling.of(sampling), ends=self.ends, **options)

    def chat(self, messages: str | Sequence[Message], **options: Any) -> Generation:
        """What the assistant answers: to one message of a user, or to a conversation of messages with `role` and `content`.

        The model's chat template (ChatML without one) is put around them; takes the options of `generate`.
        """
        talk = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        ids = encode_chat(self.tokenizer, ChatTemplate.of(self.tokenizer), talk, add_generation_prompt=True)
        return cast(Generation, self.generate(ids, **options))

    @torch.inference_mode()
    def score(self, text: str) -> Float[Tensor, " tokens"]:
        """Natural-log probability of every token of `text`, the first one after what documents begin with."""
        if not self.config.generates or self.config.architecture == "encoder-decoder":
            raise ModelError(f"a {self.config.family} model of this kind gives no probability to a text; use a decoder")
        ids = self.tokenizer.encode(text)
        if not ids:
            raise ConfigError("the text to score is empty; give at least one character")
        before = opening(self.tokenizer)
        out = self(torch.tensor([[*before, *ids[:-1]]], device=self.network.device))
        assert out.logits is not None, "what generates has a head"
        logprobs = out.logits[0, len(before) - 1 :].float().log_softmax(dim=-1)
        found: Tensor = logprobs.gather(1, torch.tensor(ids, device=logprobs.device)[:, None])[:, 0]
        return found

    def fill(self, text: str, *, top: int = 5) -> list[list[Filling]]:
        """The `top` likeliest tokens for every `[MASK]` in a text, of a masked language model."""
        return fill(self.network, self.tokenizer, text, top=top)

    def predict(
        self,
        texts: str | Sequence[str],
        *,
        temperature: float | None = None,
        long: Long = "error",
        batch_tokens: int = TOKENS,
    ) -> list[Prediction]:
        """What a classifier or a tagger says of each text, in their order.

        A classifier gives `.label`, `.probability` and `.probabilities` (one that gives several labels `.labels`), a regression
        `.value`, a tagger `.words`, `.tags` and `.spans`. Scores are divided by the `temperature` before they become
        probabilities: without it by the one that fine-tuning left beside the model, if there is one. `long` texts are an error,
        are cut, or are split into parts whose scores are averaged.
        """
        one = [texts] if isinstance(texts, str) else list(texts)
        for number, text in enumerate(one):
            if not isinstance(text, str):
                raise ConfigError(f"text {number} is {type(text).__name__}, not a string; give texts")
        asked = known_temperature(self.path) if temperature is None else temperature
        words = [words_of(text) for text in one] if self.config.head == "tag" else one
        options: dict[str, Any] = {"temperature": asked, "long": long, "batch_tokens": batch_tokens}
        return predict_texts(self.network, self.tokenizer, words, **options)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: Mode | None = None,
        normalize: bool | None = None,
        truncate: bool = False,
    ) -> Float[Tensor, "texts d_model"]:
        """A vector for each text, [texts d_model]: by default the mean over its tokens, or what sentence-transformers would do.

        A text that is longer than the model takes is an error, unless `truncate` allows to cut its end.
        """
        usual = Pooling.of(self.path) if self.path is not None and self.path.is_dir() else Pooling()
        chosen = Pooling(
            mode=usual.mode if pooling is None else pooling,
            normalize=usual.normalize if normalize is None else normalize,
            longest=usual.longest,
        )
        one = [texts] if isinstance(texts, str) else texts
        return embed(self.network, self.tokenizer, one, chosen, truncate=truncate)

    def rates(self, *, texts: Sequence[int] = (1, 8), prompt: int = 64, tokens: int = 64) -> Rates:
        """How fast it writes so many texts at once on this machine: `pellucid bench`."""
        return measure(self.network, self.tokenizer, texts=texts, prompt=prompt, tokens=tokens)

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write a Hugging Face-shaped model folder."""
        path = Path(folder)
        check_free(path, "hf", force=force)
        ids = special_ids(self.path, self.tokenizer)
        if not self.ends <= end_ids(ids):
            ids["eos_token_id"] = sorted(self.ends)
        write_model(path, self.network, self.tokenizer, ids=ids, source=self.path)


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
