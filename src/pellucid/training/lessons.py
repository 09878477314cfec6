"""What fine-tuning learns from: of each task its lesson."""

from __future__ import annotations

import math
from typing import Any

from pellucid.core.errors import ConfigError
from pellucid.core.progress import Progress
from pellucid.network.config import ModelConfig
from pellucid.network.network import Network
from pellucid.text.batches import Batches, Lanes
from pellucid.text.corpus import Corpus
from pellucid.text.tabular import Sources
from pellucid.training.answer_lesson import answer_lesson
from pellucid.training.finetune_recipe import LABELLED, FinetuneRecipe
from pellucid.training.label_lesson import label_lesson
from pellucid.training.lesson import Lesson, Start
from pellucid.training.loop import Score
from pellucid.training.objectives import TokenPrediction
from pellucid.training.preparation import corruption, prepare
from pellucid.training.recipe import Objective as Pretraining
from pellucid.training.validation import validate


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
