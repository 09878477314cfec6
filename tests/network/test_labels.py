"""Heads for labels: from one network to another, whatever the padding, the batch or the seed; and what makes no sense."""

from dataclasses import replace

import jaxtyping
import pytest
import torch
from tiny import randomised

from pellucid.core.errors import ConfigError
from pellucid.network.build import build, parameters
from pellucid.network.families import FAMILIES
from pellucid.network.flops import forward_flops
from pellucid.network.labels import with_labels
from pellucid.network.layers import dropped
from pellucid.network.masks import Mask
from pellucid.network.pooling import pool
from pellucid.network.weights import load_network, save_network

SHAPE = {"vocab_size": 50, "context_length": 32, "d_model": 24, "layers": 2}
HEADS = {"heads": 4, "kv_heads": 4, "d_head": 6, "d_mlp": 40}
KNOWN = {
    "qwen3": SHAPE | HEADS | {"kv_heads": 2},
    "gpt2": SHAPE | HEADS,
    "bert": SHAPE | HEADS | {"token_types": 2, "pooler": True},
    "roberta": SHAPE | HEADS | {"token_types": 1, "tied": False},
    "distilbert": SHAPE | HEADS,
    "lstm": SHAPE,
    "bag-of-words": SHAPE,
}
ENCODERS = ("bert", "roberta", "distilbert")
LABELS = ("no", "yes", "perhaps")


