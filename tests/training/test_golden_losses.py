"""Losses of two short runs, written down: whatever is rewritten, these must stay.

They were computed in fp32 on one thread. On processors of other kinds (AVX2, SSE) AdamW's differ by 1e-7; Muon's, whose
orthogonalisation runs in bf16, by 2e-4.
"""

import math

import pytest
import tiny

LOSSES = {
    "muon": [
        3.966180,
        3.938108,
        3.794536,
        3.697350,
        3.664849,
        3.609983,
        3.620445,
        3.501328,
        3.412078,
        3.374893,
        3.479407,
        3.400760,
    ],
    "adamw": [
        3.966180,
        3.909118,
        3.773323,
        3.672663,
        3.654926,
        3.593769,
        3.621352,
        3.495527,
        3.379687,
        3.355036,
        3.507247,
        3.395123,
    ],
}
VALIDATION = {"muon": [3.548499, 3.356537], "adamw": [3.538971, 3.327615]}
OPTIMIZER = {
    "muon": {"name": "muon", "matrix_learning_rate": 0.02, "momentum": 0.95},
    "adamw": {"name": "adamw", "matrix_learning_rate": 0.003},
}


@pytest.mark.parametrize(("name", "tolerance"), [("muon", 5e-4), ("adamw", 1e-5)])
def test_losses_are_the_ones_written_down(tmp_path, name, tolerance):
    run = tiny.pretrain(
        tmp_path / "run",
        steps=12,
        model={"layers": 2},
        optimizer=OPTIMIZER[name] | {"learning_rate": 3e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "clip": 1.0},
        schedule={"kind": "wsd", "warmup": 0.2, "decay": 0.5},
        training={"evaluate_every": 6, "seed": 7, "micro_batch": 2},
    )
    assert [row["loss"] for row in run.metrics if "loss" in row] == pytest.approx(LOSSES[name], rel=tolerance)
    validation = [row["validation_loss"] for row in run.metrics if "validation_loss" in row]
    assert validation == pytest.approx(VALIDATION[name], rel=tolerance)
    assert LOSSES[name][0] == pytest.approx(math.log(run.model.config.vocab_size), rel=0.01)  # a fresh network guesses
