"""Dropout by random bits: the share, the scale and the independence that torch's own has."""

import pytest
import torch

from pellucid.network.layers import dropped

MANY = 2**20


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_values_are_dropped_as_asked_and_the_mean_stays(share, dtype):
    torch.manual_seed(0)
    x = torch.ones(MANY, dtype=dtype)
    found = dropped(x, share, True)
    error = 5 * (share * (1 - share) / MANY) ** 0.5  # five standard deviations
    assert (found == 0).float().mean().item() == pytest.approx(share, abs=error + 2**-17)
    assert found.max().item() == pytest.approx(1 / (1 - share), rel=1e-3 if dtype == torch.float32 else 1e-2)
    assert len(found.unique()) == 2


def test_values_drop_by_themselves_whatever_their_neighbours_do():
    """Four values share a draw of 64 bits: at no distance does one say anything of another."""
    torch.manual_seed(1)
    kept = (dropped(torch.ones(MANY), 0.5, True) > 0).float() - 0.5
    for distance in (1, 2, 3, 4, 5, 624):
        correlation = 4 * (kept[distance:] * kept[:-distance]).mean().item()
        assert abs(correlation) < 5 / MANY**0.5


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 3), (0, 4)])
def test_a_seed_says_what_is_dropped_and_the_gradient_goes_where_values_were_kept(shape):
    x = torch.randn(shape, requires_grad=True)
    torch.manual_seed(3)
    found = dropped(x, 0.4, True)
    torch.manual_seed(3)
    assert torch.equal(found, dropped(x, 0.4, True))
    found.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), found.detach())


def test_nothing_is_dropped_by_a_network_at_work_or_at_a_share_of_none():
    x = torch.randn(9)
    assert dropped(x, 0.9, False) is x
    assert dropped(x, 0.0, True) is x


def test_a_share_of_nearly_all_stays_finite():
    assert torch.isfinite(dropped(torch.ones(MANY), 1 - 1e-9, True)).all()
