"""Matrices that no longer change: what is computed with them is what their weights say, to what their bits can hold."""

import copy
import os
import subprocess
import sys
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.errors import ConfigError, ModelError
from pellucid.core.precision import Holding
from pellucid.network import holding
from pellucid.network.adapters import LoRA, attach
from pellucid.network.families import FAMILIES
from pellucid.network.holding import hold, steady
from pellucid.network.layers import Linear
from pellucid.network.products import Dense, Int4, Int8, in_digits, packed, rounded_to_bytes
from pellucid.network.weights import save_network

SIZES = {
    "vocab_size": 300,
    "context_length": 64,
    "d_model": 64,
    "layers": 2,
    "heads": 2,
    "kv_heads": 2,
    "d_head": 32,
    "d_mlp": 128,
}


def network(family, **sizes):
    shape = SIZES | ({"decoder_layers": 2} if family == "t5" else {}) | sizes
    if family == "lstm":
        shape = {name: shape[name] for name in ("vocab_size", "context_length", "d_model", "layers")}
    return tiny.randomised(FAMILIES[family].new(**shape))


def drawn(*shape, scale=1.0, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found, expected):
    """Of the norm, relative."""
    return float(((found.double() - expected).norm() / expected.norm()).detach())


def coarse(weight, bits):
    """Weights rounded to so many bits, by the formulae."""
    if bits == 8:
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        return (weight / scale).round() * scale
    parts = weight.view(len(weight), -1, 32)
    low = parts.amin(-1, keepdim=True)
    scale = (parts.amax(-1, keepdim=True) - low) / 15
    return (((parts - low) / scale).round() * scale + low).view_as(weight)


def test_without_onednn_products_are_plain_and_few_bits_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())  # such a torch has no operators of it
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert isinstance(packed(drawn(8, 8).to(dtype), None), Dense)
    for precision in ("int8", "int4"):
        with pytest.raises(ConfigError, match=f"this torch has no oneDNN, which multiplies in {precision}; use bf16"):
            hold(network("llama"), Holding(precision=precision))


EXTREMES = """
import torch
from time import perf_counter
from pellucid.network.products import Dense, Int8
torch.set_num_threads(1)  # two would wait for one another where other work is under way
weight, x = torch.full((256, 768), 127.0), torch.full((16, 768), 8127.0)
weight[1::2], x[1::2] = -127, -8127
assert torch.allclose(Int8(weight, None)(x), x @ weight.T, rtol=1e-6)
for product in (Int8(weight, None), Dense(weight, None)):
    times = []
    for _ in range(30):
        begun = perf_counter()
        product(x)
        times.append(perf_counter() - begun)
    print(min(times))
"""


