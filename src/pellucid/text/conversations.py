"""Conversations in files, in the layouts that people have them in, and as examples of what the assistant says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.batches import IGNORED, Flags, Ids
from pellucid.text.byte_pairs import is_text
from pellucid.text.chat import ChatTemplate, encode_conversation
from pellucid.text.examples import Example
from pellucid.text.tables import kind
from pellucid.text.tabular import Sources, open_tables
from pellucid.text.tokenizer import Tokenizer

Long = Literal["error", "cut", "drop"]
Messages = list[dict[str, str]]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
TOOLS = ("tool", "function", "function_call", "observation", "ipython")
QUESTIONS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
LAYOUTS = "messages; conversations (ShareGPT); instruction, output and perhaps input, system, history (Alpaca); " + "; ".join(
    map(", ".join, QUESTIONS)
)
ORDER = "a conversation is: perhaps a system message, then the user and the assistant in turn, the assistant last"
# What would change the meaning of a row or a message, and is not understood.
BEYOND_TEXT = ("tools", "tool_calls", "function_call", "images", "image", "audios", "videos")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, each with a `role` and a `content`: perhaps system, then user and assistant in turn. `place` is for errors."""

    messages: Messages
    place: str


@dataclass(frozen=True, slots=True)
class Taught:
    """Examples of what an assistant says; `long` of them had more tokens than fit, the longest `longest`."""

    examples: list[Example]
    long: int
    longest: int
    tokens: int  # of all examples, inputs only
    learned: int  # of these, the targets that are not ignored


def read_conversations(sources: Sources) -> list[Conversation]:
    """The conversations in files (csv, tsv, jsonl, json, parquet), folders, patterns, `hf:NAME` or tables, in order.

    Rows are recognised by their fields: see `LAYOUTS`. Raises `CorpusError`, with the place, for one that is none of these or
    has not its roles in order.
    """
    conversations = []
    for table in open_tables(sources):
        for number, row in table.rows():
            place = table.place(number)
            conversations.append(Conversation(check_order(conversation_of(row, place), place), place))
    if not conversations:
        raise CorpusError("there are no conversations in the data (it has no rows); give some")
    return conversations


def conversation_of(row: Mapping[str, Any], place: str) -> Messages:
    """The messages of a row, in whatever layout it is."""
    refuse_beyond_text(row, place)
    for field in ("messages", "conversations", "conversation"):
        if field in row:
            if "chosen" in row and "rejected" in row:
                raise CorpusError(f"{place} has two answers to choose from (chosen, rejected); pass --task prefer")
            return [*system_of(row, place), *messages_of(row[field], place, field)]
    if "instruction" in row and "output" in row:
        return [*alpaca_prompt(row, place), message("assistant", row["output"], f"{place}, output")]
    for question, answer in QUESTIONS:
        if question in row and answer in row:
            if isinstance(row[question], list) and isinstance(row[answer], list):
                return [*messages_of(row[question], place, question), *messages_of(row[answer], place, answer)]
            said = message("assistant", row[answer], f"{place}, {answer}")
            return [*system_of(row, place), message("user", row[question], f"{place}, {question}"), said]
    fields = ", ".join(f"{name!r:.40}" for name in list(row)[:20]) or "none"
    raise CorpusError(f"{place} has the fields {fields}, which are no conversation; name them as in one of: {LAYOUTS}")


def alpaca_prompt(row: Mapping[str, Any], place: str) -> Messages:
    """What comes before the answer in Alpaca's layout (Taori et al., 2023): the input stands below the instruction."""
    earlier: Messages = []
    history = row.get("history")
    if not isinstance(history, list | None):
        raise CorpusError(f"{place}, history is {kind(history)}, not a list of pairs; correct it")
    for number, pair in enumerate(history or [], 1):
        where = f"{place}, history {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise CorpusError(f"{where} is {kind(pair)}, not a pair of what was asked and answered; correct it")
        earlier += [message("user", pair[0], where), message("assistant", pair[1], where)]
    asked = message("user", row["instruction"], f"{place}, instruction")
    added = row.get("input")
    if not isinstance(added, str | None):
        raise CorpusError(f"{place}, input is {kind(added)}, not text; correct it")
    if added and added.strip():
        asked["content"] += "\n" + message("user", added, f"{place}, input")["content"]
    return [*system_of(row, place), *earlier, asked]


def system_of(row: Mapping[str, Any], place: str) -> Messages:
    """The system message that a field of its own holds, if there is one."""
    value = row.get("system")
    return [] if value is None or value == "" else [message("system", value, f"{place}, system")]


def messages_of(value: Any, place: str, field: str) -> Messages:
    """Messages with role and content, or ShareGPT's with from and value."""
    if not isinstance(value, list) or not value:
        raise CorpusError(f"{place}, {field} is {'empty' if value == [] else kind(value)}, not a list of messages; correct it")
    return [one_message(item, f"{place}, message {number}") for number, item in enumerate(value, 1)]


