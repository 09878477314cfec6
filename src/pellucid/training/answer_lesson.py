"""Learning to answer: from conversations, pairs of texts, and choices between two answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.network.network import Network
from pellucid.network.vocabulary import with_vocabulary
from pellucid.text.chat import ChatTemplate, turn_end, with_chat_tokens
from pellucid.text.conversations import Conversation, conversation_examples, read_conversations
from pellucid.text.examples import Example, ExampleBatches, pack
from pellucid.text.pairs import Pair, pair_examples, read_pairs
from pellucid.text.preferences import preference_examples, read_preferences
from pellucid.text.tabular import Sources
from pellucid.training.finetune_recipe import FinetuneRecipe
from pellucid.training.lesson import PARTS, Answer, Lesson, Start, digest
from pellucid.training.loop import Score
from pellucid.training.objectives import TokenPrediction
from pellucid.training.preference import Preference, with_references
from pellucid.training.scores import score_examples, score_pairs


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
