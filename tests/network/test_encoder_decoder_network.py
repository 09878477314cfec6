"""An encoder-decoder: word by word equals in one pass, and padding beside a text changes nothing."""

import pytest
import torch
from tiny import randomised

from pellucid.network.attention import Seen
from pellucid.network.build import outline
from pellucid.network.families import FAMILIES
from pellucid.network.masks import Mask

SMALL = FAMILIES["t5"].new(
    vocab_size=50, context_length=32, d_model=24, layers=2, decoder_layers=3, heads=4, kv_heads=4, d_head=6, d_mlp=40,
    relative_buckets=8, relative_distance=10, tied=False,
)  # fmt: skip


class Kept:
    """One layer's keys and values, put one behind the other."""

    def __init__(self):
        self.k = self.v = None

    def extend(self, k, v, mask):
        self.k = k if self.k is None else torch.cat((self.k, k), dim=2)
        self.v = v if self.v is None else torch.cat((self.v, v), dim=2)
        return [Seen(slice(None), self.k, self.v, mask)]


def some_ids(batch, seq, seed=0):
    return torch.randint(0, 50, (batch, seq), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pieces", [[15], [1] * 15, [6, 1, 1, 7], [14, 1]])
def test_decoding_in_pieces_equals_decoding_in_one_pass(pieces):
    network, text, later = randomised(SMALL), some_ids(2, 11), some_ids(2, 15, seed=1)
    present = torch.arange(11) < torch.tensor([[11], [4]])
    whole = network.encode(text, Mask.for_bidirectional(present), decoder_ids=later)

    memory, cache = network.read(text, Mask.for_bidirectional(present)), [Kept() for _ in range(3)]
    found, done = [], 0
    for piece in later.split(pieces, dim=1):
        positions = torch.arange(done, done + piece.shape[1]).expand(2, -1)
        done += piece.shape[1]
        found.append(network.decode(piece, memory, Mask.for_cache(positions, done), cache=cache))
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_a_text_beside_a_longer_one_is_read_as_if_it_were_alone():
    network, text, later = randomised(SMALL), some_ids(3, 11), some_ids(3, 6, seed=1)
    lengths = [11, 4, 1]
    present = torch.arange(11) < torch.tensor(lengths)[:, None]
    together = network(text, Mask.for_bidirectional(present), decoder_ids=later).logits
    for row, length in enumerate(lengths):
        alone = network(text[row : row + 1, :length], decoder_ids=later[row : row + 1]).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-4)


def test_packed_texts_equal_texts_alone():
    """Relative positions are counted inside each document."""
    network, text = randomised(SMALL), some_ids(1, 17)
    documents = torch.tensor([[0] * 6 + [1] * 11])
    packed = network.read(text, Mask.for_documents(documents, causal=False)).hidden
    alone = torch.cat([network.read(part).hidden for part in text.split([6, 11], dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_the_meaning_of_a_pattern_is_that_of_the_configuration():
    meanings = {}
    for family, more in (("t5", {"decoder_layers": 1}), ("qwen3", {})):
        sizes = {"vocab_size": 11, "context_length": 8, "d_model": 8, "layers": 1}
        sites = outline(FAMILIES[family].new(**sizes, **more)).sites()
        meanings |= {site.name: site.meaning for site in sites if site.name.endswith("pattern")}
    assert meanings == {
        "encoder.blocks.0.attn.pattern": "attention weights, softmax(q k^T + a bias for each distance)",
        "decoder.blocks.0.attn.pattern": "attention weights, softmax(q k^T + a bias for each distance)",
        "decoder.blocks.0.cross.pattern": "attention weights, softmax(q k^T)",
        "blocks.0.attn.pattern": "attention weights, softmax(q k^T / sqrt(d_head))",
    }
