"""Is the filter honest? Model-matched reactors: truth drawn from the very model, so NIS and NEES must be near 1."""

from __future__ import annotations

import numpy as np
import pytest

from twin.batch import apply, assimilate, believe_at, start
from twin.bioreactor import Coordinates, State, Theta, from_coordinates, physiology, to_coordinates
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import N_STATE, Belief, draws, split
from twin.evidence import ControlApplied, Measurement
from twin.sensors import CHANNELS, compared
from twin.transition import advance_many, flat

PROCESS = load_config("car_nk")
PRIOR = preset_prior(PROCESS)
ONLINE = ("capacitance", "raman_glucose", "raman_lactate", "ph", "oxygen_uptake")
LABORATORY = ("viable_density", "viability", "glucose", "lactate", "glutamine", "ammonia")
WALK = {s.error.name: s.error.walk for s in PROCESS.sensors.values() if s.error is not None}


def reactor(seed: int, days: int, filter_name: str) -> tuple[list[float], list[float]]:
    """One matched reactor: (NIS of every reading, NEES/n at the end of every day)."""
    rng = np.random.default_rng([99, seed])
    batch = start("m", PROCESS, PRIOR, filter_name)
    layout, errors = batch.layout, slice(batch.layout.error_start, None)
    truth = draws(batch.prior, 1, rng)[:, 0]
    walks = np.array([WALK[name] for name in layout.errors])
    _, cell, _ = split(truth, layout, PROCESS.theta.cell)
    theta = PROCESS.theta._replace(cell=cell)
    advance, nees = advance_many(), []
    control = np.array([0.0, 0.0, 0.0, 300.0])
    batch = apply(batch, ControlApplied("d", 0.0, "cytokine_dose", 300.0))
    for hour in range(1, 24 * days + 1):
        x = State(*np.array(from_coordinates(Coordinates(*np.exp(truth[:N_STATE])))))
        if hour % 12 == 1:
            control[0] = min(2.0, 0.1 * float(x.viable))
            batch = apply(batch, ControlApplied(f"p{hour}", (hour - 1) / 24, "perfusion", control[0]))
        x = State(*advance(np.array(x)[:, None], control, flat(theta)[:, None], 1 / 24)[:, 0])
        shock = np.array(PROCESS.noise) * np.sqrt(1 / 24) * rng.standard_normal(N_STATE)
        truth[:N_STATE] = np.log(np.array(to_coordinates(x))) + shock
        truth[errors] += walks * np.sqrt(1 / 24) * rng.standard_normal(walks.size)
        parameter_walk = PROCESS.parameter_walk * np.sqrt(1 / 24) * rng.standard_normal(len(layout.parameters))
        truth[N_STATE : layout.error_start] += parameter_walk
        x, cell, _ = split(truth, layout, PROCESS.theta.cell)
        theta = PROCESS.theta._replace(cell=cell)
        for channel in (
            *ONLINE,
            *(LABORATORY if hour % 24 == 0 else ()),
            *(("car_fraction",) if hour % 84 == 0 else ()),
        ):
            sensor = PROCESS.sensors[channel]
            error = truth[layout.index(sensor.error.name)] if sensor.error else 0.0
            phys = physiology(x, Theta(cell, theta.vessel, theta.medium))
            noisy = compared(channel, CHANNELS[channel].observe(x, phys, error)) + sensor.sd * rng.standard_normal()
            value = float(np.exp(noisy) - CHANNELS[channel].limit if CHANNELS[channel].scale == "log" else noisy)
            value = min(max(value, CHANNELS[channel].low), CHANNELS[channel].high)
            batch = assimilate(batch, Measurement(f"{channel}{hour}", channel, value, hour / 24, hour / 24))
        if hour % 24 == 0:
            nees.append(_nees(believe_at(batch, hour / 24), truth))
    return [i.nis for i in batch.innovations], nees


def _nees(belief: Belief, truth: np.ndarray) -> float:
    error = belief.mean - truth
    return float(error @ np.linalg.solve(belief.cov, error)) / truth.size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ukf", "ekf"])
def test_innovations_and_errors_are_as_large_as_the_filter_says(name: str) -> None:
    runs = [reactor(seed, 7, name) for seed in range(14)]
    nis = np.concatenate([r[0] for r in runs])
    nees = np.concatenate([r[1] for r in runs])
    assert 0.93 < nis.mean() < 1.07
    assert 0.8 < nees.mean() < 1.2
