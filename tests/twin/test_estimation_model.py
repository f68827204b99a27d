"""The bioreactor as the filter sees it is the bioreactor: the balances and the sensors in NumPy, by another route."""

from __future__ import annotations

import numpy as np
import pytest

from twin.batch import start
from twin.bioreactor import Control, Kinetics, State, physiology, to_coordinates
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import draws, split
from twin.estimation.model import BioreactorModel
from twin.inputs import Drive
from twin.integrate import STEP, advance
from twin.sensors import CHANNELS, reading

PROCESS = load_config("car_nk")
BATCH = start("b", PROCESS, preset_prior(PROCESS))
LAYOUT, MODEL = BATCH.layout, BioreactorModel(PROCESS, BATCH.layout)
DRIVE = Drive(Control(0.5, 0.01, 0.02, 300.0), PROCESS.theta.medium._replace(glucose=22.0))
POINTS = draws(BATCH.belief, 19, np.random.default_rng(4))


@pytest.mark.parametrize("span", [0.5 * STEP, STEP, 5.0 * STEP])
def test_points_are_carried_as_the_balances_are_integrated(span: float) -> None:
    state, cell, _ = split(POINTS, LAYOUT, PROCESS.theta.cell)
    theta = PROCESS.theta._replace(cell=Kinetics(*cell), medium=DRIVE.medium)
    moved = np.log(np.array(to_coordinates(advance(state, DRIVE.control, theta, span))))
    carried = MODEL.advance(POINTS, DRIVE, span)
    np.testing.assert_allclose(carried[: MODEL.changing], moved, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(carried[MODEL.changing :], POINTS[MODEL.changing :])
    without_rest = MODEL.advance(POINTS[: MODEL.moving], DRIVE, span)
    np.testing.assert_array_equal(without_rest, carried[: MODEL.moving])


@pytest.mark.parametrize("channels", [tuple(PROCESS.sensors), ("ph", "glucose", "capacitance"), ()], ids=len)
def test_points_read_what_the_sensors_read(channels: tuple[str, ...]) -> None:
    state, cell, _ = split(POINTS, LAYOUT, PROCESS.theta.cell)
    phys = physiology(State(*state), PROCESS.theta._replace(cell=Kinetics(*cell), medium=DRIVE.medium))
    told = MODEL.observe(POINTS, channels, DRIVE)
    assert told.shape == (len(channels), POINTS.shape[1])
    for z, channel in zip(told, channels, strict=True):
        sensor = PROCESS.sensors[channel]
        error, growth = (POINTS[LAYOUT.index(e.name)] if e is not None else 0.0 for e in (sensor.error, sensor.growth))
        expected = np.asarray(reading(channel, state, phys, error, growth))
        np.testing.assert_allclose(z, expected, rtol=1e-12, atol=1e-12, err_msg=channel)
    assert {CHANNELS[c].scale for c in PROCESS.sensors} == {"log", "linear"}
