"""A run with nothing left open: settings, text, dimensions, machine; and the parts that the loop is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from pellucid.core.device import Compute
from pellucid.network.build import build
from pellucid.network.config import ModelConfig
from pellucid.network.flops import training_flops
from pellucid.text.batches import Batches
from pellucid.training.loop import Step, TrainState
from pellucid.training.objectives import TokenPrediction
from pellucid.training.optimizers import Optimizers
from pellucid.training.preparation import Prepared
from pellucid.training.recipe import Recipe
from pellucid.training.validation import Validation, validate


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, how and where."""

    recipe: Recipe
    prepared: Prepared
    config: ModelConfig
    compute: Compute

    @property
    def steps(self) -> int:
        return cast(int, self.recipe.training.steps)  # decided before a job runs

    @property
    def step_tokens(self) -> int:
        """Tokens that one step learns from."""
        return self.recipe.training.batch_size * self.config.context_length

    @property
    def step_flops(self) -> float:
        return self.step_tokens * training_flops(self.config, self.config.context_length)

    def start(self) -> TrainState:
        """A fresh network and its optimizers, the same every time."""
        training = self.recipe.training
        network = build(self.config, seed=training.seed, device=self.compute.device).train()
        network.compute_in(self.compute.dtype, recompute=training.recompute)
        if training.compile == "on":
            network.compile_blocks()
        return TrainState(network=network, optimizers=Optimizers(network, self.recipe.optimizer))

    def batches(self) -> Batches:
        """What is read in which order."""
        return Batches(
            self.prepared.training,
            context=self.config.context_length,
            batch_size=self.recipe.training.batch_size,
            seed=self.recipe.training.seed,
            documents=self.recipe.data.document_masks,
        )

    def step(self) -> Step:
        """How a step is computed."""
        return Step(
            objective=TokenPrediction(),
            batches=self.batches(),
            schedule=self.recipe.schedule,
            steps=self.steps,
            micro_batch=cast(int, self.recipe.training.micro_batch),
        )

    def evaluate(self, state: TrainState) -> Validation:
        """The network's loss on the held-out text."""
        training = self.recipe.training
        return validate(
            state.network,
            TokenPrediction(),
            self.prepared.validation,
            context=self.config.context_length,
            documents=self.recipe.data.document_masks,
            batch_size=cast(int, training.micro_batch),
            windows=None if training.evaluate_windows == "all" else training.evaluate_windows,
        )
