"""Two answers to one prompt, of which people prefer one (as for Rafailov et al., 2023), in the layouts that people have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from pellucid.core.errors import CorpusError
from pellucid.text.batches import Flags, Ids
from pellucid.text.chat import ChatTemplate, encode_chat, encode_conversation
from pellucid.text.conversations import (
    Long,
    Messages,
    Taught,
    alpaca_prompt,
    check_order,
    message,
    messages_of,
    one_message,
    refuse_beyond_text,
    system_of,
    taught,
)
from pellucid.text.tables import kind
from pellucid.text.tabular import Sources, open_tables
from pellucid.text.tokenizer import Tokenizer

PROMPTS = ("prompt", "question")
LAYOUTS = (
    "prompt (or question), chosen, rejected; chosen and rejected as lists of messages; conversations, chosen, rejected "
    "(ShareGPT); instruction, chosen, rejected (Alpaca)"
)


@dataclass(frozen=True, slots=True)
class Preference:
    """Messages that end with the user, and what the assistant says to them, better and worse. `place` is for errors."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    place: str


def read_preferences(sources: Sources) -> list[Preference]:
    """The preference pairs in files (csv, tsv, jsonl, json, parquet), folders, patterns, `hf:NAME` or tables, in order.

    Raises `CorpusError`, with the place, for a row that is none of `LAYOUTS`, whose roles are not in order, whose answers are
    the same, or one of them empty.
    """
    preferences = []
    for table in open_tables(sources):
        for number, row in table.rows():
            preferences.append(preference_of(row, table.place(number)))
    if not preferences:
        raise CorpusError("there are no preference pairs in the data (it has no rows); give some")
    return preferences


def preference_of(row: Mapping[str, Any], place: str) -> Preference:
    """The prompt and the two answers of a row, in whatever layout it is."""
    refuse_beyond_text(row, place)
    if missing := [name for name in ("chosen", "rejected") if name not in row]:
        fields = ", ".join(f"{name!r:.40}" for name in list(row)[:20]) or "none"
        raise CorpusError(f"{place} has no {missing[0]} answer (its fields are {fields}); name them as in one of: {LAYOUTS}")
    chosen, rejected = (_answer(row[name], place, name) for name in ("chosen", "rejected"))
    prompt = _prompt(row, place)
    if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":  # whole conversations
        shared = [a for a, _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False))]
        while shared and shared[-1]["role"] != "user":
            shared.pop()
        if chosen != rejected and prompt and prompt[-1] not in shared:
            raise CorpusError(f"{place}: chosen and rejected do not begin with the prompt; correct or remove it")
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    if chosen == rejected:
        raise CorpusError(f"{place}: chosen and rejected are the same, so there is nothing to prefer; correct or remove it")
    if not prompt:
        raise CorpusError(f"{place}: chosen and rejected share no prompt; add one that ends with the user's message")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        check_order([*prompt, *answer], f"{place}, {name}")
    return Preference(prompt, chosen, rejected, place)


def preference_examples(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    preferences: Sequence[Preference],
    *,
    longest: int | None,
    long: Long = "error",
) -> Taught:
    """Two examples for each pair, the chosen answer's before the rejected one's; nothing of the prompt is learned.

    A pair of which either has more than `longest` inputs (None: no limit) is an error, is cut at its ends ("cut"), or left out
    ("drop"). Raises `CorpusError` where cutting leaves two equal answers.
    """
    rows = [encode_preference(tokenizer, template, preference) for preference in preferences]
    for preference, ((chosen, _), (rejected, _)) in zip(preferences, rows, strict=True):
        limit = None if longest is None or long != "cut" else longest + 1
        if np.array_equal(chosen[:limit], rejected[:limit]):
            within = "" if limit is None else f" within their first {longest} tokens"
            raise CorpusError(
                f"{preference.place}: chosen and rejected are the same tokens{within}; pass --long drop, or remove it"
            )
    return taught(rows, [preference.place for preference in preferences], longest, long)


def encode_preference(
    tokenizer: Tokenizer, template: ChatTemplate, preference: Preference
) -> tuple[tuple[Ids, Flags], tuple[Ids, Flags]]:
    """The tokens [seq] of prompt and chosen answer, and which to learn; and those of prompt and rejected answer."""
    prompt = encode_chat(tokenizer, template, preference.prompt, add_generation_prompt=True, place=preference.place)

    def encode(answer: Messages) -> tuple[Ids, Flags]:
        ids, learn = encode_conversation(tokenizer, template, [*preference.prompt, *answer], place=preference.place)
        shared = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(prompt, ids.tolist(), strict=False)))
        learn[:shared] = False  # earlier turns of the assistant say nothing about which answer is better
        return ids, learn

    return encode(preference.chosen), encode(preference.rejected)


def _prompt(row: Mapping[str, Any], place: str) -> Messages:
    for field in ("conversations", "messages"):
        if field in row:
            return [*system_of(row, place), *messages_of(row[field], place, field)]
    if "instruction" in row:
        return alpaca_prompt(row, place)
    for field in PROMPTS:
        if isinstance(row.get(field), list):
            return [*system_of(row, place), *messages_of(row[field], place, field)]
        if field in row:
            return [*system_of(row, place), message("user", row[field], f"{place}, {field}")]
    return []


def _answer(value: Any, place: str, name: str) -> Messages:
    where = f"{place}, {name}"
    if isinstance(value, list):
        return messages_of(value, where, "its value")
    if isinstance(value, dict):
        return [one_message(value, where)]
    if isinstance(value, str):
        return [message("assistant", value, where)]
    raise CorpusError(f"{where} is {kind(value)}, neither text nor messages; correct or remove it")
