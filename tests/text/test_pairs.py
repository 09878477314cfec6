"""Sources with their targets, and answers of which one is better."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError, CorpusError, TokenizerError
from pellucid.text.batches import IGNORED
from pellucid.text.chat import ChatTemplate
from pellucid.text.conversations import Taught
from pellucid.text.pairs import Pair, pair_examples, read_pairs
from pellucid.text.preferences import Preference, preference_examples, read_preferences
from pellucid.text.tabular import Records
from pellucid.text.tokenizer import Tokenizer

ASKED = [{"role": "user", "content": "Hi"}]
BETTER, WORSE = ({"role": "assistant", "content": content} for content in ("Hello.", "What?"))


@cache
def tokenizer() -> Tokenizer:
    text = "Hi there, hello. What? The cat sat on the mat, and that is all there is to say about it. " * 9
    return Tokenizer.train_bpe([text], 290, extra=["<extra_id_0>"])  # framed by an end of text


@pytest.mark.parametrize(
    "columns",
    [("source", "target"), ("input", "output"), ("document", "summary"), ("question", "answer"), ("text", "label")],
)
def test_columns_are_recognised(columns: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f"id,{columns[1]},{columns[0]}\n1,B,A\n", encoding="utf-8")
    assert read_pairs(path) == [Pair("A", "B", f"{path}:2")]


@pytest.mark.parametrize(
    ("named", "found"), [(("b", "a"), ("2", "1")), (("source", "a"), ("3", "1")), (("b", None), ("2", "4"))]
)
def test_columns_are_named(named: tuple[str, str | None], found: tuple[str, str]) -> None:
    rows = Records([{"a": "1", "b": "2", "source": "3", "target": "4"}])
    (pair,) = read_pairs(rows, source=named[0], target=named[1])
    assert (pair.source, pair.target) == found


ROW = "the given rows: row 1"
WRONG_PAIRS: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "unknown columns": (
        {"a": "x", "b": "y"},
        {},
        "the given rows has the columns 'a', 'b', of which none are known as source and target; "
        "name them with --source-field and --target-field",
    ),
    "missing": ({"a": "x", "b": "y"}, {"source": "c"}, "the given rows has no column 'c'; it has 'a', 'b'"),
    "instructions": (
        {"instruction": "x", "input": "", "output": "y"},
        {},
        "the given rows has instructions with their inputs; pass --task instruct, or name --source-field",
    ),
    "empty source": ({"source": " ", "target": "y"}, {}, f"{ROW}, source is empty; fill or remove the row"),
    "empty target": ({"source": "x", "target": ""}, {}, f"{ROW}, target is empty; fill or remove the row"),
    "number": ({"source": "x", "target": 3}, {}, f"{ROW}, target holds a number, not text; correct or remove the row"),
    "half": (
        {"source": "x\ud83d", "target": "y"},
        {},
        f"{ROW}, source holds half a character (a lone surrogate); correct or remove it",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_PAIRS)
def test_what_is_no_pair_is_one_sentence(wrong: str) -> None:
    row, named, sentence = WRONG_PAIRS[wrong]
    with pytest.raises(CorpusError) as caught:
        read_pairs(Records([row]), **named)
    assert str(caught.value) == sentence


def test_no_pairs() -> None:
    with pytest.raises(CorpusError) as caught:
        read_pairs(Records([]))
    assert str(caught.value) == "there are no pairs in the data (it has no rows); give some"


PAIR = Pair("the cat sat", "on the mat", "pairs.csv:2")


def test_the_decoder_reads_what_it_should_have_said() -> None:
    result = pair_examples(tokenizer(), [PAIR], start=5, longest=None)
    (example,) = result.examples
    target, end = np.asarray(example.target), tokenizer().end_of_text
    assert example.ids.tolist() == tokenizer().encode("the cat sat", framed=True)
    assert target.tolist() == [*tokenizer().encode("on the mat"), end]
    assert example.decoder_ids is not None
    assert example.decoder_ids.tolist() == [5, *target[:-1].tolist()]
    assert (result.long, result.longest, result.learned) == (0, max(len(example.ids), len(target)), len(target))


def test_long_pairs_are_cut_or_dropped_and_counted() -> None:
    short = Pair("Hi", "Hi", "pairs.csv:3")
    (first, second) = pair_examples(tokenizer(), [PAIR, short], start=5, longest=4, long="cut").examples
    assert (len(first.ids), first.ids[-1], np.size(first.target)) == (4, tokenizer().end_of_text, 4)
    dropped = pair_examples(tokenizer(), [PAIR, short], start=5, longest=4, long="drop")
    assert (dropped.long, [example.ids.tolist() for example in dropped.examples]) == (1, [second.ids.tolist()])
    with pytest.raises(CorpusError) as caught:
        pair_examples(tokenizer(), [PAIR, short], start=5, longest=9, longest_target=2)
    longest = pair_examples(tokenizer(), [PAIR], start=5, longest=None).longest
    assert str(caught.value) == (
        f"1 row has more than the 9 and 2 tokens that the model takes, of 2 (the longest, pairs.csv:2, has {longest}); "
        "pass --long cut to leave out what is beyond, or --long drop to leave out such rows"
    )


def test_pairs_that_cannot_be_encoded() -> None:
    with pytest.raises(ConfigError) as caught:
        pair_examples(tokenizer(), [PAIR], start=5, longest=None, longest_target=1)
    assert str(caught.value) == "targets of 1 token leave no room for a text and its end; allow more"
    endless = Tokenizer.train_bpe(["abcd " * 100], 259).backend
    lonely = type(endless).from_str(endless.to_str().replace("<|endoftext|>", "<|nothing|>"))
    with pytest.raises(TokenizerError) as refused:
        pair_examples(Tokenizer(lonely, {}), [PAIR], start=0, longest=None)
    assert str(refused.value) == (
        "the tokenizer has no end of text, so nothing could say where a target ends; use one that has one"
    )


PREFERENCES: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"},
    "question": {"question": "Hi", "chosen": "Hello.", "rejected": "What?"},
    "explicit": {"prompt": ASKED, "chosen": [BETTER], "rejected": [WORSE]},
    "implicit": {"chosen": [*ASKED, BETTER], "rejected": [*ASKED, WORSE]},
    "both": {"prompt": "Hi", "chosen": [*ASKED, BETTER], "rejected": [*ASKED, WORSE]},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello."},
        "rejected": {"from": "gpt", "value": "What?"},
    },
    "Alpaca": {"instruction": "Hi", "input": "", "chosen": "Hello.", "rejected": "What?"},
}


@pytest.mark.parametrize("layout", PREFERENCES)
def test_a_layout_of_preferences_is_recognised(layout: str) -> None:
    assert read_preferences(Records([PREFERENCES[layout]])) == [Preference(ASKED, [BETTER], [WORSE], ROW)]


@pytest.mark.parametrize("name", ["dpo_en_demo.json", "dpo_zh_demo.json"])
def test_real_preferences(name: str, data: Path) -> None:
    found = read_preferences(data / "instruct" / name)
    raw = json.loads((data / "instruct" / name).read_text(encoding="utf-8"))
    assert [preference.chosen[0]["content"] for preference in found] == [row["chosen"]["value"] for row in raw]
    assert [len(preference.prompt) for preference in found] == [len(row["conversations"]) for row in raw]


LAYOUTS = (
    "prompt (or question), chosen, rejected; chosen and rejected as lists of messages; conversations, chosen, rejected "
    "(ShareGPT); instruction, chosen, rejected (Alpaca)"
)
ORDER = "a conversation is: perhaps a system message, then the user and the assistant in turn, the assistant last"
WRONG_PREFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "the same": (
        {"prompt": "Hi", "chosen": "a", "rejected": "a"},
        ": chosen and rejected are the same, so there is nothing to prefer; correct or remove it",
    ),
    "the same conversations": (
        {"chosen": [*ASKED, BETTER], "rejected": [*ASKED, BETTER]},
        ": chosen and rejected are the same, so there is nothing to prefer; correct or remove it",
    ),
    "empty": ({"prompt": "Hi", "chosen": "a", "rejected": " "}, ", rejected is empty; fill or remove it"),
    "null": (
        {"prompt": "Hi", "chosen": None, "rejected": "a"},
        ", chosen is null, neither text nor messages; correct or remove it",
    ),
    "empty list": ({"chosen": [], "rejected": [BETTER]}, ", chosen, its value is empty, not a list of messages; correct it"),
    "no rejected": (
        {"prompt": "Hi", "chosen": "a"},
        f" has no rejected answer (its fields are 'prompt', 'chosen'); name them as in one of: {LAYOUTS}",
    ),
    "no prompt": (
        {"chosen": "a", "rejected": "b"},
        ": chosen and rejected share no prompt; add one that ends with the user's message",
    ),
    "empty prompt": ({"prompt": "", "chosen": "a", "rejected": "b"}, ", prompt is empty; fill or remove it"),
    "different prompts": (
        {"chosen": [{"role": "user", "content": "Ho"}, BETTER], "rejected": [*ASKED, WORSE]},
        ": chosen and rejected share no prompt; add one that ends with the user's message",
    ),
    "another prompt": (
        {"prompt": "Ho", "chosen": [*ASKED, BETTER], "rejected": [*ASKED, WORSE]},
        ": chosen and rejected do not begin with the prompt; correct or remove it",
    ),
    "prompt of the assistant": (
        {"prompt": [*ASKED, BETTER], "chosen": [BETTER], "rejected": [WORSE]},
        f", chosen, message 3: assistant after assistant, where user must be; {ORDER}",
    ),
    "answer of the user": (
        {"prompt": "Hi", "chosen": [BETTER, *ASKED], "rejected": [WORSE]},
        f", chosen ends with user, to whom nobody answers; {ORDER}",
    ),
    "tools": ({**PREFERENCES["texts"], "tools": ["x"]}, " has tools, which are not learned; give conversations of texts only"),
}


@pytest.mark.parametrize("wrong", WRONG_PREFERENCES)
def test_what_is_no_preference_is_one_sentence(wrong: str) -> None:
    row, sentence = WRONG_PREFERENCES[wrong]
    with pytest.raises(CorpusError) as caught:
        read_preferences(Records([row]))
    assert str(caught.value) == ROW + sentence


def test_no_preferences() -> None:
    with pytest.raises(CorpusError) as caught:
        read_preferences(Records([]))
    assert str(caught.value) == "there are no preference pairs in the data (it has no rows); give some"


def compared(*preferences: Preference, **options: Any) -> Taught:
    return preference_examples(tokenizer(), ChatTemplate(), preferences, **{"longest": None, **options})


def said(example: Any) -> str:
    target = np.asarray(example.target)
    return tokenizer().decode(target[target != IGNORED], special=True)


def test_only_the_answers_are_learned() -> None:
    prompt = [*ASKED, {"role": "assistant", "content": "the mat"}, {"role": "user", "content": "What?"}]
    result = compared(Preference(prompt, [BETTER], [WORSE], ROW), Preference(ASKED, [WORSE], [BETTER], ROW))
    texts = ["Hello.<|im_end|>", "What?<|im_end|>", "What?<|im_end|>", "Hello.<|im_end|>"]
    assert [said(example) for example in result.examples] == texts
    first, second = (example.ids[: (np.asarray(example.target) != IGNORED).argmax()] for example in result.examples[:2])
    assert first.tolist() == second.tolist()


@given(st.text("ab .c<", min_size=1, max_size=6), st.text("ab .c<", min_size=1, max_size=6))
def test_every_two_answers_that_differ_make_two_examples(better: str, worse: str) -> None:
    row = {"prompt": "Hi", "chosen": better, "rejected": worse}
    if better == worse or not better.strip() or not worse.strip():
        with pytest.raises(CorpusError):
            read_preferences(Records([row]))
    else:
        result = compared(*read_preferences(Records([row])))
        assert [said(example) for example in result.examples] == [f"{better}<|im_end|>", f"{worse}<|im_end|>"]


def test_long_pairs_go_together() -> None:
    long = Preference(ASKED, [BETTER], [{"role": "assistant", "content": "the cat sat on the mat" * 3}], "pairs.jsonl:1")
    short = Preference(ASKED, [BETTER], [WORSE], "pairs.jsonl:2")
    longest = compared(short).longest
    dropped = compared(long, short, longest=longest, long="drop")
    assert (dropped.long, len(dropped.examples)) == (1, 2)
    cut = compared(long, short, longest=longest, long="cut")
    assert (cut.long, len(cut.examples), max(len(example.ids) for example in cut.examples)) == (1, 4, longest)


def test_answers_that_are_the_same_when_cut() -> None:
    answers = [[{"role": "assistant", "content": f"the cat sat on the mat{end}"}] for end in (".", "?")]
    longest = compared(Preference(ASKED, *answers, ROW)).longest - 3
    with pytest.raises(CorpusError) as caught:
        compared(Preference(ASKED, *answers, ROW), longest=longest, long="cut")
    assert str(caught.value) == (
        f"{ROW}: chosen and rejected are the same tokens within their first {longest} tokens; pass --long drop, or remove it"
    )
