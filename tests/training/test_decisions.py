"""What a recipe leaves open is decided with numbers, before anything is allocated or written."""

import dataclasses

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.device import Compute
from pellucid.core.errors import ConfigError, MissingExtraError, ResourceError
from pellucid.core.progress import Silent
from pellucid.network.build import block_parameters, build, parameters
from pellucid.text.batches import Batch
from pellucid.training import decisions, job, memory
from pellucid.training.decisions import cadence, decide, evaluation_steps, steps_in
from pellucid.training.memory import choose_micro_batch, estimate
from pellucid.training.objectives import TokenPrediction

CPU = Compute(device="cpu", precision="fp32", threads=1)


@pytest.fixture(scope="module")
def open_job(tmp_path_factory):
    """A job before decisions, its sections changed at will; the tokens are made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELLUCID_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = tiny.job()

    def change(**changes):
        recipe = made.recipe.override(changes)
        return dataclasses.replace(made, recipe=recipe)

    return change


def decided(job, tmp_path):
    return decide(job, tmp_path / "run", Silent()).recipe.training


class TestCadence:
    @settings(max_examples=200)
    @given(
        steps=st.integers(1, 100_000),
        batch_size=st.integers(1, 64),
        windows=st.integers(1, 512) | st.just("all"),
        held_out=st.integers(1, 10**6),
    )
    def test_evaluations_are_at_most_twenty_and_take_at_most_a_tenth_of_the_time(
        self, open_job, steps, batch_size, windows, held_out
    ):
        job = open_job(training={"batch_size": batch_size, "evaluate_windows": windows})
        view = type("View", (), {"tokens": held_out})
        job = dataclasses.replace(job, prepared=dataclasses.replace(job.prepared, validation=view))
        every = cadence(job, steps)
        assert 1 <= every <= steps
        evaluations = -(-steps // every)  # the last step is always evaluated
        assert evaluations <= 20
        read = min(-(-held_out // 16), 10**9 if windows == "all" else windows)
        assert evaluation_steps(job) == pytest.approx(read / batch_size / 3)  # forward passes, in steps
        assert evaluations == 1 or evaluations * evaluation_steps(job) <= 0.1 * steps + 1e-9

    def test_without_a_wish_checkpoints_come_with_evaluations(self, open_job, tmp_path):
        settled = decided(open_job(training={"steps": 400, "evaluate_windows": 1}), tmp_path)
        assert (settled.evaluate_every, settled.checkpoint_every) == (20, 20)

    def test_wishes_are_kept(self, open_job, tmp_path):
        wishes = {"steps": 400, "evaluate_every": 7, "checkpoint_every": 3, "micro_batch": 2, "compile": "off"}
        settled = decided(open_job(training=wishes), tmp_path)
        assert {name: getattr(settled, name) for name in wishes} == wishes

    def test_nothing_is_left_open(self, open_job, tmp_path):
        settled = decided(open_job(training={"steps": 4}), tmp_path)
        assert "auto" not in settled.model_dump().values()


class TestLength:
    @pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (64, 1), (65, 2), (6400, 100)])
    def test_tokens_become_the_steps_that_see_them(self, open_job, tmp_path, tokens, steps):
        assert decided(open_job(training={"tokens": tokens}), tmp_path).steps == steps  # 4 sequences of 16

    @pytest.mark.parametrize("minutes", [0.5, 3.0, None])
    def test_minutes_become_the_steps_that_fit_with_their_evaluations(self, open_job, tmp_path, monkeypatch, minutes):
        job, per_step = open_job(training={} if minutes is None else {"minutes": minutes}), 0.05
        monkeypatch.setattr(decisions, "seconds_per_step", lambda job, budget: per_step)
        monkeypatch.setattr(decisions, "compiler", lambda: None)
        settled = decided(job, tmp_path)
        seconds = 60 * (minutes or 10)
        evaluations = -(-settled.steps // settled.evaluate_every)
        spent = per_step * (settled.steps + evaluations * evaluation_steps(job))
        assert 0.97 * seconds <= spent <= 1.01 * seconds
        assert settled.minutes is None

    def test_a_moment_still_makes_one_step(self, open_job, monkeypatch):
        monkeypatch.setattr(decisions, "seconds_per_step", lambda job, budget: 1000.0)
        assert steps_in(0.6, open_job()) == 1

    def test_the_probe_leaves_no_trace_in_what_is_trained(self, tmp_path, monkeypatch):
        """A run of two minutes, of which the probe says that it has three steps, is the run of three steps."""
        monkeypatch.setattr(decisions, "steps_in", lambda seconds, job: decisions.seconds_per_step(job, 0.01) and 3)
        probed = tiny.pretrain(tmp_path / "probed", steps=None, training={"minutes": 2.0})
        monkeypatch.undo()
        plain = tiny.pretrain(tmp_path / "plain", steps=3)
        weights = [(run.path / "model/model.safetensors").read_bytes() for run in (probed, plain)]
        assert weights[0] == weights[1]

    def test_the_probe_measures_real_steps(self, open_job):
        seconds = decisions.seconds_per_step(open_job(training={"micro_batch": 4}), 0.05)
        assert 1e-5 < seconds < 5


class TestMicroBatch:
    @settings(max_examples=100)
    @given(batch_size=st.integers(1, 600), context=st.integers(1, 4096), free=st.integers(10**6, 10**11))
    def test_it_fits_the_caches_and_the_memory_and_is_no_smaller_than_it_must(self, batch_size, context, free):
        config = tiny.config(1000, context_length=context)
        options = {"context": context, "compute": CPU, "optimizer": "muon", "recompute": False}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "memory_available", lambda: free)
            micro = choose_micro_batch(config, batch_size=batch_size, **options)

        def fits(size):
            return size * context <= 2048 and estimate(config, micro_batch=size, **options).activations < free / 2

        assert 1 <= micro <= batch_size
        assert micro == 1 or fits(micro)
        assert micro == batch_size or not fits(2 * micro)

    def test_a_larger_one_than_the_batch_is_an_error(self, open_job, tmp_path):
        with pytest.raises(ConfigError, match=r"^training.micro_batch \(5\) is larger than training.batch_size \(4\)$"):
            decided(open_job(training={"micro_batch": 5, "steps": 1}), tmp_path)


class Saved:
    """Bytes that autograd keeps for the backward pass, each storage counted once, weights not counted."""

    def __init__(self, network):
        self.weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
        self.kept = {}

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.kept[storage.data_ptr()] = storage
        return tensor

    @property
    def bytes(self):
        return sum(storage.nbytes() for storage in self.kept.values())


class TestMemory:
    @pytest.mark.parametrize("optimizer", ["muon", "adamw"])
    def test_weights_gradients_and_optimizer_state_are_as_large_as_it_says(self, open_job, optimizer):
        job = open_job(training={"steps": 9, "micro_batch": 4}, optimizer={"name": optimizer})
        state = job.start()
        job.step()(state)
        held = sum(value.nbytes for key, value in state.optimizers.state().items() if not key.endswith(".step"))
        weights = sum(weight.nbytes for weight in state.network.parameters())
        said = estimate(job.config, micro_batch=4, context=16, compute=CPU, optimizer=optimizer, recompute=False)
        assert (said.weights, said.gradients, said.optimizer) == (weights, weights, held)
        assert said.total > said.weights + said.gradients + said.optimizer + said.activations

    @pytest.mark.parametrize("context", [64, 512, 1024])
    @pytest.mark.parametrize(("d_model", "layers", "heads", "d_mlp"), [(64, 3, 4, 192), (128, 2, 2, 256)])
    def test_activations_are_about_what_autograd_keeps(self, d_model, layers, heads, d_mlp, context):
        shape = {"d_model": d_model, "layers": layers, "heads": heads, "kv_heads": heads, "d_mlp": d_mlp}
        config = tiny.config(500, context_length=context, d_head=d_model // heads, **shape)
        options = {"micro_batch": 2, "context": context, "compute": CPU, "optimizer": "muon"}
        said = estimate(config, recompute=False, **options).activations
        assert 0.8 < said / kept(config, recompute=False) < 2
        recomputed = estimate(config, recompute=True, **options).activations
        assert kept(config, recompute=True) < recomputed < said


def kept(config, *, recompute):
    """Bytes that autograd keeps between a forward and a backward pass over two sequences."""
    network = build(config, seed=0).train()
    network.recompute = recompute
    saved = Saved(network)
    ids = torch.randint(config.vocab_size, (2, config.context_length)).numpy()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        TokenPrediction().loss(network, Batch(ids, ids))
    return saved.bytes


class TestRefusals:
    """Each comes before anything is built: a network that cannot fit would take the machine with it."""

    @pytest.fixture(autouse=True)
    def nothing_is_allocated(self, monkeypatch):
        def never(*arguments, **options):
            pytest.fail("a network was built")

        monkeypatch.setattr(job, "build", never)

    def message(self, tmp_path, **changes):
        with pytest.raises(ResourceError) as caught:
            tiny.pretrain(tmp_path / "run", **changes)
        assert caught.value.exit_code == 1
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    def test_a_network_larger_than_the_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(memory, "memory_available", lambda: 8 * 10**9)
        changes = {"model": dict.fromkeys(("d_model", "layers", "heads", "d_mlp")) | {"size": "175b"}}
        message = self.message(tmp_path, **changes)
        blocks = 96 * 12 * 12_288**2  # GPT-3's: 4 in attention, 8 in the MLP
        biases = 96 * 13 * 12_288  # and gains: 9 + 4 times as wide as the stream
        weights, optimizer = 4 * (blocks + biases), 4 * (blocks + 2 * biases)  # AdamW keeps two numbers, Muon one
        assert message.startswith("this run needs about 2.1 TB of memory (weights ")
        assert f"gradients {weights / 1e9:.1f} GB, optimizer {optimizer / 1e9:.1f} GB, activations " in message
        assert message.endswith("), but 8.0 GB are available; use a smaller --size")

    def test_activations_larger_than_the_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr(memory, "memory_available", lambda: 421 * 10**6)
        changes = {"model": {"context_length": 256}, "training": {"micro_batch": 64, "batch_size": 64}}
        message = self.message(tmp_path, **changes)
        assert message.endswith("but 421.0 MB are available; use a smaller --training.micro-batch, or --training.recompute")

    def test_checkpoints_larger_than_the_disk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(memory, "disk_free", lambda folder: 100_000)
        message = self.message(tmp_path, training={"keep": 3})
        weights, blocks = parameters(tiny.config(52)), block_parameters(tiny.config(52))
        checkpoint = 4 * (3 * weights - blocks)
        expected = (
            f"the checkpoints need about {(5 * checkpoint + 4 * weights) / 1000:.1f} kB of disk (3 kept, the best, one "
            f"being written, of {checkpoint / 1000:.1f} kB each), but 100.0 kB are free at {tmp_path / 'run'}; "
            "use a smaller --training.keep or --size"
        )
        assert message == expected

    def test_compilation_without_a_compiler(self, tmp_path, monkeypatch):
        monkeypatch.setattr(decisions, "compiler", lambda: None)
        with pytest.raises(ConfigError) as caught:
            tiny.pretrain(tmp_path / "run", training={"compile": "on"})
        expected = "training.compile is on, but no C++ compiler was found; install g++, or use --training.compile off"
        assert str(caught.value) == expected
        assert not (tmp_path / "run").exists()

    def test_tensorboard_without_its_package(self, tmp_path, monkeypatch):
        monkeypatch.setattr(decisions, "find_spec", lambda name: None)
        expected = "training.tensorboard needs the extra `track`, which is not installed; run: pip install 'pellucid[track]'"
        with pytest.raises(MissingExtraError) as caught:
            tiny.pretrain(tmp_path / "run", training={"tensorboard": True})
        assert str(caught.value) == expected

    def test_a_prompt_for_samples_that_leaves_no_room(self, tmp_path):
        """Else it would be met at the first evaluation, after an hour of training."""
        with pytest.raises(
            ConfigError, match=r"^training.prompt has 17 tokens, but the context is 16 and must hold a continuation too"
        ):
            tiny.pretrain(tmp_path / "run", training={"prompt": "Alice was here to"})
        assert not (tmp_path / "run").exists()

    def test_a_prompt_for_samples_that_the_tokenizer_cannot_write(self, tmp_path):
        from pellucid.core.errors import TokenizerError

        with pytest.raises(TokenizerError, match=r"^character 'ß' \(U\+00DF, at position 5\) is not among the 49"):
            tiny.pretrain(tmp_path / "run", training={"prompt": "Aliceß"})
        assert not (tmp_path / "run").exists()


def test_the_shortest_context_trains_too(tmp_path):
    assert tiny.pretrain(tmp_path / "run", model={"context_length": 2}).model.config.context_length == 2
