"""The smoother against one dense least-squares solve, and on reactors whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.twin.linear import Everything, Linear, linear_batch, prior
from twin.estimation.filters import FILTERS
from twin.estimation.smooth import smoothed
from twin.evidence import ControlApplied, Event, Measurement
from twin.history import Batch

TIMES = (0.0, 0.3, 0.31, 0.9, 1.1, 2.0, 2.6)
FACTS = (
    ControlApplied("p1", 0.2, "perfusion", 1.0),
    ControlApplied("p2", 0.95, "perfusion", 0.3),
    Event("c1", "calibration", 0.7, {"channel": "do"}),
    Event("c2", "calibration", 1.2, {"channel": "raman_glucose"}),
)


def readings(rng: np.random.Generator, at_zero: bool = True) -> list[Measurement]:
    """Several at one instant, one at a calibration, one at inoculation."""
    when = {"raman_glucose": (0.1, 0.25, 0.5, 1.2, 1.6), "raman_lactate": (0.25, 0.8, 1.6, 2.0), "do": (0.5, 0.7, 1.3)}
    told = [
        Measurement(f"{c}{t}", c, float(rng.normal(0.0, 2.0)), t, t, confirmed=True) for c, times in when.items() for t in times
    ]
    return [*told, Measurement("first", "do", 0.4, 0.0, 0.0, confirmed=True)] if at_zero else told


def told(filter_name: str, seed: int = 1) -> tuple[Batch, Linear]:
    rng = np.random.default_rng(seed)
    model = Linear(rng)
    return linear_batch(model, prior(rng), readings(rng), FACTS, filter_name), model


@pytest.mark.parametrize("name", FILTERS)
def test_on_a_linear_model_it_is_the_least_squares_solution_of_the_whole_batch(name: str) -> None:
    batch, model = told(name)
    whole = Everything(batch, model, TIMES)
    found = smoothed(batch, TIMES)
    assert set(found.times) == {*TIMES, *(m.sampled_at for m in batch.evidence)}
    for belief in found.beliefs:
        mean, cov = whole.at(belief.time)
        np.testing.assert_allclose(belief.mean, mean, rtol=0, atol=1e-9)
        np.testing.assert_allclose(belief.cov, cov, rtol=0, atol=1e-9)
