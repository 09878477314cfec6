"""Attention against the formula of the paper, in float64, written out with loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.network import attention
from pellucid.network.attention import attend, pattern
from pellucid.network.masks import Mask


def reference(q, k, v, allowed):
    """softmax(q k^T / sqrt(d)) v for every batch, head and query, one by one."""
    mixed = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            group = h * k.shape[1] // q.shape[1]  # heads share keys and values in groups
            for t in range(q.shape[2]):
                keys = [s for s in range(k.shape[2]) if allowed[b][t][s]]
                scores = [float(q[b, h, t] @ k[b, group, s]) / math.sqrt(q.shape[3]) for s in keys]
                weights = [math.exp(score - max(scores)) for score in scores]
                for s, weight in zip(keys, weights, strict=True):
                    mixed[b, h, t] += weight / sum(weights) * v[b, group, s]
    return mixed


def tensors(batch, heads, kv_heads, seq, d_head, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, seq, d_head), (batch, kv_heads, seq, d_head), (batch, kv_heads, seq, d_head)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def masks(seq):
    documents = torch.tensor([[0] * (seq // 2) + [1] * (seq - seq // 2)] * 2)
    return {
        "causal": Mask.for_causal(seq),
        "documents": Mask.for_documents(documents),
        "prefix": Mask.for_prefix(torch.tensor([1, seq]), seq),
        "bidirectional": Mask.for_bidirectional(torch.tensor([[True] * seq, [True] + [False] * (seq - 1)])),
    }


def allowed(kind, seq):
    """What each mask means, said independently of how it is built."""
    half = seq // 2
    rules = {
        "causal": lambda b, t, s: s <= t,
        "documents": lambda b, t, s: s <= t and (s < half) == (t < half),
        "prefix": lambda b, t, s: s <= t or s < [1, seq][b],
        "bidirectional": lambda b, t, s: b == 0 or s == 0,
    }
    return [[[rules[kind](b, t, s) for s in range(seq)] for t in range(seq)] for b in range(2)]


@pytest.fixture(scope="module", autouse=True)
def blocks_of_three_queries():
    """So that short sequences go through several blocks, the last one not full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "ROWS", 3)
        yield


@pytest.mark.parametrize("kind", ["causal", "documents", "prefix", "bidirectional"])
@settings(deadline=None, max_examples=8)
@given(
    kv_heads=st.integers(1, 2), group=st.integers(1, 3), seq=st.integers(2, 7), half=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_attention_is_the_formula_under_every_mask(kind, kv_heads, group, seq, half, seed):
    q, k, v = tensors(2, kv_heads * group, kv_heads, seq, 2 * half, seed)
    expected = reference(q, k, v, allowed(kind, seq))
    mask = masks(seq)[kind]
    torch.testing.assert_close(attend(q, k, v, mask), expected, rtol=1e-9, atol=1e-9)
    # the written-out pattern, used when it is edited, is the same attention (it is computed in fp32)
    torch.testing.assert_close(attend(q, k, v, mask, edit=lambda weights: weights), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pattern(q, k, mask).sum(-1), torch.ones(2, kv_heads * group, seq), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "documents"])
def test_gradients_are_those_of_the_formula(kind):
    q, k, v = (x.requires_grad_() for x in tensors(2, 4, 2, 5, 4))
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, masks(5)[kind]), (q, k, v))


def test_positions_restart_in_every_packed_document():
    mask = Mask.for_documents(torch.tensor([[3, 3, 3, 4, 4, 9]]))
    assert mask.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