@pytest.fixture
def as_for_users():
    """Without the checks of types that other tests run with: what refuses a value here is our own code."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def network_of(family):
    return randomised(FAMILIES[family].new(**KNOWN[family]))


def ways():
    """Every family with every head and pooling that it can have."""
    for family in KNOWN:
        for pooling in ("mean", *(["last"] if family != "bag-of-words" else []), *(["first"] if family in ENCODERS else [])):
            yield family, "classify", pooling
        yield family, "tag", "mean"


every = pytest.mark.parametrize(("family", "head", "pooling"), list(ways()))


def labelled(family, head, pooling, **changes):
    """Such a network; what is fresh in it matters too."""
    network = with_labels(network_of(family), head=head, labels=LABELS, pooling=pooling, seed=1, **changes)
    with torch.no_grad():
        for weight in network.head.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(2))
    return network


def assert_same_weights(first, second, names=None):
    found, expected = first.state_dict(), second.state_dict()
    for name in names or expected:
        assert torch.equal(found[name], expected[name]), name


@every
def test_a_batch_equals_its_texts_alone_and_padding_changes_nothing(family, head, pooling):
    network = labelled(family, head, pooling)
    generator = torch.Generator().manual_seed(0)
    ids, lengths = torch.randint(0, 50, (5, 12), generator=generator), [12, 7, 1, 12, 3]
    present = torch.arange(12) < torch.tensor(lengths)[:, None]
    for filling in (0, 49):
        mask = Mask.for_padded(present, causal=network.config.causal)
        found = network(ids.where(present, torch.tensor(filling)), mask).logits
        assert found.shape == ((5, 3) if head == "classify" else (5, 12, 3))
        for row, length in enumerate(lengths):
            alone = network(ids[row : row + 1, :length]).logits[0]
            together = found[row] if head == "classify" else found[row, :length]
            assert (alone - together).abs().max() < 1e-5
    if head == "classify":
        assert (found[0] - found[3]).abs().max() > 1e-3


@every
def test_saved_equals_loaded(family, head, pooling, tmp_path):
    network = labelled(family, head, pooling)
    save_network(network, tmp_path)
    again = load_network(tmp_path)
    assert again.config == network.config
    assert_same_weights(again, network)
    assert sum(weight.numel() for weight in again.parameters()) == parameters(network.config)


@every
def test_the_rest_is_shared_and_the_fresh_head_says_nothing_yet(family, head, pooling):
    before = network_of(family)
    network = with_labels(before, head=head, labels=LABELS, pooling=pooling, seed=1)
    weights = before.state_dict()
    fresh = {name for name, weight in network.state_dict().items() if weight.data_ptr() not in map(place, weights.values())}
    had = {"pooler.weight", "pooler.bias"} if family == "bert" else set()
    expected = {f"head.{name}" for name, _ in network.head.named_parameters()}
    expected |= ({"pooler.weight", "pooler.bias"} if pooling == "first" else set()) - had
    assert fresh == expected
    assert not network(torch.randint(0, 50, (2, 9))).logits.any()
    assert network.pooler is not None if pooling == "first" else not network.config.pooler
    assert network.training == before.training
    again = with_labels(before, head=head, labels=LABELS, pooling=pooling, seed=1)
    assert_same_weights(network, again)


def place(weight):
    return weight.data_ptr()


@every
def test_the_same_labels_keep_their_head_and_others_do_not(family, head, pooling):
    network = labelled(family, head, pooling)
    asked = {"head": head, "labels": LABELS, "pooling": pooling}
    assert_same_weights(with_labels(network, **asked, seed=5), network)
    for change in (
        {"labels": LABELS[::-1]},
        {"labels": LABELS[:2]},
        {"problem": "multi"} if head == "classify" else {"head": "classify"},
    ):
        other = with_labels(network, **asked | change, seed=5)
        assert not other.head.weight.any()
        assert torch.equal(other.embedding.weight, network.embedding.weight)
    text = {"head": "tag", "pooling": "mean"} if head == "classify" else {"head": "classify"}
    assert not with_labels(network, **asked | text, seed=5).head.weight.any()


def test_a_fresh_pooler_depends_on_the_seed_alone():
    pooler = [
        with_labels(network_of("distilbert"), head="classify", labels=LABELS, pooling="first", seed=seed).pooler.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(pooler[0], pooler[1])
    assert not torch.equal(pooler[0], pooler[2])
    assert pooler[0].std().item() == pytest.approx(0.5 * 24**-0.5, rel=0.15)


@every
def test_every_weight_is_taught_and_dropout_comes_before_the_last_matrix(family, head, pooling):
    network = labelled(family, head, pooling).train()
    ids, present = torch.randint(0, 50, (2, 9)), torch.arange(9) < torch.tensor([[9], [6]])
    mask = Mask.for_padded(present, causal=network.config.causal)
    network(ids, mask).logits.square().sum().backward()
    untaught = {name for name, weight in network.named_parameters() if weight.grad is None}
    assert not untaught

    network.config = replace(network.config, dropout=0.5)
    hidden = torch.randn(2, 9, 24)
    torch.manual_seed(0)
    found = network.answer(hidden, mask)
    torch.manual_seed(0)
    expected = network.head(dropped(hidden if head == "tag" else found.pooled, 0.5, True))
    assert torch.equal(found.logits, expected)
    assert not torch.equal(found.logits, network.eval().answer(hidden, mask).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "bert", "lstm", "bag-of-words"])
def test_weights_held_as_they_are_computed_change_no_score(family, dtype):
    network, ids = labelled(family, "classify", "mean").eval(), torch.randint(0, 50, (2, 9))
    network.compute_in(dtype)
    before = network(ids).logits
    network.hold_in(dtype)
    assert torch.equal(network(ids).logits, before)
    assert {weight.dtype for name, weight in network.named_parameters() if "blocks." in name} <= {dtype}
    assert network.embedding.weight.dtype == network.head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("bert", {"head": "classify"}, "a network whose head is classify needs the names of its labels, not ()"),
        ("bert", {"labels": LABELS}, f"a network whose head is mlm scores no labels, so it can have none, not {LABELS!r}"),
        ("bert", {"head": "tag", "labels": 3}, "labels must be a tuple of names, not 3"),
        ("bert", {"head": "tag", "labels": list(LABELS)}, f"labels must be a tuple of names, not {list(LABELS)!r}"),
        ("bert", {"head": "tag", "labels": ("a", "")}, "labels must be names, not ''"),
        ("bert", {"head": "tag", "labels": ("a", " \n")}, r"labels must be names, not ' \n'"),
        ("bert", {"head": "tag", "labels": ("a", "\x1b[2J")}, r"labels must be names, not '\x1b[2J'"),
        ("bert", {"head": "tag", "labels": ("a", 1)}, "labels must be names, not 1"),
        ("bert", {"head": "tag", "labels": ("a", "\ud800")}, r"labels must be names, not '\ud800'"),
        ("bert", {"head": "tag", "labels": ("a", "b", "a")}, "labels must differ from one another, not have twice 'a'"),
        ("bert", {"head": "tag", "labels": ("a",) * (2**20 + 1)}, "labels must be at most 1,048,576, not 1,048,577"),
        ("bert", {"head": "scores"}, "head must be one of lm, mlm, none, classify, tag, not 'scores'"),
        (
            "bert",
            {"head": "tag", "labels": LABELS, "problem": "multi"},
            "only a head that is classify has a problem and a pooling, not tag",
        ),
        ("gpt2", {"pooling": "last"}, "only a head that is classify has a problem and a pooling, not lm"),
        (
            "lstm",
            {"head": "classify", "labels": ("a",)},
            "a text that has one of the labels (single) needs at least 2 to choose from, not ('a',)",
        ),
        (
            "gpt2",
            {"head": "classify", "labels": LABELS, "pooling": "first"},
            "the first position of a decoder sees one token only: pool mean or last, not first",
        ),
        (
            "bag-of-words",
            {"head": "classify", "labels": LABELS, "pooling": "last"},
            "a bag of words has no order, so its pooling must be mean, not last",
        ),
        ("lstm", {"pooler": True}, "only an encoder has a pooler, not a network that is recurrent"),
        (
            "distilbert",
            {"head": "classify", "labels": LABELS, "pooling": "first"},
            "a classifier has a pooler where its pooling is first, and only there, not first",
        ),
        (
            "distilbert",
            {"head": "classify", "labels": LABELS, "problem": "both"},
            "problem must be one of single, multi, regression, not 'both'",
        ),
    ],
)
def test_nonsense_is_refused_where_it_is_made(family, changes, sentence, as_for_users):
    with pytest.raises(ConfigError) as caught:
        FAMILIES[family].new(**KNOWN[family] | changes)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("head", ["classify", "tag"])
def test_an_encoder_decoder_has_no_head_for_labels(head):
    network = randomised(FAMILIES["t5"].new(**SHAPE | HEADS, decoder_layers=1))
    with pytest.raises(ConfigError) as caught:
        with_labels(network, head=head, labels=LABELS, seed=0)
    said = f"an encoder-decoder scores no labels, it writes its answer: use --task seq2seq, not {head}"
    assert str(caught.value) == said


def test_weights_that_would_be_lost_are_an_error():
    network = network_of("qwen3")
    network.blocks[0].attn.q.register_parameter("down", torch.nn.Parameter(torch.ones(2, 24)))
    with pytest.raises(ConfigError) as caught:
        with_labels(network, head="classify", labels=LABELS, seed=0)
    assert str(caught.value) == (
        "a network with adapters gets no other head: blocks.0.attn.q.down is no weight of its own; merge them first"
    )


def test_a_head_for_tokens_is_no_head_for_labels(as_for_users):
    with pytest.raises(ConfigError, match="a head for labels must be one of classify, tag, not 'lm'"):
        with_labels(network_of("gpt2"), head="lm", labels=LABELS, seed=0)


def test_a_network_with_labels_does_not_generate_and_costs_less():
    before = network_of("gpt2").config
    config = labelled("gpt2", "classify", "mean").config
    tags = labelled("gpt2", "tag", "mean").config
    assert before.generates
    assert not config.generates
    assert not tags.generates
    assert config.describe().endswith("4 heads, 3 labels")
    body = forward_flops(before, 8) - 2 * 50 * 24
    assert forward_flops(config, 8) == pytest.approx(body + 2 * 3 * 24 / 8)
    assert forward_flops(tags, 8) == pytest.approx(body + 2 * 3 * 24)
    first = labelled("bert", "classify", "first").config
    assert forward_flops(first, 8) - forward_flops(labelled("bert", "classify", "mean").config, 8) == pytest.approx(
        2 * 24**2 / 8
    )


def test_a_fresh_network_with_labels_starts_with_a_uniform_guess():
    config = FAMILIES["qwen3"].new(**KNOWN["qwen3"], head="classify", labels=LABELS)
    network = build(config, seed=0)
    assert not network(torch.randint(0, 50, (2, 9))).logits.any()
    assert network.embedding.weight.std().item() == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("mode", ["mean", "first", "last", "max"])
def test_pooling_is_what_it_says(mode):
    hidden = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    lengths = [6, 4, 1]
    present = torch.arange(6) < torch.tensor(lengths)[:, None]
    said = {"mean": lambda x: x.mean(0), "first": lambda x: x[0], "last": lambda x: x[-1], "max": lambda x: x.amax(0)}[mode]
    expected = torch.stack([said(row[:length]) for row, length in zip(hidden, lengths, strict=True)])
    damaged = hidden.masked_fill(~present[..., None], torch.nan)
    assert torch.allclose(pool(damaged, present, mode), expected, atol=1e-6)
    assert torch.allclose(pool(hidden, None, mode), torch.stack([said(row) for row in hidden]), atol=1e-6)


def test_the_mean_of_bf16_is_summed_in_fp32():
    hidden = torch.full((1, 4096, 2), 0.1, dtype=torch.bfloat16)
    for present in (None, torch.ones(1, 4096, dtype=torch.bool)):
        assert torch.equal(pool(hidden, present, "mean"), hidden[:, 0])
