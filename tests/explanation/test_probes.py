"""Linear probes: what is there is found, what is not is not, and labels by heart do not count."""

from __future__ import annotations

import numpy as np
import pytest
from asked import classifier, writer
from tiny import DOCUMENTS

from pellucid.core.errors import ConfigError, CorpusError, ModelError
from pellucid.explanation.probes import control, probe
from pellucid.text.word_spans import words_of

ROWS = [words_of(text[:60]) for text in DOCUMENTS * 2][:40]


@pytest.mark.parametrize("model", [lambda: writer("qwen3"), lambda: classifier("bert"), lambda: writer("lstm")])
def test_what_each_token_says_of_itself_is_read_off_the_embedding(model):
    """Whether a word ends in a vowel: its last token is a character."""
    made = model()
    labels = [["vowel" if word[-1] in "aeiou" else "other" for word in row.words()] for row in ROWS]
    found = probe(made.network, made.tokenizer, ROWS, labels)
    assert found.found[0].site == "embedding"
    assert found.found[0].accuracy.value > 0.9 > found.majority
    assert all(one.accuracy.low <= one.accuracy.value <= one.accuracy.high for one in found.found)
    assert all(one.selectivity.value == pytest.approx(one.accuracy.value - one.control.value) for one in found.found)


def test_labels_drawn_at_random_are_found_nowhere():
    random = np.random.default_rng(0)
    labels = [[str(number) for number in random.integers(2, size=len(row.spans))] for row in ROWS]
    made = writer("qwen3")
    found = probe(made.network, made.tokenizer, ROWS, labels)
    assert all(one.accuracy.low < 0.6 for one in found.found)


def test_control_labels_are_those_of_words_wherever_they_stand():
    words = ["a", "b", "a", "c", "b", "a"]
    drawn = control(words, np.array([0, 1, 0, 1, 1, 0]), np.random.default_rng(1))
    assert drawn[0] == drawn[2] == drawn[5]
    assert drawn[1] == drawn[4]


def test_what_cannot_be_probed():
    made = writer("qwen3")
    with pytest.raises(ConfigError, match="each word of each text needs one label"):
        probe(made.network, made.tokenizer, ROWS, [["a"]] * len(ROWS))
    with pytest.raises(CorpusError, match="there are 3 texts, too few to hold some out; give 20 or more"):
        probe(made.network, made.tokenizer, ROWS[:3], [["a"] * len(row.spans) for row in ROWS[:3]])
    with pytest.raises(CorpusError, match="all words have the label 'a', so there is nothing to tell apart"):
        probe(made.network, made.tokenizer, ROWS, [["a"] * len(row.spans) for row in ROWS])
    t5 = writer("t5")
    with pytest.raises(ModelError, match="probing a t5 model is not supported; use a decoder or an encoder"):
        probe(t5.network, t5.tokenizer, ROWS, [["a"] * len(row.spans) for row in ROWS])
    with pytest.raises(ConfigError, match=r"'blocks.7.after' is no site"):
        probe(made.network, made.tokenizer, ROWS, [["a"] * len(row.spans) for row in ROWS], sites=["blocks.7.after"])
