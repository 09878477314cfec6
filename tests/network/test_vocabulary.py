"""Tokens that a tokenizer was given later: the old ones score as before, new ones begin as the mean of all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SMALL, randomised

from pellucid.network.families import FAMILIES
from pellucid.network.vocabulary import with_vocabulary

SIZES = {"vocab_size": 40, "context_length": 32, "d_model": 24, "layers": 2}
HEADS = {"heads": 4, "kv_heads": 4, "d_head": 6, "d_mlp": 40}
CONFIGS = {
    "untied": SMALL,
    "gpt2, tied": FAMILIES["gpt2"].new(**SIZES, **HEADS),
    "bert": FAMILIES["bert"].new(**SIZES, **HEADS),
    "lstm": FAMILIES["lstm"].new(**SIZES),
    "bag-of-words": FAMILIES["bag-of-words"].new(**SIZES),
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_old_tokens_score_as_before_and_new_ones_as_the_average(config):
    before, grown = randomised(config), with_vocabulary(randomised(config), config.vocab_size + 3)
    old, new = before(IDS), grown(IDS)
    assert torch.equal(new.hidden, old.hidden)
    assert new.logits.shape[-1] == config.vocab_size + 3
    assert (new.logits[..., :-3] - old.logits).abs().max() < 1e-5
    assert (new.logits[..., -3:] - old.logits.mean(dim=-1, keepdim=True)).abs().max() < 1e-4
    mean = before.embedding.weight.mean(dim=0)
    assert all((grown.embedding.weight[-3 + at] - mean).abs().max() < 1e-6 for at in range(3))


@given(name=st.sampled_from(sorted(CONFIGS)), size=st.integers(1, 60))
def test_a_vocabulary_grows_or_stays(name, size):
    config = CONFIGS[name]
    network = randomised(config)
    found = with_vocabulary(network, size)
    assert found.config.vocab_size == max(size, config.vocab_size)
    assert (found is network) == (size <= config.vocab_size)
    tied = found.head is not None and found.head.weight is found.embedding.weight
    assert tied == config.tied


def test_the_type_and_whether_it_learns_are_kept():
    network = randomised().to(torch.bfloat16).train()
    network.compute_in(torch.float32, recompute=True)
    grown = with_vocabulary(network, 60)
    assert (grown.embedding.weight.dtype, grown.compute_dtype, grown.recompute, grown.training) == (
        torch.bfloat16,
        torch.float32,
        True,
        True,
    )
    assert grown.blocks[0].attn.q.weight.data_ptr() == network.blocks[0].attn.q.weight.data_ptr()  # shared, not copied
