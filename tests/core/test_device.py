"""What is left to `auto` follows the machine; what is asked for is done, or is an error."""

import pytest
import torch

from pellucid.core import device
from pellucid.core.errors import ConfigError


@pytest.fixture
def rates(monkeypatch):
    """A machine whose bf16 matrix products are some times as fast as its fp32 ones."""

    def set_ratio(ratio: float) -> None:
        monkeypatch.setattr(device, "matmul_rate", lambda dtype, **_: 1e9 * (ratio if dtype == torch.bfloat16 else 1.0))

    return set_ratio


@pytest.mark.parametrize(("ratio", "precision"), [(3.3, "bf16"), (1.31, "bf16"), (1.29, "fp32"), (0.1, "fp32")])
def test_bf16_is_chosen_where_it_pays(rates, ratio, precision):
    rates(ratio)
    chosen = device.choose(device="cpu")
    assert (chosen.precision, chosen.dtype) == (precision, device.DTYPES[precision])


@pytest.mark.parametrize(("ratio", "precision"), [(3.3, "fp32"), (0.1, "bf16")])
def test_a_precision_that_is_asked_for_is_used_whatever_the_probe_says(rates, ratio, precision):
    rates(ratio)
    assert device.choose(device="cpu", precision=precision).precision == precision


def test_threads_are_those_asked_for_and_torch_uses_them(monkeypatch):
    assert device.choose(device="cpu", precision="fp32", threads=2).threads == 2
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(device, "cpu_cores", lambda: 1)
    assert device.choose(device="cpu", precision="fp32").threads == 1
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there_is_an_error(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        device.choose(device=name)
    expected = f"device {name!r} was asked for, but torch {torch.__version__} sees no GPU; use --training.device cpu"
    assert str(caught.value) == expected


def test_an_unknown_device_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"^device 'gpu' is not known; choose auto, cpu or cuda$"):
        device.choose(device="gpu")


def test_auto_takes_the_cpu_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.choose(precision="fp32").device == "cpu"


def test_the_probe_measures_in_the_time_it_is_given():
    import time

    begun = time.perf_counter()
    rate = device.matmul_rate(torch.float32, size=128, seconds=0.02)
    assert time.perf_counter() - begun < 5
    assert 1e7 < rate < 1e14


class TestUsualPrecision:
    def test_what_was_found_once_stays(self, cache, monkeypatch):
        """A probe that came out otherwise another time would write other text for the same seed."""
        answers = iter([True, False])
        monkeypatch.setattr(device, "bf16_pays", lambda _: next(answers))
        assert [device.usual_precision("cpu") for _ in range(2)] == ["bf16", "bf16"]
        (cache / "precision.json").unlink()
        assert device.usual_precision("cpu") == "fp32"

    @pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', "\x00"])
    def test_a_damaged_file_is_written_anew(self, cache, monkeypatch, content):
        (cache / "precision.json").write_text(content)
        monkeypatch.setattr(device, "bf16_pays", lambda _: True)
        assert device.usual_precision("cpu") == "bf16"
        monkeypatch.setattr(device, "bf16_pays", lambda _: False)
        assert device.usual_precision("cpu") == "bf16"

    def test_a_folder_that_cannot_be_written_to_costs_a_probe(self, cache, monkeypatch):
        monkeypatch.setenv("PELLUCID_CACHE", str(cache / "file" / "below"))
        (cache / "file").write_text("")
        monkeypatch.setattr(device, "bf16_pays", lambda _: True)
        assert device.usual_precision("cpu") == "bf16"
