"""Reading and editing, in every architecture: reading changes nothing, every site is reached, every edit takes effect."""

import subprocess
import sys
from contextlib import suppress

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
        shown = site.name.endswith("pattern")  # which may be changed where the mask lets a query look
        edit = (lambda value: 0.5 * value) if shown else (lambda value: value.roll(1, dims=-1))
        taps = Taps(site.name, edit={site.name: edit})
        edited = outputs(network, taps)
        assert any(not torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, edited, strict=True)), site
        before = Taps(site.name)
        outputs(network, before)
        if site.name.split(".")[-1] not in ("forget_gate", "cell", "input_gate", "candidate", "output_gate"):  # which feed back
            torch.testing.assert_close(taps[site.name], edit(before[site.name]), rtol=1e-5, atol=1e-6)


@NAMES
def test_an_edit_that_returns_what_it_gets_changes_nothing(name):
    network = randomised(CONFIGS[name])
    plain = outputs(network)
    edited = outputs(network, Taps(edit={site.name: lambda value: value for site in network.sites()}))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(plain, edited, strict=True))


@NAMES
def test_a_site_that_does_not_exist_is_an_error(name):
    network = randomised(CONFIGS[name])
    for wanted in (Taps("blocks.9.after"), Taps(edit={"blocks.9.after": 0})):
        near = "'(encoder|decoder).blocks.[012].after'" if name == "encoder-decoder" else "'blocks.[01].after'"
        with pytest.raises(ConfigError, match=rf"'blocks.9.after' is no site of this network; did you mean {near}\?"):
            outputs(network, wanted)
        with pytest.raises(ConfigError, match="is no site of this network"):
            network.edited(wanted)
    with pytest.raises(ConfigError, match=r"'' is no site of this network; model.sites\(\) lists them"):
        outputs(network, Taps(""))


@NAMES
def test_an_edited_network_is_the_network_under_those_taps(name):
    network = randomised(CONFIGS[name])
    plain = outputs(network)
    for site in network.sites():
        edit = {site.name: lambda value: 0.5 * value.roll(1, dims=-1)}
        found, expected = outputs(network.edited(Taps(edit=edit))), outputs(network, Taps(edit=edit))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), site
    assert all(torch.equal(a, b) for a, b in zip(outputs(network), plain, strict=True)), "the network itself was changed"


@NAMES
def test_edits_come_one_after_the_other(name):
    network = randomised(CONFIGS[name])
    for site in network.sites():
        twice = network.edited(Taps(edit={site.name: lambda value: value + 1}))
        twice = twice.edited(Taps(edit={site.name: lambda value: value * 3}))
        last = {site.name: lambda value: value - 2}
        whole = Taps(edit={site.name: lambda value: (value + 1) * 3 - 2})
        found, expected = outputs(twice, Taps(edit=last)), outputs(network, whole)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), site


@NAMES
def test_a_number_or_a_tensor_takes_the_place_of_what_passes(name):
    network = randomised(CONFIGS[name])
    for site in network.sites():
        passed = Taps(site.name)
        outputs(network, passed)
        if site.name.endswith("pattern"):
            continue  # see below
        for given in (0, torch.randn(passed[site.name].shape[-1], generator=torch.Generator().manual_seed(0))):
            taps = Taps(site.name, edit={site.name: given})
            outputs(network, taps)
            assert torch.equal(taps[site.name], torch.as_tensor(given).float().expand(passed[site.name].shape)), site


@NAMES
def test_recording_sees_what_taps_see_and_ends(name):
    network = randomised(CONFIGS[name])
    taps, inner, outer = Taps("*"), Taps("*"), Taps("*")
    doubled = network.edited(Taps(edit={"logits": lambda value: 2 * value} if network.head is not None else {}))
    outputs(doubled, taps)
    with doubled.recording(outer):
        outputs(doubled)
        with suppress(KeyboardInterrupt), doubled.recording(inner):
            outputs(doubled)
            raise KeyboardInterrupt
    assert [*taps] == [*outer] == [*inner]
    assert all(torch.equal(taps[site], outer[site]) and torch.equal(taps[site], inner[site]) for site in taps)
    with network.recording(after := Taps("*")):
        pass
    outputs(network)
    assert not len(after)
    one, other = Taps("*"), Taps("*")
    first, second = network.recording(one), network.recording(other)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as two threads may do
    outputs(network)
    second.__exit__(None, None, None)
    assert not len(one)
    assert [*other] == [site.name for site in network.sites()]
    assert not network.standing


@NAMES
def test_what_was_recorded_without_gradients_can_be_read_afterwards(name):
    network, taps = randomised(CONFIGS[name]).requires_grad_(True), Taps("*")
    with network.recording(taps), torch.inference_mode():
        outputs(network)
    assert all(taps[site].isfinite().all() for site in taps)
    assert not any(taps[site].requires_grad for site in taps)


def test_an_edit_of_a_pattern_does_not_show_what_the_mask_hides():
    network = randomised(CONFIGS["decoder"])
    taps = Taps("blocks.0.attn.pattern", edit={"blocks.0.attn.pattern": 0.5})
    outputs(network, taps)
    assert torch.equal(taps["blocks.0.attn.pattern"], torch.full((9, 9), 0.5).tril().expand(2, 4, 9, 9))


def test_an_edit_is_a_function_a_number_or_a_tensor():
    """In a process of its own, where nothing else checks types."""
    words = "from pellucid.network.taps import Taps; Taps(edit={'hidden': None})"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert done.stderr.endswith(
        "ConfigError: the edit of 'hidden' is NoneType; give a function of its value, a number or a tensor\n"
    )


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (torch.zeros(3, 5), r"has the shape \[3, 5\], and what passes there \[2, 9, 24\]"),
        (lambda value: value[:, :1], r"has the shape \[2, 1, 24\], and what passes there \[2, 9, 24\]"),
        (lambda value: value.mT, r"has the shape \[2, 24, 9\], and what passes there \[2, 9, 24\]"),
        (lambda value: None, "returned NoneType, not a tensor; return the new value"),
    ],
)
def test_an_edit_of_another_shape_is_an_error(edit, said):
    for name in ("decoder", "lstm"):
        site = "blocks.0.after"
        with torch.no_grad(), pytest.raises(ConfigError, match=f"the edit of '{site}' {said}"):
            outputs(randomised(CONFIGS[name]), Taps(edit={site: edit}))


def test_padding_has_no_weight_in_any_pattern():
    for name in ("encoder", "encoder-decoder"):
        network, taps = randomised(CONFIGS[name]), Taps("*pattern")
        outputs(network, taps, padded(CONFIGS[name]))
        for site in taps:
            assert torch.allclose(taps[site].sum(-1), torch.ones(()), atol=1e-5)
            if not site.startswith("decoder.") or ".cross." in site:
                assert not taps[site][1, :, :, 6:].any(), site
                assert taps[site][1, :, :, :6].all(), site
