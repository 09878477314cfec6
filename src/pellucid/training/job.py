"""A run with nothing left open: settings, text, dimensions, machine; and the parts that the loop is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

from pellucid.core.device import Compute
from pellucid.core.run import RunFolder
from pellucid.network.build import build
from pellucid.network.config import ModelConfig
from pellucid.network.flops import training_flops
from pellucid.text.batches import Batches, Corruption, Lanes
from pellucid.training.checkpoint import WholeModel
from pellucid.training.loop import Step, TrainState
from pellucid.training.objectives import TokenPrediction
from pellucid.training.optimizers import Optimizers
from pellucid.training.preparation import Prepared, corruption
from pellucid.training.recipe import Recipe, Training
from pellucid.training.report import write_report, write_samples
from pellucid.training.validation import Validation, validate


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, how and where."""

    recipe: Recipe
    prepared: Prepared
    config: ModelConfig
    compute: Compute

    @property
    def pace(self) -> Training:
        return self.recipe.training

    @property
    def held_out(self) -> bool:
        return True

    @property
    def kept(self) -> WholeModel:
        return WholeModel(self.prepared.tokenizer)

    def draw(self, run: RunFolder) -> None:
        write_samples(run)
        write_report(run)

    @property
    def steps(self) -> int:
        return cast(int, self.recipe.training.steps)  # decided before a job runs

    @property
    def step_tokens(self) -> int:
        """Tokens of text that one step reads."""
        return self.recipe.training.batch_size * self.config.context_length

    @property
    def token_flops(self) -> float:
        """What learning from one token of text costs."""
        context, objective = self.config.context_length, self.recipe.objective
        inputs, targets = (context, context) if self.corruption is None else self.corruption.lengths(context)
        scored = objective.rate if objective.name == "mlm" else 1.0
        decoded = targets if objective.name == "spans" else 0
        return training_flops(self.config, inputs, scored=scored, decoded=decoded) * inputs / context

    @property
    def step_flops(self) -> float:
        return self.step_tokens * self.token_flops

    @cached_property
    def corruption(self) -> Corruption | None:
        """What is hidden from the network, if anything."""
        return corruption(self.recipe.objective, self.prepared.tokenizer, self.config)

    def start(self) -> TrainState:
        """A fresh network and its optimizers, the same every time."""
        training = self.recipe.training
        network = build(self.config, seed=training.seed, device=self.compute.device).train()
        network.compute_in(self.compute.dtype, recompute=training.recompute)
        if training.compile == "on":
            network.compile_blocks()
        return TrainState(network=network, optimizers=Optimizers(network, self.recipe.optimizer))

    def batches(self) -> Batches:
        """What is read in which order: by a recurrent network as it was written, by others shuffled."""
        view, context, size = self.prepared.training, self.config.context_length, self.recipe.training.batch_size
        if self.config.architecture == "recurrent":
            return Lanes(view, context=context, batch_size=size)
        return Batches(
            view,
            context=context,
            batch_size=size,
            seed=self.recipe.training.seed,
            documents=self.recipe.data.document_masks,
            corruption=self.corruption,
        )

    def step(self) -> Step:
        """How a step is computed."""
        training = self.recipe.training
        return Step(
            objective=TokenPrediction(),
            batches=self.batches(),
            schedule=self.recipe.schedule,
            steps=self.steps,
            micro_batch=cast(int, training.micro_batch),
            seed=training.seed,
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
            corruption=self.corruption,
            batch_size=cast(int, training.micro_batch),
            windows=None if training.evaluate_windows == "all" else training.evaluate_windows,
        )