class TestProducts:
    @settings(max_examples=40)
    @given(
        inputs=st.integers(1, 300),
        rows=st.integers(1, 20),
        scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6]),
        seed=st.integers(0, 9),
    )
    def test_two_digits_hold_fourteen_bits_of_a_row(self, inputs, rows, scale, seed):
        x = drawn(rows, inputs, scale=scale, seed=seed)
        step, digits = in_digits(x)
        assert digits.max() < 128, "two larger ones times a byte may not fit 16 bits"
        high, low = digits.double().sub(64).chunk(2)
        error = (step.double() * (128 * high + low) - x.double()).abs()
        assert (error <= 0.51 * step.double()).all()
        assert (step.double() * 8_127 >= 0.999 * x.abs().amax(dim=1, keepdim=True).double()).all()

    def test_a_row_of_zeros_stays_one(self):
        assert torch.equal(Int8(drawn(16, 64), None)(torch.zeros(2, 64)), torch.zeros(2, 16))

    @settings(max_examples=25)
    @given(
        outputs=st.integers(1, 150),
        inputs=st.integers(1, 200),
        rows=st.integers(1, 33),
        biased=st.booleans(),
        seed=st.integers(0, 9),
    )
    def test_bytes_multiply_as_their_weights_do(self, outputs, inputs, rows, biased, seed):
        weight, x = drawn(outputs, inputs, scale=0.1, seed=seed), drawn(rows, inputs, seed=seed + 1)
        bias = drawn(outputs, seed=seed + 2) if biased else None
        whole, scale = rounded_to_bytes(weight)
        assert ((whole * scale - weight).abs() <= 0.501 * scale).all()
        expected = x.double() @ (whole.double() * scale.double()).T + (0 if bias is None else bias.double())
        found = Int8(weight, bias)(x)
        assert (found.double() - expected).abs().max() < 1e-4 * (1 + x.norm(dim=1).max())

    @pytest.mark.parametrize(("kind", "symmetric"), [("Q4_0", True), ("Q4_1", False)])
    def test_weights_of_a_file_with_four_bits_stay_what_they_are(self, kind, symmetric):
        """gguf's own quantisation is the judge."""
        kind = gguf.GGMLQuantizationType[kind]
        stored = gguf.quants.dequantize(gguf.quants.quantize(drawn(48, 96).numpy(), kind), kind)
        weight = torch.from_numpy(np.ascontiguousarray(stored))
        product = Int4(weight, None, group=32, symmetric=symmetric, dtype=torch.float32)
        assert error(product(torch.eye(96)).T, weight.double()) < 1e-3  # the file's scales are f16, and rounded

    @pytest.mark.parametrize("group", [32, 64, 128])
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_four_bits_are_as_far_off_as_their_steps(self, group, symmetric):
        weight = drawn(32, 256)
        found = Int4(weight, None, group=group, symmetric=symmetric, dtype=torch.float32)(torch.eye(256)).T
        parts = weight.view(32, -1, group)
        step = parts.abs().amax(-1) / 8 if symmetric else (parts.amax(-1) - parts.amin(-1)) / 15
        off = (found - weight).view(32, -1, group).abs().amax(-1)
        assert (off <= step * (1.001 if symmetric else 0.501)).all()  # a symmetric grid ends at 7 of 8 steps on one side
        assert off.max() > 0.2 * step.max()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_packed_is_plain(self, dtype):
        weight, bias, x = drawn(48, 80).to(dtype), drawn(48).to(dtype), drawn(3, 5, 80).to(dtype)
        found = packed(weight, bias)(x)
        assert found.dtype == dtype
        assert error(found, x.double() @ weight.double().T + bias.double()) < {4: 1e-6, 2: 5e-3}[dtype.itemsize]

    @pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE", "ALL"])
    def test_products_of_bytes_are_exact_and_fast_on_every_processor(self, isa):
        """oneDNN as it is on older processors; where it lacks a kernel it takes a hundred times as long."""
        done = subprocess.run(
            [sys.executable, "-c", EXTREMES], env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        bytes_seconds, plain_seconds = map(float, done.stdout.split())
        assert bytes_seconds < 30 * plain_seconds


class TestNetworks:
    @pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "gpt2", "t5", "lstm", "bag-of-words", "bert"])
    @pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
    def test_a_held_network_is_one_with_weights_of_so_many_bits(self, family, precision, monkeypatch):
        """With all else in fp32 what is left is far below what bf16 would round."""
        monkeypatch.setattr(holding, "usual_precision", lambda device: "fp32")
        made, judge, ids = network(family), network(family), torch.randint(300, (2, 20), generator=torch.manual_seed(0))
        more = {"decoder_ids": ids.flip(1)} if family == "t5" else {}
        if family == "lstm" and precision != "fp32":
            with pytest.raises(ConfigError, match=f"an LSTM cannot be held in {precision}; use bf16, f16 or fp32"):
                hold(made, Holding(precision=precision))
            return
        for part in judge.modules() if precision != "fp32" else ():
            if type(part) is Linear or part is judge.head:
                part.weight = torch.nn.Parameter(coarse(part.weight.data, 8 if part is judge.head else int(precision[3:])))
        with torch.inference_mode():
            expected = judge(ids, **more).logits.double()
            found = hold(made, Holding(precision=precision))(ids, **more).logits
            usual = error(judge.to(torch.bfloat16)(ids, **more).logits, expected)
        assert error(found, expected) < (1e-5 if precision == "fp32" else usual / 4)
        assert made.held.precision == precision

    @pytest.mark.parametrize("precision", ["bf16", "f16"])
    def test_half_the_bits_are_computed_as_plain_weights_of_that_type(self, precision):
        made, ids = network("qwen3"), torch.arange(30)[None]
        exact = made(ids).logits.double()
        plain = error(copy.deepcopy(made).to(holding.TYPES[precision])(ids).logits, exact)
        found = hold(made, Holding(precision=precision))(ids).logits
        assert found.dtype == holding.TYPES[precision]
        assert error(found, exact) < 1.5 * plain

    def test_int4_has_groups_and_zero_points(self):
        ids = torch.arange(30)[None]
        errors = {}
        for group in (32, 64, 128):
            for symmetric in (False, True):
                made = network("llama", d_model=128, heads=4, kv_heads=4, d_mlp=256)
                plain = made(ids).logits.double()
                found = hold(made, Holding(precision="int4", group=group, symmetric=symmetric))(ids).logits
                errors[group, symmetric] = error(found, plain)
        assert errors[32, False] < errors[64, False] < errors[128, False]
        assert len(set(errors.values())) == 6

    def test_matrices_that_read_the_same_are_one(self):
        made = hold(network("llama"), Holding(precision="bf16"))
        block = made.blocks[0]
        assert block.attn.q.held.outputs == 3 * 64
        assert block.attn.k.held is None
        assert block.mlp.gate.held.outputs == 2 * 128
        assert block.mlp.up.held is None
        assert made.held.nbytes == 2 * (2 * (4 * 64 * 64 + 3 * 64 * 128) + 300 * 64)

    def test_the_embedding_of_a_tied_head_is_kept(self):
        made = network("gpt2", tied=True)
        before = made.embedding.weight.clone()
        hold(made, Holding(precision="int8"))
        assert torch.equal(made.embedding.weight, before.to(made.dtype))

    @pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
    def test_the_numbers_of_rows_that_are_steady_are_so_for_any_rows(self, precision):
        made = hold(network("llama"), Holding(precision=precision))
        assert made.held.sizes == steady(made)
        assert made.held.sizes[-1] == 16
        hidden = drawn(16, 1, 64, seed=3).to(made.dtype)
        with torch.inference_mode():
            whole = made.scorer(hidden)
            assert all(torch.equal(made.scorer(hidden[:rows]), whole[:rows]) for rows in made.held.sizes)

    def test_an_adapter_is_merged_first(self):
        made = attach(network("llama"), LoRA(rank=4), seed=0)
        for name, weight in made.named_parameters():
            if "lora_b" in name:
                weight.data = drawn(*weight.shape, scale=0.1)
        ids = torch.arange(20)[None]
        with torch.inference_mode():
            plain = made(ids).logits.double()
            assert error(hold(made, Holding(precision="fp32"))(ids).logits, plain) < 1e-5

    def test_it_cannot_be_saved_or_held_again(self, tmp_path):
        made = hold(network("llama"), Holding(precision="int8"))
        with pytest.raises(ModelError, match="a model loaded with precision 'int8' cannot be saved; load it without one"):
            save_network(made, tmp_path)
        with pytest.raises(
            ModelError, match="the network's matrices are held already; load it again to hold them in another way"
        ):
            hold(made, Holding(precision="bf16"))

    def test_a_group_that_does_not_fit_is_refused(self):
        with pytest.raises(
            ConfigError, match="a matrix with 64 inputs has no whole groups of 128; use a smaller group, or int8"
        ):
            hold(network("llama"), Holding(precision="int4", group=128))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int5"}, "precision must be one of auto, fp32, bf16, f16, int8, int4, not 'int5'"),
        ({"precision": "int4", "group": 48}, "group must be one of 32, 64, 128, not 48"),
        ({"precision": "int8", "group": 64}, "group and symmetric have no effect on int8; leave them out, or use int4"),
        ({"symmetric": True}, "group and symmetric have no effect on auto; leave them out, or use int4"),
    ],
)
def test_settings_without_sense_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        Holding(**options)
    assert str(caught.value) == message
