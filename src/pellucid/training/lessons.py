"""What fine-tuning learns from: a task's data as batches, an objective, and the network that fits it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.core.progress import Progress
from pellucid.network.config import ModelConfig, Pooling, Problem
from pellucid.network.labels import with_labels
from pellucid.network.layers import Head
from pellucid.network.network import Network
from pellucid.network.vocabulary import with_vocabulary
from pellucid.text.alignment import encode_words
from pellucid.text.batches import Batches, Lanes
from pellucid.text.chat import ChatTemplate, encode_chat, turn_end, with_chat_tokens
from pellucid.text.columns import Columns
from pellucid.text.conversations import Conversation, conversation_examples, read_conversations
from pellucid.text.corpus import Corpus
from pellucid.text.encoded import encode_texts
from pellucid.text.examples import Example, ExampleBatches, pack
from pellucid.text.labelled import Labelled, LabelledRows, Reading, classes_of, label_names, read_rows
from pellucid.text.pairs import Pair, pair_examples, read_pairs
from pellucid.text.preferences import Preference as Choice
from pellucid.text.preferences import preference_examples, read_preferences
from pellucid.text.splits import Part, split
from pellucid.text.tabular import Sources
from pellucid.text.tokenizer import Tokenizer
from pellucid.training.finetune_recipe import LABELLED, FinetuneRecipe
from pellucid.training.label_objective import LabelPrediction
from pellucid.training.loop import Score, Source
from pellucid.training.objectives import Objective, TokenPrediction
from pellucid.training.preference import Preference, with_references
from pellucid.training.preparation import corruption, prepare
from pellucid.training.recipe import Objective as Pretraining
from pellucid.training.scores import score_examples, score_pairs
from pellucid.training.validation import validate

PARTS = ("train", "validation", "test")
Item = TypeVar("Item", Conversation, Pair, Choice)
Answer = Conversation | Pair | Choice


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A task with nothing left open: what is learnt, from what, by which network."""

    tokenizer: Tokenizer
    objective: Objective
    batches: Source
    batches_per_epoch: int
    validate: Callable[[Network], Score] | None  # None: nothing is held out
    fit: Callable[[Network], Network] = lambda network: network  # the network with the head, or the vocabulary, for the task
    rows: Mapping[str, Sequence[Labelled | Answer]] = field(default_factory=dict)  # of each part, for grades
    labels: tuple[str, ...] = ()
    multi: bool = False
    group: int = 1  # rows that belong together
    unit: float = 1.0  # in which the head counts: its rate is multiplied by this, and so are its gradients
    ends: frozenset[int] = frozenset()  # tokens at which an answer ends
    findings: tuple[str, ...] = ()  # about the data, in sentences
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    def asked(self, prompt: str | Conversation, config: ModelConfig) -> list[int]:
        """The tokens after which the network is to write: of a prompt, or of a conversation up to its last turn."""
        if isinstance(prompt, str) and not self.ends:
            return self.tokenizer.encode(prompt, framed=config.architecture == "encoder-decoder")
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt.messages[:-1]
        return encode_chat(self.tokenizer, ChatTemplate.of(self.tokenizer), turns, add_generation_prompt=True)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The model that a lesson begins with."""

    network: Callable[[], Network]
    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def pad(self) -> int:
        found = self.tokenizer.pad if self.tokenizer.pad is not None else self.tokenizer.end_of_text
        return 0 if found is None else found


def lesson(recipe: FinetuneRecipe, start: Start, sources: Sources | Corpus | None, progress: Progress) -> Lesson:
    """Read and check the data of the recipe (or `sources`, for training), and make it what the loop learns from.

    Raises a `PellucidError` for data that cannot be learnt from, and for a task that the network cannot learn.
    """
    task, longest = recipe.task.name or "classify", recipe.training.context_length
    if longest is not None and longest > start.config.context_length:
        raise ConfigError(
            f"training.context_length is {longest:,}, but the model reads at most {start.config.context_length:,} tokens; "
            "make it smaller"
        )
    check_kind(task, start.config)
    if task == "continue":
        return text_lesson(recipe, start, sources, progress)
    if isinstance(sources, Corpus):
        raise ConfigError(
            f"a Corpus has texts alone, of which --task {task} cannot learn; give files, or rows with their labels"
        )
    if task in LABELLED:
        return label_lesson(recipe, start, sources)
    return answer_lesson(recipe, start, sources)


def check_kind(task: str, config: ModelConfig) -> None:
    """Refuse a task that this kind of network cannot learn, and say which can."""
    kind = config.architecture
    if task in LABELLED and kind == "encoder-decoder":
        raise ConfigError(f"a {config.family} model writes texts: teach it labels with --task seq2seq, the label as the target")
    if task == "tag" and kind == "bag-of-words":
        raise ConfigError("a bag of words knows no order, so it cannot tag words; use another model for --task tag")
    if task == "seq2seq" and kind != "encoder-decoder":
        raise ConfigError(
            f"--task seq2seq is for an encoder-decoder such as T5; a {config.family} model learns with --task instruct"
        )
    if task in ("instruct", "prefer") and not (config.generates and kind in ("decoder", "recurrent")):
        usual = "seq2seq" if kind == "encoder-decoder" else "classify, --task tag or --task regress"
        reason = f"has a head that {'scores labels' if config.labels else 'writes no texts'}"
        raise ConfigError(f"this {config.family} model {reason}, so it cannot learn --task {task}; use --task {usual}")
    if task == "continue" and (config.labels or config.head == "none"):
        raise ConfigError(
            f"this {config.family} model has no language-model head, so it cannot go on learning from text; "
            "give the model that it was made from"
        )


def label_lesson(recipe: FinetuneRecipe, start: Start, sources: Sources | None) -> Lesson:
    """Texts with classes, numbers, or tags of their words."""
    data, task, training = recipe.data, recipe.task, recipe.training
    assert task.name in ("classify", "tag", "regress")
    kind = task.name
    columns = Columns(data.text_column, data.label_column, data.split_column, tuple(data.column_names))
    reading = Reading(
        encoding=data.encoding,
        on_bad_bytes=data.on_bad_bytes,
        html_breaks=data.html_breaks,
        on_empty=data.on_empty,
        multi_separator=data.multi_separator,
    )

    def read(given: Sources, few: bool) -> LabelledRows:
        return read_rows(given, columns, kind, reading=reading, max_labels=data.max_labels, few=few)

    read_of_train = read(data.train if sources is None else sources, True)
    others: dict[str, Part] = {
        "validation": read(data.validation, False).rows if data.validation else data.validation_fraction,
        "test": read(data.test, False).rows if data.test else data.test_fraction,
    }
    splits = split(
        read_of_train.rows, **others, seed=data.split_seed, empty=read_of_train.empty, repaired=read_of_train.repaired
    )
    rows = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    labels = (read_of_train.label_column,) if kind == "regress" else in_order(label_names(splits.train), start.config)
    problem: Problem = "regression" if kind == "regress" else "multi" if read_of_train.multi else "single"
    refuse_idle(recipe, start.config, problem)
    coded = coder(labels, problem)
    examples: dict[str, list[Example]] = {}
    findings = list(splits.findings.sentences())
    for part, members in rows.items():
        examples[part], long = encoded(start.tokenizer, members, coded, recipe, start.config)
        findings += [f"{long:,} texts in {part} exceed the context; they are {data.long}"] if long else []
    weights = balanced(examples["train"], len(labels), problem) if task.class_weights == "balanced" else None
    numbers = np.array([row.label for row in splits.train], dtype=np.float64) if kind == "regress" else np.zeros(1)
    if kind == "regress":
        check_numbers(numbers, read_of_train.label_column)
    objective = LabelPrediction(
        problem, weights=weights, smoothing=task.smoothing, variance=float(numbers.var()) if kind == "regress" else 1.0
    )
    pooling = usual_pooling(start.config) if task.pooling is None else task.pooling

    def fit(network: Network) -> Network:
        head = "tag" if kind == "tag" else "classify"
        before = network.head
        network = with_labels(network, head=head, labels=labels, problem=problem, pooling=pooling, seed=training.seed)  # type: ignore[arg-type]
        if kind == "regress":
            standardise(network.scores, before, numbers)
        return network

    size = min(training.batch_size, len(examples["train"]))
    batches = ExampleBatches(examples["train"], batch_size=size, seed=training.seed, pad=start.pad)
    held_out = examples["validation"]

    def validated(network: Network) -> Score:
        return score_examples(network, objective, held_out, pad=start.pad, batch_tokens=training.micro_tokens)

    return Lesson(
        tokenizer=start.tokenizer,
        objective=objective,
        batches=batches,
        batches_per_epoch=batches.batches_per_epoch,
        validate=validated if held_out else None,
        fit=fit,
        rows=rows,
        labels=labels,
        multi=problem == "multi",
        unit=float(numbers.std()) if kind == "regress" else 1.0,
        findings=tuple(findings),
        fingerprint={
            "labelled data": digest([[(row.text, row.label) for row in rows[part]] for part in PARTS]),
            "set of labels": digest(labels),
        },
    )


def check_numbers(numbers: np.ndarray[Any, np.dtype[np.float64]], column: str) -> None:
    """Raise `CorpusError` for numbers that fp32 does not tell apart, or cannot square."""
    with np.errstate(over="ignore", under="ignore"):
        largest, spread = float(np.abs(numbers).max()), float(numbers.std())
    if not max(1e-15, 1e-5 * largest) < spread < 1e15:
        raise CorpusError(
            f"the numbers of column {column!r} go up to {largest:g} and differ by {spread:g} (standard deviation), which "
            "single precision cannot work with; subtract a number from all of them, or divide them by one"
        )


def standardise(head: Head, before: Head | None, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """Let a new head begin with the mean of the numbers, and with scores as far apart as they are; one that is kept stays."""
    if before is None or head.weight.data_ptr() != before.weight.data_ptr():
        with torch.no_grad():
            head.weight.mul_(float(numbers.std()))
            if head.bias is not None:
                head.bias.fill_(float(numbers.mean()))


def in_order(names: Sequence[str], config: ModelConfig) -> tuple[str, ...]:
    """The labels in the order of the model's own head, if it has one for them; a head that is there is kept."""
    return config.labels if set(names) == set(config.labels) else tuple(names)


