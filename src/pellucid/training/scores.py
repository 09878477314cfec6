"""How well a task is done on rows that are held out, while it is being learnt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pellucid.network.network import Network
from pellucid.text.examples import Example, collate, sequential_examples
from pellucid.training.label_objective import LabelPrediction
from pellucid.training.objectives import Objective
from pellucid.training.preference import Preference


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Loss on held-out rows, and the share of targets that are met, where there is such a thing."""

    loss: float  # nats (or squared error over variance) per target
    accuracy: float | None = None  # of labels, or of choices
    writes: bool = False  # whether the targets are tokens of texts, whose loss has a perplexity

    def metrics(self) -> dict[str, float]:
        found = {"validation_loss": self.loss}
        found |= {} if self.accuracy is None else {"accuracy": self.accuracy}
        return found | ({"perplexity": math.exp(min(self.loss, 700.0))} if self.writes else {})

    def __str__(self) -> str:
        if self.accuracy is not None:
            return f"validation loss {self.loss:.4f}, accuracy {self.accuracy:.1%}"
        return f"validation loss {self.loss:.4f}" + (
            f", perplexity {math.exp(min(self.loss, 700.0)):.2f}" if self.writes else ""
        )


@torch.no_grad()
def score_examples(
    network: Network, objective: Objective, examples: Sequence[Example], *, pad: int, batch_tokens: int
) -> TaskScore:
    """Mean loss over the targets of all examples; the network goes on learning afterwards."""
    network.eval()
    total, targets, right, counted = 0.0, 0.0, 0, 0
    for batch, _ in sequential_examples(examples, pad=pad, batch_tokens=batch_tokens):
        targets += objective.count(batch)
        if isinstance(objective, LabelPrediction):
            logits = objective.scores(network, batch)
            wanted = torch.from_numpy(batch.targets).to(logits.device)
            total += float(objective.loss_of(logits, wanted))
            met, of = objective.right(logits, wanted)
            right, counted = right + met, counted + of
        else:
            total += float(objective.loss(network, batch))
    network.train()
    accuracy = right / counted if counted else None
    return TaskScore(loss=total / targets, accuracy=accuracy, writes=not isinstance(objective, LabelPrediction))


@torch.no_grad()
def score_pairs(
    network: Network, objective: Preference, examples: Sequence[Example], *, pad: int, batch_tokens: int
) -> TaskScore:
    """Mean loss over pairs, and the share of them in which the chosen answer is now preferred."""
    network.eval()
    margins = pair_margins(network, objective, examples, pad=pad, batch_tokens=batch_tokens)
    network.train()
    loss = -torch.nn.functional.logsigmoid(margins).mean().item()
    return TaskScore(loss=loss, accuracy=(margins > 0).float().mean().item())


@torch.no_grad()
def pair_margins(
    network: Network, objective: Preference, examples: Sequence[Example], *, pad: int, batch_tokens: int
) -> torch.Tensor:
    """The margins of pairs [pairs], in their order."""
    found, start = [], 0
    while start < len(examples):
        stop, longest = start, 0
        while stop < len(examples):
            width = max(longest, *(len(example.ids) for example in examples[stop : stop + 2]))
            if stop > start and width * (stop + 2 - start) > batch_tokens:
                break
            stop, longest = stop + 2, width
        found.append(objective.margins(network, collate(examples[start:stop], pad)).cpu())
        start = stop
    return torch.cat(found)
