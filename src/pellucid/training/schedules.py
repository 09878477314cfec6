"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math

from pellucid.training.recipe import Schedule


def warmup_stable_decay(step: int, *, steps: int, warmup: int, decay: int, floor: float = 0.0) -> float:
    """Learning-rate factor in [floor, 1] (Hu et al., 2024): linear rise, plateau, linear fall to `floor` at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    left = steps - step
    return 1.0 if left >= decay else floor + (1 - floor) * left / decay


def cosine(step: int, *, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Learning-rate factor in [floor, 1] (Loshchilov and Hutter, 2017): a linear rise, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """The factor by which step number `step` (from 0) of `steps` multiplies the peak learning rate."""
    warmup = round(schedule.warmup * steps)
    if schedule.kind == "cosine":
        return cosine(step, steps=steps, warmup=warmup, floor=schedule.floor)
    return warmup_stable_decay(step, steps=steps, warmup=warmup, decay=round(schedule.decay * steps), floor=schedule.floor)
