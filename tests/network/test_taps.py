"""Reading and editing, in every architecture: reading changes nothing, every site is reached, every edit takes effect."""

import pytest
import torch
from tiny import randomised

from pellucid.core.errors import ConfigError
from pellucid.network.families import FAMILIES
from pellucid.network.masks import Mask
from pellucid.network.taps import Taps

SIZES = {
    "batch": 2,
    "seq": 9,
    "keys": 9,
    "d_model": 24,
    "heads": 4,
    "kv_heads": 4,
    "d_head": 6,
    "d_mlp": 40,
    "vocab": 50,
    "labels": 3,
}
SHAPE = {"vocab_size": 50, "context_length": 32, "d_model": 24, "layers": 2}
HEADS = {"heads": 4, "kv_heads": 4, "d_head": 6, "d_mlp": 40}
LABELS = ("no", "yes", "perhaps")
FIRST = {"head": "classify", "labels": LABELS, "pooling": "first", "pooler": True}
CONFIGS = {
    "decoder": FAMILIES["qwen3"].new(**SHAPE | HEADS | {"kv_heads": 2, "tied": False}),
    "decoder with learned positions": FAMILIES["gpt2"].new(**SHAPE | HEADS),
    "encoder": FAMILIES["bert"].new(**SHAPE | HEADS, token_types=2, head="none"),
    "encoder with head and pooler": FAMILIES["roberta"].new(**SHAPE | HEADS, token_types=1, pooler=True),
    "encoder-decoder": FAMILIES["t5"].new(**SHAPE | HEADS, decoder_layers=3, head_scale=24**-0.5),
    "lstm": FAMILIES["lstm"].new(**SHAPE),
    "bag of words": FAMILIES["bag-of-words"].new(**SHAPE | {"layers": 3}),
    "bag of words with labels": FAMILIES["bag-of-words"].new(**SHAPE, head="classify", labels=LABELS),
    "encoder with labels": FAMILIES["distilbert"].new(**SHAPE | HEADS, **FIRST),
    "encoder with labels, pooled": FAMILIES["bert"].new(**SHAPE | HEADS, token_types=2, head="classify", labels=LABELS),
    "encoder with tags": FAMILIES["roberta"].new(**SHAPE | HEADS, token_types=1, head="tag", labels=LABELS),
    "decoder with labels": FAMILIES["gpt2"].new(**SHAPE | HEADS, head="classify", labels=LABELS, pooling="last"),
    "decoder with tags": FAMILIES["qwen3"].new(**SHAPE | HEADS, head="tag", labels=LABELS),
    "lstm with labels": FAMILIES["lstm"].new(**SHAPE, head="classify", labels=LABELS),
}
NAMES = pytest.mark.parametrize("name", CONFIGS)


def outputs(network, taps=None, mask=None):
    """All that a forward pass returns."""
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    later = {"decoder_ids": ids.flip(1)[:, :7]} if network.config.architecture == "encoder-decoder" else {}
    out = network(ids, mask, taps, **later)
    return [value for value in (out.logits, out.hidden, out.pooled) if value is not None]


def padded(config):
    """A mask that not all positions pass, where the architecture takes one."""
    present = torch.arange(9) < torch.tensor([[9], [6]])
    takes = config.architecture in ("encoder", "encoder-decoder") or config.labels
    return Mask.for_padded(present, causal=config.architecture in ("decoder", "recurrent")) if takes else None


@NAMES
def test_reading_everything_changes_no_bit(name):
    network = randomised(CONFIGS[name])
    for mask in (None, padded(CONFIGS[name])):
        plain, read = outputs(network, mask=mask), outputs(network, Taps("*"), mask)
        assert len(plain) == len(read)
        assert all(torch.equal(a, b) for a, b in zip(plain, read, strict=True))


@NAMES
def test_every_site_is_reached_with_the_shape_it_claims(name):
    network, taps = randomised(CONFIGS[name]), Taps("*")
    outputs(network, taps)
    assert [site.name for site in network.sites()] == list(taps)
    for site in network.sites():
        sizes = SIZES | {"kv_heads": CONFIGS[name].kv_heads}
        if site.name.startswith("decoder.") or (site.name == "logits" and name == "encoder-decoder"):
            sizes["seq"] = 7
            sizes["keys"] = 9 if ".cross." in site.name else 7
        assert list(taps[site.name].shape) == [sizes[size] for size in site.shape.split()], site
        assert taps[site.name].isfinite().all()


@NAMES
def test_an_edit_of_any_site_takes_effect_and_is_what_is_captured(name):
    network = randomised(CONFIGS[name])
    plain = outputs(network)
    for site in network.sites():
        taps = Taps(site.name, edit={site.name: lambda value: value.roll(1, dims=-1)})
        edited = outputs(network, taps)
        assert any(not torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, edited, strict=True)), site
        before = Taps(site.name)
        outputs(network, before)
        if site.name.split(".")[-1] not in ("forget_gate", "cell", "input_gate", "candidate", "output_gate"):  # which feed back
            torch.testing.assert_close(taps[site.name], before[site.name].roll(1, dims=-1), rtol=1e-5, atol=1e-6)


@NAMES
def test_an_edit_that_returns_what_it_gets_changes_nothing(name):
    network = randomised(CONFIGS[name])
    plain = outputs(network)
    edited = outputs(network, Taps(edit={site.name: lambda value: value for site in network.sites()}))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(plain, edited, strict=True))


@NAMES
def test_a_site_that_does_not_exist_is_an_error(name):
    with pytest.raises(ConfigError, match=r"'blocks.9.after' is no site of this network; model.sites\(\) lists them"):
        outputs(randomised(CONFIGS[name]), Taps("blocks.9.after"))


def test_padding_has_no_weight_in_any_pattern():
    for name in ("encoder", "encoder-decoder"):
        network, taps = randomised(CONFIGS[name]), Taps("*pattern")
        outputs(network, taps, padded(CONFIGS[name]))
        for site in taps:
            assert torch.allclose(taps[site].sum(-1), torch.ones(()), atol=1e-5)
            if not site.startswith("decoder.") or ".cross." in site:
                assert not taps[site][1, :, :, 6:].any(), site
                assert taps[site][1, :, :, :6].all(), site
