"""Conversations in every layout, and every way in which one can be wrong."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError, CorpusError
from pellucid.text.batches import IGNORED
from pellucid.text.chat import ChatTemplate, encode_chat
from pellucid.text.conversations import Conversation, Long, Taught, conversation_examples, read_conversations
from pellucid.text.examples import pack
from pellucid.text.tabular import Records
from pellucid.text.tokenizer import Tokenizer

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
ORDER = "a conversation is: perhaps a system message, then the user and the assistant in turn, the assistant last"
ROLES = "system, user, human, assistant, gpt, chatgpt, model, bot"


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe(["Hi there, hello. The cat sat on the mat, and that is all there is to say about it. " * 9], 290)


LAYOUTS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "messages": ({"id": 7, "messages": [USER, ASSISTANT]}, [USER, ASSISTANT]),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "system": "Be kind."},
        turns(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello.")),
    ),
    "Alpaca": (
        {"instruction": "Add", "input": "1 2", "output": "3", "system": "", "history": [["Hi", "Hello."]]},
        turns(("user", "Hi"), ("assistant", "Hello."), ("user", "Add\n1 2"), ("assistant", "3")),
    ),
    "Alpaca without input": ({"instruction": "Hi", "input": "", "output": "Hello."}, [USER, ASSISTANT]),
    "prompt and completion": ({"prompt": "Hi", "completion": "Hello."}, [USER, ASSISTANT]),
    "lists as prompt and completion": ({"prompt": [USER], "completion": [ASSISTANT]}, [USER, ASSISTANT]),
    "prompt and response": ({"prompt": "Hi", "response": "Hello."}, [USER, ASSISTANT]),
    "question and answer": ({"question": "Hi", "answer": "Hello.", "source": "web"}, [USER, ASSISTANT]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("format", ["jsonl", "json", "parquet", "memory"])
def test_a_layout_is_recognised(layout: str, format: str, tmp_path: Path) -> None:
    row, messages = LAYOUTS[layout]
    path = tmp_path / f"chats.{format}"
    if format == "json":
        path.write_text(json.dumps([row, row]), encoding="utf-8")
    elif format == "jsonl":
        path = lines(tmp_path, row, row)
    elif format == "parquet":
        pq.write_table(pa.Table.from_pylist([row, row]), path)
    found = read_conversations(Records([row, row]) if format == "memory" else path)
    assert [conversation.messages for conversation in found] == [messages, messages]


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t")])
def test_tables_of_text(ending: str, separator: str, tmp_path: Path) -> None:
    path = tmp_path / f"chats.{ending}"
    path.write_text(f"instruction{separator}output\nHi{separator}Hello.\n", encoding="utf-8")
    assert read_conversations(path) == [Conversation([USER, ASSISTANT], f"{path}:2")]


WRONG = {
    "no assistant": (
        {"messages": [USER]},
        " has no turn of the assistant, so there is nothing to learn; add one, or remove it",
    ),
    "two users": (
        {"messages": [USER, USER, ASSISTANT]},
        f", message 2: user after user, where assistant must be; {ORDER}",
    ),
    "two assistants": (
        {"messages": [USER, ASSISTANT, ASSISTANT]},
        f", message 3: assistant after assistant, where user must be; {ORDER}",
    ),
    "assistant first": (
        {"messages": [ASSISTANT, USER, ASSISTANT]},
        f", message 1: assistant at the beginning, where user must be; {ORDER}",
    ),
    "assistant after system": (
        {"messages": [{"role": "system", "content": "a"}, ASSISTANT]},
        f", message 2: assistant after system, where user must be; {ORDER}",
    ),
    "system in the middle": (
        {"messages": [USER, {"role": "system", "content": "a"}, ASSISTANT]},
        f", message 2: system after user, where assistant must be; {ORDER}",
    ),
    "user last": ({"messages": [USER, ASSISTANT, USER]}, f" ends with user, to whom nobody answers; {ORDER}"),
    "tool": (
        {"messages": [USER, {"role": "tool", "content": "4"}, ASSISTANT]},
        ", message 2 has the role 'tool': tools are not learned; leave the conversation out",
    ),
    "unknown role": (
        {"messages": [{"role": "narrator", "content": "a"}, ASSISTANT]},
        f", message 1 has the role 'narrator', which is unknown; it must be one of {ROLES}",
    ),
    "role that is a number": (
        {"messages": [{"role": 1, "content": "a"}, ASSISTANT]},
        f", message 1 has the role 1, which is unknown; it must be one of {ROLES}",
    ),
    "role that is a list": (
        {"messages": [{"role": ["user"], "content": "a"}, ASSISTANT]},
        f", message 1 has the role ['user'], which is unknown; it must be one of {ROLES}",
    ),
    "empty content": ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, ", message 2 is empty; fill or remove it"),
    "no content": (
        {"messages": [USER, {"role": "assistant"}]},
        ", message 2 holds null, not text; correct or remove it",
    ),
    "number as content": (
        {"messages": [USER, {"role": "assistant", "content": 4}]},
        ", message 2 holds a number, not text; correct or remove it",
    ),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ASSISTANT]},
        ", message 1 has parts, as messages with images have, not a text; give texts only",
    ),
    "images beside": (
        {"messages": [USER, ASSISTANT], "images": ["a.png"]},
        " has images, which are not learned; give conversations of texts only",
    ),
    "tool calls": (
        {"messages": [USER, {"role": "assistant", "content": "a", "tool_calls": [{"id": 1}]}]},
        ", message 2 has tool_calls, which are not learned; give conversations of texts only",
    ),
    "weight": (
        {"messages": [USER, {**ASSISTANT, "weight": 0}]},
        ", message 2 has the weight 0, which is not supported; leave it out",
    ),
    "half a character": (
        {"messages": [USER, {"role": "assistant", "content": "a\ud83d"}]},
        ", message 2 holds half a character (a lone surrogate); correct or remove it",
    ),
    "nobody speaks": (
        {"messages": [{"text": "Hi"}, ASSISTANT]},
        ", message 1 has neither role and content nor from and value; say who speaks",
    ),
    "message is text": (
        {"messages": ["Hi", "Hello."]},
        ", message 1 is a text, not an object with role and content; correct it",
    ),
    "messages are text": ({"messages": "Hi"}, ", messages is a text, not a list of messages; correct it"),
    "no messages": ({"messages": []}, ", messages is empty, not a list of messages; correct it"),
    "history": (
        {"instruction": "a", "output": "b", "history": [["Hi"]]},
        ", history 1 is a list, not a pair of what was asked and answered; correct it",
    ),
    "history that is text": (
        {"instruction": "a", "output": "b", "history": "Hi"},
        ", history is a text, not a list of pairs; correct it",
    ),
    "input that is a number": ({"instruction": "a", "input": 3, "output": "b"}, ", input is a number, not text; correct it"),
    "empty output": ({"instruction": "a", "output": ""}, ", output is empty; fill or remove it"),
    "empty answer": ({"question": "a", "answer": None}, ", answer holds null, not text; correct or remove it"),
    "preference": (
        {"conversations": [], "chosen": {}, "rejected": {}},
        " has two answers to choose from (chosen, rejected); pass --task prefer",
    ),
    "other columns": (
        {"review": "a", "stars": 4},
        " has the fields 'review', 'stars', which are no conversation; name them as in one of: messages; conversations "
        "(ShareGPT); instruction, output and perhaps input, system, history (Alpaca); prompt, completion; prompt, response; "
        "question, answer",
    ),
    "no columns": (
        {},
        " has the fields none, which are no conversation; name them as in one of: messages; conversations "
        "(ShareGPT); instruction, output and perhaps input, system, history (Alpaca); prompt, completion; prompt, response; "
        "question, answer",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_conversation_is_one_sentence(wrong: str, tmp_path: Path) -> None:
    row, sentence = WRONG[wrong]
    path = lines(tmp_path, {"messages": [USER, ASSISTANT]}, row)
    with pytest.raises(CorpusError) as caught:
        read_conversations(path)
    assert str(caught.value) == f"{path}:2{sentence}"


def test_a_file_without_rows(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as caught:
        read_conversations(lines(tmp_path))
    assert str(caught.value) == "there are no conversations in the data (it has no rows); give some"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["user", "gpt", "system", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "weight"]), inner, max_size=3)
    ),
    max_leaves=12,
)
FIELDS = ["messages", "conversations", "instruction", "input", "output", "history", "system", "prompt", "response", "chosen"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4))
def test_whatever_a_row_holds_it_is_a_conversation_or_a_sentence(row: dict[str, Any]) -> None:
    refusal, found = "", []
    try:
        found = read_conversations(Records([row]))
    except CorpusError as error:
        refusal = str(error)
    assert bool(found) or (refusal.startswith("the given rows: row 1") and "\n" not in refusal)
    assert all(message["content"].strip() for conversation in found for message in conversation.messages)
    assert all(conversation.messages[-1]["role"] == "assistant" for conversation in found)


@pytest.mark.parametrize(
    ("name", "count"), [("alpaca_en_demo.json", 999), ("alpaca_zh_demo.json", 1000), ("gsm8k_train.jsonl", 7473)]
)
def test_real_files(name: str, count: int, data: Path) -> None:
    found = read_conversations(data / "instruct" / name)
    assert len(found) == count
    assert {len(conversation.messages) for conversation in found} == {2}


def taught(*chats: list[dict[str, str]], longest: int | None = None, long: Long = "error") -> Taught:
    conversations = [Conversation(messages, f"chats.jsonl:{number}") for number, messages in enumerate(chats, 1)]
    return conversation_examples(tokenizer(), ChatTemplate(), conversations, longest=longest, long=long)


LONG = turns(("user", "Hi"), ("assistant", "Hello."), ("user", "the cat sat"), ("assistant", "on the mat"))


def test_each_token_is_asked_for_the_next_one_of_the_assistant() -> None:
    result = taught(LONG)
    (example,) = result.examples
    ids = encode_chat(tokenizer(), ChatTemplate(), LONG)
    target = np.asarray(example.target)
    assert example.ids.tolist() == ids[:-1]
    assert tokenizer().decode(target[target != IGNORED], special=True) == "Hello.<|im_end|>on the mat<|im_end|>"
    assert (target[target != IGNORED] == np.array(ids[1:])[target != IGNORED]).all()
    assert (result.long, result.longest, result.tokens) == (0, len(ids) - 1, len(ids) - 1)
    assert result.learned == (target != IGNORED).sum()


def test_packed_conversations_keep_their_targets() -> None:
    examples = taught(LONG, [USER, ASSISTANT], LONG).examples
    packed = pack(examples, 200)
    learned = [np.asarray(example.target)[np.asarray(example.target) != IGNORED].tolist() for example in (*examples, *packed)]
    assert len(packed) == 1
    assert sorted(learned[3]) == sorted(id for ids in learned[:3] for id in ids)


def test_a_conversation_that_just_fits() -> None:
    longest = taught(LONG).longest
    assert taught(LONG, longest=longest).long == 0
    with pytest.raises(CorpusError) as caught:
        taught([USER, ASSISTANT], LONG, longest=longest - 1)
    assert str(caught.value) == (
        f"1 row has more than the {longest - 1} tokens that the model takes, of 2 (the longest, chats.jsonl:2, has {longest}); "
        "pass --long cut to leave out what is beyond, or --long drop to leave out such rows"
    )


def test_long_conversations_are_cut_or_dropped_and_counted() -> None:
    short = taught([USER, ASSISTANT])
    cut = taught(LONG, [USER, ASSISTANT], LONG, longest=short.longest + 1, long="cut")
    assert (cut.long, [len(example.ids) for example in cut.examples]) == (
        2,
        [short.longest + 1, short.longest, short.longest + 1],
    )
    dropped = taught(LONG, [USER, ASSISTANT], longest=short.longest + 1, long="drop")
    assert (dropped.long, [len(example.ids) for example in dropped.examples]) == (1, [short.longest])


def test_a_cut_that_leaves_nothing_to_learn() -> None:
    with pytest.raises(CorpusError) as caught:
        taught([USER, ASSISTANT], longest=3, long="cut")
    assert str(caught.value) == (
        "chats.jsonl:1 has nothing of the assistant's to learn within its first 3 tokens; pass --long drop, or remove it"
    )


def test_nothing_is_left_when_all_are_dropped() -> None:
    with pytest.raises(CorpusError) as caught:
        taught(LONG, LONG, longest=3, long="drop")
    assert str(caught.value) == "every row has more than the 3 tokens that the model takes; give shorter ones"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"long": "split"}, "--long is 'split'; it must be one of error, cut, drop"),
        ({"longest": 0}, "the longest conversation has 0 tokens; it must be at least 1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        taught(LONG, **options)
    assert str(caught.value) == sentence