def one_message(value: Any, where: str) -> dict[str, str]:
    """A message as files have it, with our names. Raises `CorpusError` for a role that is not known."""
    if not isinstance(value, dict):
        raise CorpusError(f"{where} is {kind(value)}, not an object with role and content; correct it")
    refuse_beyond_text(value, where)
    names = next((pair for pair in (("role", "content"), ("from", "value")) if pair[0] in value), None)
    if names is None:
        raise CorpusError(f"{where} has neither role and content nor from and value; say who speaks")
    role = value[names[0]]
    if role in TOOLS:
        raise CorpusError(f"{where} has the role {role!r}: tools are not learned; leave the conversation out")
    if not isinstance(role, str) or role not in ROLES:
        raise CorpusError(f"{where} has the role {role!r:.40}, which is unknown; it must be one of {', '.join(ROLES)}")
    if value.get("weight", 1) not in (1, None):
        raise CorpusError(f"{where} has the weight {value['weight']!r:.40}, which is not supported; leave it out")
    return message(ROLES[role], value.get(names[1]), where)


def message(role: str, content: Any, where: str) -> dict[str, str]:
    """A message, if its content is text and not empty."""
    if isinstance(content, list | dict):
        raise CorpusError(f"{where} has parts, as messages with images have, not a text; give texts only")
    if not isinstance(content, str):
        raise CorpusError(f"{where} holds {kind(content)}, not text; correct or remove it")
    if not content.strip():
        raise CorpusError(f"{where} is empty; fill or remove it")
    if not is_text(content):
        raise CorpusError(f"{where} holds half a character (a lone surrogate); correct or remove it")
    return {"role": role, "content": content}


def refuse_beyond_text(fields: Mapping[str, Any], where: str) -> None:
    if extra := next((name for name in BEYOND_TEXT if fields.get(name)), None):
        raise CorpusError(f"{where} has {extra}, which are not learned; give conversations of texts only")


def check_order(messages: Messages, place: str) -> Messages:
    """The messages, if their roles are in order and the assistant has the last word."""
    if not any(message["role"] == "assistant" for message in messages):
        raise CorpusError(f"{place} has no turn of the assistant, so there is nothing to learn; add one, or remove it")
    offset = messages[0]["role"] == "system"
    for number, message in enumerate(messages[offset:]):
        role, expected = message["role"], ("user", "assistant")[number % 2]
        if role != expected:
            before = f"after {messages[number + offset - 1]['role']}" if number + offset else "at the beginning"
            raise CorpusError(f"{place}, message {number + offset + 1}: {role} {before}, where {expected} must be; {ORDER}")
    if messages[-1]["role"] != "assistant":
        raise CorpusError(f"{place} ends with {messages[-1]['role']}, to whom nobody answers; {ORDER}")
    return messages


def conversation_examples(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    conversations: Sequence[Conversation],
    *,
    longest: int | None,
    long: Long = "error",
) -> Taught:
    """Each conversation as an example: its tokens but the last, and for each the next one where the assistant says it.

    One of more than `longest` inputs (None: no limit) is an error, is cut at its end ("cut"), or left out ("drop"). Raises
    `CorpusError` where cutting leaves nothing to learn, or dropping nothing at all.
    """
    rows = [[encode_conversation(tokenizer, template, c.messages, place=c.place)] for c in conversations]
    return taught(rows, [conversation.place for conversation in conversations], longest, long)


def taught(rows: Sequence[Sequence[tuple[Ids, Flags]]], places: Sequence[str], longest: int | None, long: Long) -> Taught:
    """Tokens [seq] and which of them to learn [seq], as examples of the next token; what is in one row stays together."""
    check_long(long)
    if longest is not None and longest < 1:
        raise ConfigError(f"the longest conversation has {longest} tokens; it must be at least 1")
    lengths = [max(len(ids) - 1 for ids, _ in row) for row in rows]
    fits = [longest is None or length <= longest for length in lengths]
    kept = kept_rows(fits, lengths, places, longest, long)
    examples = [_example(ids, learn, longest, places[at]) for at in kept for ids, learn in rows[at]]
    return Taught(
        examples,
        long=fits.count(False),
        longest=max(lengths),
        tokens=sum(len(example.ids) for example in examples),
        learned=sum(int((np.asarray(example.target) != IGNORED).sum()) for example in examples),
    )


def kept_rows(fits: Sequence[bool], lengths: Sequence[int], places: Sequence[str], longest: object, long: Long) -> list[int]:
    """The rows that are used: all, or with "drop" those that fit. Raises `CorpusError` for what does not fit."""
    over = [at for at, fit in enumerate(fits) if not fit]
    if over and long == "error":
        most = max(over, key=lambda at: lengths[at])
        have = "1 row has" if len(over) == 1 else f"{len(over):,} rows have"
        raise CorpusError(
            f"{have} more than the {longest} tokens that the model takes, of {len(fits):,} (the longest, {places[most]}, has "
            f"{lengths[most]:,}); pass --long cut to leave out what is beyond, or --long drop to leave out such rows"
        )
    if over and long == "drop" and not any(fits):
        raise CorpusError(f"every row has more than the {longest} tokens that the model takes; give shorter ones")
    return [at for at, fit in enumerate(fits) if fit or long == "cut"]


def check_long(long: str) -> None:
    """Raise `ConfigError` for anything but "error", "cut" and "drop"."""
    if long not in get_args(Long):
        raise ConfigError(f"--long is {long!r}; it must be one of {', '.join(get_args(Long))}")


def _example(ids: Ids, learn: Flags, longest: int | None, place: str) -> Example:
    target = np.where(learn[1:], ids[1:], IGNORED)[:longest]
    if not (target != IGNORED).any():
        cut = "" if longest is None or len(ids) <= longest + 1 else f" within its first {longest} tokens"
        raise CorpusError(f"{place} has nothing of the assistant's to learn{cut}; pass --long drop, or remove it")
    return Example(ids[:-1][:longest], target)