def usual_pooling(config: ModelConfig) -> Pooling:
    """What a classifier reads, unless a user says: what its head reads already, else the mean."""
    return config.pooling if config.head == "classify" else "mean"


def refuse_idle(recipe: FinetuneRecipe, config: ModelConfig, problem: Problem) -> None:
    """Raise `ConfigError` for settings that have no effect on such labels, or in such a network."""
    if recipe.task.smoothing and problem == "multi":
        raise ConfigError("task.smoothing has no effect on texts that can have several labels; leave it out")
    if recipe.task.pooling is not None and config.architecture == "bag-of-words":
        raise ConfigError("task.pooling has no effect on a bag of words, which is a mean already; leave it out")


def coder(labels: Sequence[str], problem: Problem) -> Callable[[Labelled], Any]:
    """From a row's label to a target."""
    numbers = {name: number for number, name in enumerate(labels)}

    def code(row: Labelled) -> Any:
        if problem == "regression":
            return row.label
        if row.words is not None:
            return [numbers[name] for name in classes_of(row)]
        if problem == "multi":
            target = np.zeros(len(labels), dtype=np.float32)
            target[[numbers[name] for name in classes_of(row)]] = 1.0
            return target
        return numbers[str(row.label)]

    return code


def encoded(
    tokenizer: Tokenizer, rows: Sequence[Labelled], code: Callable[[Labelled], Any], recipe: FinetuneRecipe, config: ModelConfig
) -> tuple[list[Example], int]:
    """Rows as tokens with their targets, and how many were too long."""
    longest = recipe.training.context_length or config.context_length
    options: dict[str, Any] = {"longest": longest, "long": recipe.data.long, "place": lambda number: rows[number].place}
    if recipe.task.name == "tag":
        words = [row.words for row in rows if row.words is not None]
        found = encode_words(tokenizer, words, **options)
        return [Example(window.ids, window.targets(code(rows[window.row]))) for window in found.windows], found.long
    texts = encode_texts(tokenizer, [row.text for row in rows], **options)
    return [Example(ids, code(rows[number])) for ids, number in zip(texts.windows, texts.texts, strict=True)], texts.long


