"""Learning-rate schedules against what their names promise."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.training.recipe import Schedule
from pellucid.training.schedules import cosine, factor, warmup_stable_decay


@st.composite
def schedules(draw):
    warmup = draw(st.floats(0, 1))
    kind = draw(st.sampled_from(["wsd", "cosine"]))
    floor = draw(st.sampled_from([0.0, 0.1, 1.0]))
    if kind == "cosine":
        return Schedule(kind=kind, warmup=warmup, floor=floor)
    return Schedule(kind=kind, warmup=warmup, decay=draw(st.floats(0, 1 - warmup)), floor=floor)


@given(schedule=schedules(), steps=st.integers(1, 400))
def test_the_rate_rises_stays_and_falls_within_its_bounds(schedule, steps):
    rates = [factor(schedule, step, steps) for step in range(steps)]
    warmup = round(schedule.warmup * steps)
    rise, fall = rates[:warmup], rates[warmup:]
    assert all(0 < rate <= 1 for rate in rates)  # no step is for nothing
    assert all(rate >= schedule.floor - 1e-12 for rate in fall)
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    assert rise == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    if rise:
        assert rise[-1] == 1.0
    if schedule.kind == "wsd":
        decay = round(schedule.decay * steps)
        assert fall[: max(0, steps - warmup - decay)] == [1.0] * max(0, steps - warmup - decay)


@given(steps=st.integers(1, 10_000), floor=st.floats(0, 1))
def test_both_schedules_reach_their_floor_exactly_at_the_end(steps, floor):
    assert warmup_stable_decay(steps, steps=steps, warmup=0, decay=steps, floor=floor) == pytest.approx(floor)
    assert cosine(steps, steps=steps, warmup=0, floor=floor) == pytest.approx(floor)


def test_warmup_stable_decay_in_numbers():
    rates = [warmup_stable_decay(step, steps=10, warmup=2, decay=4) for step in range(11)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]


def test_cosine_in_numbers():
    rates = [cosine(step, steps=6, warmup=2, floor=0.2) for step in range(7)]
    half = [0.2 + 0.4 * (1 + math.cos(math.pi * part)) for part in (0, 0.25, 0.5, 0.75, 1)]
    assert rates == pytest.approx([0.5, 1.0, *half])
