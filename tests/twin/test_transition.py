"""The fixed-step scheme: order, floors, compiled equals interpreted, and a stiff reference over 28 days."""

from __future__ import annotations

import numpy as np
import pytest

from twin.bioreactor import Control, State
from twin.config import load_config
from twin.integrate import FLOOR, STEP, advance, rk4, substeps
from twin.transition import (
    Advance,
    advance_compiled,
    advance_interpreted,
    compiled_library,
    flat,
    jacobian_function,
    reference,
)

PROCESS = load_config("car_nk")
THETA = flat(PROCESS.theta)


def _columns(m: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.array(PROCESS.initial)[:, None] * np.exp(0.3 * rng.standard_normal((13, m)))
    return x, np.repeat(THETA[:, None], m, axis=1)


def _compiled() -> Advance:
    library = compiled_library()
    if library is None:
        pytest.skip("no C compiler on this machine")
    return advance_compiled(library)


def test_substeps_cover_the_span_without_exceeding_the_longest() -> None:
    assert substeps(STEP) == 1
    assert substeps(0.25) == 24
    assert substeps(STEP * 1.01) == 2
    assert substeps(1e-9) == 1


def test_rk4_is_of_fourth_order() -> None:
    """Halving the step divides the error by about 16, against CVODES."""
    u = Control(0.5, 0.0, 0.0, 300.0)
    exact = np.array(reference(PROCESS.initial, u, PROCESS.theta, 1.0, rtol=1e-13, atol=1e-14))

    def error(step: float) -> float:
        return float(np.abs(np.array(advance(PROCESS.initial, u, PROCESS.theta, 1.0, longest=step)) / exact - 1).max())

    order = np.log2(error(1 / 4) / error(1 / 8))
    assert 3.5 < order < 4.7


def test_compiled_and_interpreted_transitions_give_the_same_bits() -> None:
    x, theta = _columns(17)
    u = np.random.default_rng(2).uniform(0, 1, (4, 17)) * np.array([2, 0.05, 0, 600])[:, None]
    for span in (0.003, 1 / 24, 0.25):
        np.testing.assert_array_equal(_compiled()(x, u, theta, span), advance_interpreted()(x, u, theta, span))


def test_the_transition_is_the_numpy_step() -> None:
    x, theta = _columns(5)
    u = Control(1.0, 0.01, 0.0, 300.0)
    many = advance_interpreted()(x, np.array(u), theta, 0.1)
    np.testing.assert_allclose(many, np.array(advance(State(*x), u, PROCESS.theta, 0.1)), rtol=1e-13)


@pytest.mark.parametrize("where", ["x", "u", "theta"])
def test_nan_stays_nan_in_every_engine(where: str) -> None:
    x, theta = _columns(2)
    u = np.array([0.5, 0.0, 0.0, 300.0])
    {"x": x, "u": u, "theta": theta}[where][3 if where == "x" else 0] = np.nan
    for engine in (advance_interpreted(), _compiled()):
        assert np.isnan(engine(x, u, theta, 0.05)).any()


def test_floors_hold_in_a_vessel_washed_out() -> None:
    x, theta = _columns(1)
    x[:3] = 1e-9
    end = advance_interpreted()(x, np.array([2.0, 0.0, 50.0, 0.0]), theta, 3.0)
    assert (end >= np.array(FLOOR)[:, None]).all()


def test_transition_agrees_with_cvodes_over_28_days_through_depletion_and_refeed() -> None:
    """Unfed to exhaustion of glucose, then perfused, starved and fed again: within 1e-5 of CVODES every day."""
    run = advance_interpreted()
    x = PROCESS.initial
    truth, least_glucose = x, np.inf
    for day in range(28):
        p = 0.0 if day < 14 else (1.0 if day % 2 else 0.2)
        u = Control(p, 0.02 if day > 20 else 0.0, 0.0, 300.0)
        x = State(*run(np.array(x)[:, None], np.array(u), THETA[:, None], 1.0).ravel())
        truth = reference(truth, u, PROCESS.theta, 1.0)
        least_glucose = min(least_glucose, truth.glucose)
        # relative to the state, or to 1e-3 of its unit where it is nearly gone
        np.testing.assert_allclose(np.array(x), np.array(truth), rtol=1e-5, atol=1e-8, err_msg=f"day {day + 1}")
    assert least_glucose < 0.2
    assert truth.glucose > 10.0


def test_the_step_jacobian_agrees_with_finite_differences() -> None:
    x, u = np.array(PROCESS.initial) * 3.0, np.array([0.5, 0.0, 0.0, 300.0])
    _, by_x, by_theta = (np.asarray(a) for a in jacobian_function()(x, u, THETA, STEP))

    def stepped(x: np.ndarray, theta: np.ndarray) -> np.ndarray:
        return advance_interpreted()(x[:, None], u, theta[:, None], STEP).ravel()

    for j in (0, 3, 6, 10):
        h = 1e-5 * x[j] * np.eye(13)[j]
        np.testing.assert_allclose(by_x[:, j], (stepped(x + h, THETA) - stepped(x - h, THETA)) / (2 * h[j]), atol=1e-7)
    for j in (0, 4, 19, 21):
        h = 1e-5 * THETA[j] * np.eye(THETA.size)[j]
        fd = (stepped(x, THETA + h) - stepped(x, THETA - h)) / (2 * h[j])
        np.testing.assert_allclose(by_theta[:, j], fd, atol=1e-7)


def test_numpy_step_accepts_floats_and_arrays_alike() -> None:
    one = rk4(PROCESS.initial, Control(), PROCESS.theta, 0.01)
    many = rk4(State(*(np.full(2, v) for v in PROCESS.initial)), Control(), PROCESS.theta, 0.01)
    np.testing.assert_allclose(np.array(many)[:, 1], np.array(one), rtol=1e-15)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="theta"):
        _compiled()(np.ones((13, 2)), np.zeros(4), np.ones((7, 2)), 0.1)
