"""Checkpoints are whole, finite, kept as promised, open in transformers, and never believed when a bit has flipped."""

import json
import math

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pellucid.core.errors import CorruptionError, DivergenceError, PellucidError, RunError
from pellucid.core.run import RunFolder
from pellucid.network.build import build
from pellucid.text.tokenizer import Tokenizer
from pellucid.training import checkpoint
from pellucid.training.checkpoint import Position, WholeModel
from pellucid.training.loop import TrainState
from pellucid.training.optimizers import Optimizers
from pellucid.training.recipe import Optimizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_chars(tiny.DOCUMENTS)


@pytest.fixture
def save(tmp_path, tokenizer):
    """Write checkpoints of a tiny network that has learnt a little."""
    network = build(tiny.config(tokenizer.vocab_size), seed=0)
    optimizers = Optimizers(network, Optimizer())
    for weight in network.parameters():
        weight.grad = torch.randn_like(weight)
    optimizers.step(1.0)
    run = RunFolder(tmp_path / "run")

    def call(step, loss=None):
        state = TrainState(network=network, optimizers=optimizers)
        return checkpoint.save(run, state, WholeModel(tokenizer), Position(step=step, seconds=0.0, validation_loss=loss))

    call.run, call.network, call.optimizers = run, network, optimizers
    return call


def steps(run):
    return [checkpoint.position(folder).step for folder in checkpoint.all_whole(run)]


def test_what_was_saved_is_loaded_bit_for_bit(save, tokenizer):
    folder = save(7, 1.5)
    other = build(tiny.config(tokenizer.vocab_size), seed=9)
    optimizers = Optimizers(other, Optimizer())
    state = TrainState(network=other, optimizers=optimizers)
    assert checkpoint.load(folder, state, WholeModel(tokenizer)) == Position(step=7, seconds=0.0, validation_loss=1.5)
    for name, weight in save.network.named_parameters():
        assert torch.equal(other.get_parameter(name), weight), name
    assert optimizers.state().keys() == save.optimizers.state().keys()
    assert all(torch.equal(value, optimizers.state()[key]) for key, value in save.optimizers.state().items())


def test_a_checkpoint_is_a_model_folder_that_transformers_opens(save, tokenizer):
    folder = save(3)
    ids = AutoTokenizer.from_pretrained(folder)("Alice was")["input_ids"]
    assert ids == tokenizer.encode("Alice was")
    theirs = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits
    assert (theirs - save.network(torch.tensor([ids])).logits).abs().max() < 1e-4


def test_it_holds_safetensors_and_json_and_nothing_that_runs(save):
    names = {path.name for path in save(3).iterdir()}
    assert names == {
        "config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "position.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_never_written(save, bad):
    save(1)
    with torch.no_grad():
        save.network.get_parameter("blocks.0.mlp.up.weight")[3, 4] = bad
    with pytest.raises(DivergenceError) as caught:
        save(2)
    expected = "step 2: blocks.0.mlp.up.weight holds values that are not finite, so no checkpoint was written"
    assert str(caught.value) == expected
    assert [path.name for path in save.run.checkpoints.iterdir()] == ["step-00000001"]


def test_the_newest_and_the_best_are_kept(save):
    for step, loss in enumerate([5.0, 2.0, 4.0, 3.0, None, 3.5], 1):
        save(step, loss)
        checkpoint.prune(save.run, 2)
    assert steps(save.run) == [2, 5, 6]
    assert checkpoint.position(checkpoint.best(save.run)).step == 2
    assert checkpoint.position(checkpoint.latest(save.run)).step == 6
    assert sorted(path.name for path in save.run.checkpoints.iterdir()) == ["step-00000002", "step-00000005", "step-00000006"]


def test_of_two_equals_the_newer_is_the_best(save):
    for step, loss in ((1, 2.0), (2, 1.0), (3, 1.0)):
        save(step, loss)
    assert checkpoint.position(checkpoint.best(save.run)).step == 3


def test_a_loss_that_is_no_number_is_never_the_best(save):
    for step, loss in ((1, math.nan), (2, 2.0), (3, 3.0), (4, math.nan)):
        save(step, loss)
    assert checkpoint.position(checkpoint.best(save.run)).step == 2


def test_without_evaluations_there_is_no_best(save):
    save(1)
    assert checkpoint.best(save.run) is None


def test_a_checkpoint_that_was_never_finished_does_not_count(save):
    folder = save(1)
    half = save.run.checkpoints / ".step-00000002.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    unsealed = save.run.checkpoints / "step-00000003"
    unsealed.mkdir()
    assert checkpoint.all_whole(save.run) == [folder]
    assert checkpoint.latest(save.run) == folder
    save(2)  # what a kill left is in nobody's way
    assert steps(save.run) == [1, 2]


def test_no_checkpoint_at_all_says_what_to_do(tmp_path):
    run = RunFolder(tmp_path / "run")
    with pytest.raises(RunError) as caught:
        checkpoint.latest(run)
    assert str(caught.value) == f"{run.path} has no finished checkpoint to resume from; start it anew with --force"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "position.json", "config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_flipped_byte_in_any_file_is_found_and_the_file_named(save, tokenizer, name, place):
    folder = save(5)
    path = folder / name
    data = bytearray(path.read_bytes())
    at = place if place <= 0 else int(len(data) * place)
    data[at] ^= 0x10
    path.write_bytes(data)
    network = build(tiny.config(tokenizer.vocab_size), seed=9)
    with pytest.raises(CorruptionError) as caught:
        checkpoint.load(folder, TrainState(network=network, optimizers=Optimizers(network, Optimizer())), WholeModel(tokenizer))
    assert (
        str(caught.value) == f"{path} is damaged (its SHA-256 is not the one in manifest.json); restore it, or delete {folder}"
    )


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"step": 1}', '{"step": 1, "seconds": 0, "validation_loss": null, "more": 1}', "7"]
)
def test_a_position_that_makes_no_sense_is_an_error_and_no_crash(save, content):
    folder = save(5)
    (folder / "position.json").write_text(content)
    with pytest.raises(PellucidError, match=r"position\.json"):
        checkpoint.position(folder)


def test_a_resume_from_a_damaged_checkpoint_names_the_file(tmp_path):
    run = tiny.pretrain(tmp_path / "run")
    path = run.path / "checkpoints/step-00000004/model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError) as caught:
        tiny.pretrain(run.path, resume=True)
    assert (
        str(caught.value)
        == f"{path} is damaged (its SHA-256 is not the one in manifest.json); restore it, or delete {path.parent}"
    )


def test_after_the_damaged_one_is_deleted_as_told_the_run_goes_on_to_the_same_end(tmp_path):
    import shutil

    changes = {"training": {"checkpoint_every": 2}}
    run = tiny.pretrain(tmp_path / "run", **changes)
    expected = (run.path / "model/model.safetensors").read_bytes()
    shutil.rmtree(run.path / "checkpoints/step-00000004")
    tiny.pretrain(run.path, resume=True, **changes)
    assert (run.path / "model/model.safetensors").read_bytes() == expected
    assert json.loads((run.path / "checkpoints/step-00000004/position.json").read_text())["step"] == 4
