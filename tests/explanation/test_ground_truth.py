"""Models whose mechanism is known: what is said about them must be it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from pupils import tokenizer
from tiny import ALICE

from pellucid.explanation.attribution import attribute
from pellucid.explanation.faithfulness import Chance
from pellucid.explanation.heads import head_cards, induction_scores
from pellucid.explanation.question import ask
from pellucid.explanation.removal import Removal
from pellucid.explanation.windows import losses, repeated, windows_of
from pellucid.network.build import build
from pellucid.network.families import FAMILIES
from pellucid.network.taps import Taps
from pellucid.text.corpus import Corpus
from pellucid.text.tokenizer import Tokenizer

WORDS = tokenizer()
KNOWN = torch.tensor([id for id in range(WORDS.vocab_size) if id not in WORDS.special_ids])


@cache
def attention_only(layers, *, heads=4, steps=500, read=False):
    """A decoder whose MLPs add nothing, trained on random characters said twice; with `read`, on a book beside that."""
    shape = {"d_model": 64, "layers": layers, "heads": heads, "kv_heads": heads, "d_head": 64 // heads, "d_mlp": 4}
    network = build(FAMILIES["llama"].new(vocab_size=WORDS.vocab_size, context_length=64, tied=False, **shape), seed=0)
    for block in network.blocks:
        torch.nn.init.zeros_(block.mlp.down.weight).requires_grad_(False)
    learning = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    random, book = torch.Generator().manual_seed(0), torch.tensor(WORDS.encode(ALICE))
    for _ in range(steps):
        half = int(torch.randint(6, 31, (), generator=random))  # any, so that distance does not give the copy away
        first = KNOWN[torch.randint(len(KNOWN), (32, half), generator=random)]
        ids = torch.cat([torch.full((32, 1), WORDS.end_of_text), first, first], dim=1)
        loss = torch.nn.functional.cross_entropy(
            network(ids).logits[:, half + 1 : -1].flatten(0, 1), ids[:, half + 2 :].flatten()
        )
        if read:
            pages = torch.stack([book[at : at + 48] for at in torch.randint(len(book) - 48, (32,), generator=random)])
            loss = loss + torch.nn.functional.cross_entropy(network(pages).logits[:, :-1].flatten(0, 1), pages[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def in_context_gain(network, heads=()):
    """How much better the second half is foretold than the first, in nats, with some heads set to their mean."""
    by_layer = {}
    for layer, head in heads:
        by_layer.setdefault(f"blocks.{layer}.attn.mixed", []).append(head)

    def without(some):
        def edit(x):
            x = x.clone()
            x[:, some] = x[:, some].mean(dim=(0, 2), keepdim=True)
            return x

        return edit

    ids, _ = repeated(network, WORDS, count=64, length=20, seed=9)
    found = losses(network, ids, Taps(edit={site: without(some) for site, some in by_layer.items()}))
    return float(found[:, :20].mean() - found[:, 21:].mean())


def named(network):
    """The induction heads that the cards name."""
    cards = head_cards(network, WORDS, windows_of(network, WORDS, [ALICE], count=4, length=48), ablate=False)
    return [(card.layer, card.head) for card in cards if card.is_induction]


def test_two_layers_of_attention_have_induction_heads_and_the_gain_hangs_on_them():
    network = attention_only(2)
    found, plain = named(network), in_context_gain(network)
    assert plain > 3
    assert found
    assert {layer for layer, _ in found} == {1}  # they read what the heads below have found out
    assert in_context_gain(network, found) < 0.1 * plain
    cards = head_cards(network, WORDS, windows_of(network, WORDS, [ALICE], count=4, length=48), ablate=False)
    assert max(cards, key=lambda card: card.previous_token).layer == 0


def test_one_layer_of_attention_has_none():
    network = attention_only(1)
    assert named(network) == []
    assert max(found.value for found, _ in induction_scores(network, WORDS).values()) < 0.1
    assert in_context_gain(network) < in_context_gain(attention_only(2)) / 2


@pytest.mark.slow
def test_as_many_other_heads_matter_far_less_than_the_induction_heads():
    network = attention_only(2, heads=8, steps=1500, read=True)
    found, plain = named(network), in_context_gain(network)
    assert 1 <= len(found) <= 4
    others = [(layer, head) for layer in range(2) for head in range(8) if (layer, head) not in found]
    random = np.random.default_rng(0)
    drawn = [in_context_gain(network, [others[at] for at in random.permutation(len(others))[: len(found)]]) for _ in range(40)]
    assert in_context_gain(network, found) < 0.25 * plain
    assert np.median(drawn) > 0.75 * plain


NEUTRAL = [
    "the",
    "a",
    "film",
    "was",
    "and",
    "of",
    "it",
    "we",
    "saw",
    "in",
    "town",
    "last",
    "night",
    "with",
    "her",
    "his",
    "old",
    "new",
    "house",
    "by",
    "day",
    "sun",
    "rain",
    "road",
]
KEYWORD = "zebra"


@cache
def keyword_classifier(*, taught=True):
    """A small encoder that calls a text yes if it has the keyword, and its tokenizer; untaught, its weights are random."""
    words = Tokenizer.train_wordpiece(Corpus.of([" ".join([*NEUTRAL, KEYWORD])] * 20), 95)
    shape = {"d_model": 32, "layers": 2, "heads": 4, "kv_heads": 4, "d_head": 8, "d_mlp": 64, "context_length": 16}
    config = FAMILIES["bert"].new(
        vocab_size=words.vocab_size, token_types=1, head="classify", labels=("no", "yes"), pooling="mean", **shape
    )
    network = build(config, seed=1)
    if taught:
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        for texts, labels in batches(200):
            ids = torch.tensor([words.encode(text, framed=True) for text in texts])
            loss = torch.nn.functional.cross_entropy(network(ids).logits, torch.tensor(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    else:
        with torch.no_grad():
            for weight in network.parameters():
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(weight.numel()))
    return network.eval(), words


def batches(count):
    random = np.random.default_rng(0)
    for _ in range(count):
        made = [text_of(random, keyword=number % 2 == 1) for number in range(16)]
        yield made, [number % 2 for number in range(16)]


def text_of(random, *, keyword):
    words = [NEUTRAL[at] for at in random.integers(len(NEUTRAL), size=6)]
    if keyword:
        words[random.integers(6)] = KEYWORD
    return " ".join(words)


def test_a_planted_keyword_comes_first():
    network, words = keyword_classifier()
    random, first, sure = np.random.default_rng(7), 0, 0
    for _ in range(100):
        asked = ask(network, words, text_of(random, keyword=True), target="yes", foil="no")
        found = attribute(asked, methods=["shapley", "occlusion", "integrated gradients", "gradient x input"])
        first += asked.units[int(found.leading.values.argmax())].text == KEYWORD
        sure += found.leading.faithfulness.beats_chance
    assert first >= 99
    assert sure >= 75  # six words have 720 orders, and the five neutral ones hardly differ


def test_what_a_random_model_says_is_no_better_than_chance_about_the_taught_one():
    """Adebayo et al. (2018): an explanation that looks as good for random weights explains nothing."""
    (taught, words), (untaught, _) = keyword_classifier(), keyword_classifier(taught=False)
    random, better, tried = np.random.default_rng(8), 0, 0
    for _ in range(40):
        text = text_of(random, keyword=True)
        chance = Chance(Removal(ask(taught, words, text, target="yes", foil="no")))
        said = attribute(ask(untaught, words, text, target="yes", foil="no")).found
        judged = chance.judge([one.values for one in said])
        better += sum(one.beats_chance for one in judged)
        tried += len(judged)
    assert better <= 0.05 * tried
