"""The trajectory of the donor fit and its gradient."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from twin.bioreactor import Control, Kinetics, State, rates
from twin.config import load_config
from twin.donors.adjoint import Sweeps, sweeps
from twin.donors.model import SPAN
from twin.donors.prior import DEFAULT_PARAMETERS
from twin.integrate import advance
from twin.transition import flat

NAMES = DEFAULT_PARAMETERS
PROCESS = load_config("car_nk")


@dataclass
class Case:
    """Three columns with their own kinetics under a recipe-like schedule."""

    x0: np.ndarray
    controls: np.ndarray
    theta: np.ndarray
    span: float


def case(steps: int = 24, span: float = 1.0 / 6.0, donors: int = 3) -> Case:
    rng = np.random.default_rng(5)
    theta = np.tile(flat(PROCESS.theta)[:, None], donors)
    for n in NAMES:
        theta[Kinetics._fields.index(n)] *= np.exp(0.2 * rng.standard_normal(donors))
    x0 = np.array(PROCESS.initial)[:, None] * np.exp(0.1 * rng.standard_normal((13, donors)))
    controls = np.zeros((steps, 4, donors))
    controls[:, 0] = np.linspace(0.0, 1.8, steps)[:, None]
    controls[:, 3] = 300.0
    return Case(x0, controls, theta, span)


def test_both_engines_agree() -> None:
    c = case()
    machine, virtual = sweeps(NAMES), sweeps(NAMES, compiled=False)
    if machine.library is None:
        pytest.skip("no C compiler on this machine: only the virtual machine runs")
    path = machine.forward(c.x0, c.controls, c.theta, c.span)
    np.testing.assert_allclose(path, virtual.forward(c.x0, c.controls, c.theta, c.span), rtol=1e-12)
    weight = np.random.default_rng(1).standard_normal(path.shape)
    given = (path, c.controls, c.theta, c.span, weight)
    for a, b in zip(machine.backward(*given), virtual.backward(*given), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "interpreted"])
def test_gradient_is_that_of_finite_differences(compiled: bool) -> None:
    c, engine = case(12), sweeps(NAMES, compiled)
    weight = np.random.default_rng(2).standard_normal((13, 13, 3)) / np.array(PROCESS.initial)[:, None]

    def cost(x0: np.ndarray, theta: np.ndarray) -> float:
        return float((engine.forward(x0, c.controls, theta, c.span) * weight).sum())

    path = engine.forward(c.x0, c.controls, c.theta, c.span)
    wrt_x0, wrt_cell = engine.backward(path, c.controls, c.theta, c.span, weight)
    for k, name in enumerate(NAMES):
        i = Kinetics._fields.index(name)
        step = 1e-5 * c.theta[i, 1]
        up, down = c.theta.copy(), c.theta.copy()
        up[i, 1] += step
        down[i, 1] -= step
        assert wrt_cell[k, 1] == pytest.approx((cost(c.x0, up) - cost(c.x0, down)) / (2 * step), rel=1e-5, abs=1e-6), (
            name
        )
    for i, name in enumerate(State._fields):
        step = 1e-5 * c.x0[i, 2]
        up, down = c.x0.copy(), c.x0.copy()
        up[i, 2] += step
        down[i, 2] -= step
        assert wrt_x0[i, 2] == pytest.approx(
            (cost(up, c.theta) - cost(down, c.theta)) / (2 * step), rel=1e-5, abs=1e-6
        ), name


def test_grid_of_the_fit_is_fine_enough() -> None:
    """14 days under a cell-specific perfusion: within .01 in ln of the 15-min scheme in everything that is fitted."""
    c = case(round(14 / SPAN), SPAN)
    c.theta[:] = flat(PROCESS.theta)[:, None]
    path = sweeps(NAMES).forward(c.x0, c.controls, c.theta, c.span)
    x = State(*c.x0)
    for k, u in enumerate(c.controls):
        x = advance(x, Control(*u), PROCESS.theta, c.span)
        coarse = State(*path[k + 1])
        for field in ("car_positive", "dead", "glucose", "lactate", "glutamine", "ammonia"):
            gap = np.abs(np.log(getattr(coarse, field) + 0.05) - np.log(getattr(x, field) + 0.05))
            assert gap.max() < 0.01, (field, k * c.span, gap.max())


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    c = case(4)
    with pytest.raises(ValueError, match="expected x0"):
        sweeps(NAMES).forward(c.x0[:, :2], c.controls, c.theta, c.span)


def test_rates_in_pytensor_equal_rates_in_numpy() -> None:
    pytensor = pytest.importorskip("pytensor", reason="needs the donors extra")
    import pytensor.tensor as pt

    rng = np.random.default_rng(3)
    x = State(*(np.array(v) * np.exp(0.3 * rng.standard_normal(5)) for v in PROCESS.initial))
    u = Control(*(np.full(5, v) for v in (0.7, 0.01, 0.1, 250.0)))
    symbols = [pt.dvector() for _ in (*x, *u)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function = pytensor.function(
            symbols, list(rates(State(*symbols[:13]), Control(*symbols[13:]), PROCESS.theta)), mode="FAST_COMPILE"
        )
        there = function(*x, *u)
    for name, a, b in zip(State._fields, there, rates(x, u, PROCESS.theta), strict=True):
        np.testing.assert_allclose(a, np.broadcast_to(b, 5), rtol=1e-12, atol=1e-12, err_msg=name)


def test_pytensor_operation_differentiates() -> None:
    """The gradient that NUTS sees, through `Trajectory.L_op`, against finite differences."""
    pytensor = pytest.importorskip("pytensor", reason="needs the donors extra")
    import pytensor.tensor as pt

    from twin.donors.op import Trajectory

    c = case(12)
    operation = Trajectory(c.controls, PROCESS.theta, NAMES, c.span)
    cell = np.array([getattr(PROCESS.theta.cell, n) for n in NAMES])[:, None] * np.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a, b = pt.dmatrix(), pt.dmatrix()
        cost = pt.sum(pt.log(operation(a, b)[-1, :5]))
        function = pytensor.function([a, b], [cost, *pytensor.grad(cost, [a, b])], mode="FAST_COMPILE")
    _, wrt_x0, wrt_cell = function(c.x0, cell)
    step = np.zeros_like(cell)
    step[0, 1] = 1e-5
    assert wrt_cell[0, 1] == pytest.approx(
        (function(c.x0, cell + step)[0] - function(c.x0, cell - step)[0]) / 2e-5, rel=1e-6
    )
    step = np.zeros_like(c.x0)
    step[2, 0] = 1e-6
    assert wrt_x0[2, 0] == pytest.approx(
        (function(c.x0 + step, cell)[0] - function(c.x0 - step, cell)[0]) / 2e-6, rel=1e-5
    )


def test_engine_without_a_compiler_is_the_virtual_machine() -> None:
    engine = sweeps(NAMES, compiled=False)
    assert isinstance(engine, Sweeps)
    assert engine.library is None