def balanced(examples: Sequence[Example], labels: int, problem: Problem) -> torch.Tensor:
    """Weights [labels] that give each label the same share in the loss: targets / (labels x those of this label)."""
    if problem == "multi":
        counts = np.sum([np.asarray(example.target) for example in examples], axis=0)
    else:
        targets = np.concatenate([np.atleast_1d(example.target) for example in examples])
        counts = np.bincount(targets[targets >= 0].astype(np.int64), minlength=labels)
    return torch.tensor(counts.sum() / (labels * np.maximum(counts, 1)), dtype=torch.float32)


def text_lesson(recipe: FinetuneRecipe, start: Start, sources: Sources | Corpus | None, progress: Progress) -> Lesson:
    """More text, learnt as in pretraining: the next tokens, those under the mask, or the spans that were cut out."""
    data, training = recipe.data, recipe.training
    if sources is not None and not isinstance(sources, Corpus):
        raise ConfigError("--task continue learns from text; give files, or Corpus.of(texts)")
    reading: dict[str, Any] = {"encoding": data.encoding, "on_bad_bytes": data.on_bad_bytes, "html_breaks": data.html_breaks}
    corpus = sources if isinstance(sources, Corpus) else Corpus.open(data.train, text_field=data.text_column, **reading)
    held_out = Corpus.open(data.validation, text_field=data.text_column, **reading) if data.validation else None
    if data.test:
        raise ConfigError("data.test has no effect with task continue; measure with: pellucid evaluate MODEL --data FILE")
    if not data.validation and not data.validation_fraction:
        raise ConfigError("data.validation_fraction is 0; task continue needs text to be evaluated on, so leave it out")
    prepared = prepare(corpus, held_out, data.validation_fraction, start.tokenizer, progress)
    kind = start.config.architecture
    objective = Pretraining(name={"encoder": "mlm", "encoder-decoder": "spans"}.get(kind, "clm"))
    if kind == "encoder" and start.tokenizer.mask is None:
        raise ConfigError(
            "the model's tokenizer has no mask token such as [MASK], so an encoder cannot go on learning from text"
        )
    if kind == "encoder-decoder" and not start.tokenizer.sentinels:
        raise ConfigError(
            "the model's tokenizer has no sentinels <extra_id_0>, <extra_id_1> ..., so it cannot go on learning from text"
        )
    hidden = corruption(objective, start.tokenizer, start.config)
    context = training.context_length or min(start.config.context_length, 512)
    batches: Batches
    if kind == "recurrent":
        batches = Lanes(prepared.training, context=context, batch_size=training.batch_size)
    else:
        options: dict[str, Any] = {"batch_size": training.batch_size, "seed": training.seed, "corruption": hidden}
        batches = Batches(prepared.training, context=context, **options)

    def validated(network: Network) -> Score:
        rows = max(1, training.micro_tokens // context)
        options: dict[str, Any] = {"documents": False, "batch_size": rows, "windows": 512, "corruption": hidden}
        return validate(network, TokenPrediction(), prepared.validation, context=context, **options)

    return Lesson(
        tokenizer=start.tokenizer,
        objective=TokenPrediction(),
        batches=batches,
        batches_per_epoch=math.ceil(batches.windows / batches.batch_size),
        validate=validated,
        findings=(f"train: {prepared.training.tokens:,} tokens, validation: {prepared.validation.tokens:,} tokens",),
        fingerprint={"text": corpus.fingerprint()} | ({"validation text": held_out.fingerprint()} if held_out else {}),
    )


def answer_lesson(recipe: FinetuneRecipe, start: Start, sources: Sources | None) -> Lesson:
    """Conversations, pairs of texts, and choices between two answers."""
    data, task, training = recipe.data, recipe.task, recipe.training
    longest = training.context_length or start.config.context_length
    pairs = task.name == "seq2seq"
    tokenizer = start.tokenizer if pairs else with_chat_tokens(start.tokenizer)[0]
    template = ChatTemplate.of(tokenizer)

    def read(given: Sources) -> Sequence[Answer]:
        if pairs:
            return read_pairs(given, source=data.text_column, target=data.label_column)
        return read_conversations(given) if task.name == "instruct" else read_preferences(given)

    given = {name: read(files) for name, files in (("validation", data.validation), ("test", data.test)) if files}
    shares = {"validation": data.validation_fraction, "test": data.test_fraction}
    rows = drawn(read(data.train if sources is None else sources), given, shares, data.split_seed)
    examples: dict[str, list[Example]] = {}
    findings = [", ".join(f"{part}: {len(members):,} rows" for part, members in rows.items() if members), *shared(rows)]
    for part in PARTS:
        members: Any = rows[part]
        if not members:
            examples[part] = []
            continue
        options: dict[str, Any] = {"longest": longest, "long": data.long}
        if pairs:
            found = pair_examples(tokenizer, members, start=start.config.start_token, **options)
        elif task.name == "instruct":
            found = conversation_examples(tokenizer, template, members, **options)
        else:
            found = preference_examples(tokenizer, template, members, **options)
        examples[part] = found.examples if part != "test" else []  # what is graded there is what the network writes
        findings += [f"{found.long:,} rows in {part} exceed the context; --long {data.long}"] if found.long else []
        findings += [f"{part}: {found.tokens:,} tokens, of which {found.learned:,} are learnt"]
    group = 2 if task.name == "prefer" else 1
    if "pack" in task.model_fields_set and start.config.architecture == "recurrent":
        raise ConfigError(
            f"task.pack has no effect on a {start.config.family} model, which reads one text at a time; leave it out"
        )

    def fit(network: Network) -> Network:
        return with_vocabulary(network, tokenizer.vocab_size)

    if group == 2:
        fresh = fit(start.network())
        options = {"pad": start.pad, "batch_tokens": training.micro_tokens}
        examples = {part: with_references(fresh, found, **options) for part, found in examples.items()}
    if task.name == "instruct" and task.pack and start.config.architecture == "decoder":
        examples["train"] = pack(examples["train"], min(longest, max(512, max(len(e.ids) for e in examples["train"]))))
    objective: Preference | TokenPrediction = Preference(task.beta) if group == 2 else TokenPrediction()
    size = min(training.batch_size * group, len(examples["train"]))
    batches = ExampleBatches(examples["train"], batch_size=size, seed=training.seed, pad=start.pad, group=group)

    def validated(network: Network) -> Score:
        options: dict[str, Any] = {"pad": start.pad, "batch_tokens": training.micro_tokens}
        if isinstance(objective, Preference):
            return score_pairs(network, objective, examples["validation"], **options)
        return score_examples(network, objective, examples["validation"], **options)

    return Lesson(
        tokenizer=tokenizer,
        objective=objective,
        batches=batches,
        batches_per_epoch=batches.batches_per_epoch,
        validate=validated if examples["validation"] else None,
        fit=fit,
        rows=rows,
        group=group,
        ends=frozenset() if pairs else frozenset({turn_end(tokenizer, template)[0]}),
        findings=tuple(findings),
        fingerprint={"data": digest([[content(row) for row in rows[part]] for part in PARTS])},
    )


def drawn(
    rows: Sequence[Answer], given: Mapping[str, Sequence[Answer]], shares: Mapping[str, float], seed: int
) -> dict[str, list[Answer]]:
    """Rows for each part: those given, else a share by the hash of their content, so that copies stay together."""
    hashes = {number: digest([seed, content(row)]) for number, row in enumerate(rows)}
    order, parts = sorted(set(hashes.values())), {part: list(found) for part, found in given.items()}
    taken: dict[str, str] = {}
    for part, share in shares.items():
        if part not in given and share:
            free = [key for key in order if key not in taken]
            count = round(share * len(order))
            if not 0 < count < len(free):
                raise CorpusError(
                    f"{share:g} of {len(rows):,} rows leaves none for {part}, or none to learn from; "
                    f"give more rows, or set --data.{part}-fraction to 0"
                )
            taken |= dict.fromkeys(free[:count], part)
    for part in PARTS:
        parts.setdefault(part, [row for number, row in enumerate(rows) if taken.get(hashes[number], "train") == part])
    return {part: parts[part] for part in PARTS}


def shared(rows: Mapping[str, Sequence[Answer]]) -> list[str]:
    """What is said of rows that are in training and in another part too."""
    learnt = {digest(content(row)) for row in rows["train"]}
    counts = {part: sum(digest(content(row)) in learnt for row in rows[part]) for part in PARTS[1:]}
    return [f"{count:,} of the {len(rows[part]):,} rows in {part} are in train too" for part, count in counts.items() if count]


def content(row: Answer) -> list[Any]:
    """What a row says, without its place."""
    if isinstance(row, Pair):
        return [row.source, row.target]
    if isinstance(row, Conversation):
        return list(row.messages)
    return [list(row.prompt), list(row.chosen), list(row.rejected)]


def digest(value: Any) -> str:
    """SHA-256 of lists of texts and numbers."""
    return hashlib.sha256(repr(value).encode("utf-8", "surrogatepass")).hexdigest()
