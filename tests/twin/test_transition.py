"""The fixed-step scheme: order, floors, compiled equals interpreted, and a stiff reference over 28 days."""

from __future__ import annotations

import numpy as np
import pytest

from twin.bioreactor import Control, Kinetics, Medium, State, Theta, Vessel, physiology
from twin.config import load_config
from twin.integrate import FLOOR, STEP, advance, rk4, substeps
from twin.native.build import compiler
from twin.sensors import CHANNELS, reading
from twin.transition import (
    N_CELL,
    advance_many,
    advance_tangents,
    flat,
    jacobian_function,
    observe_many,
    observe_tangents,
    reference,
)

PROCESS = load_config("car_nk")
THETA = flat(PROCESS.theta)


def _columns(m: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.array(PROCESS.initial)[:, None] * np.exp(0.3 * rng.standard_normal((13, m)))
    return x, np.repeat(THETA[:, None], m, axis=1)


def _random(m: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """States far and wide (grown, depleted, at their floors, one not a number), kinetics, controls, sensor errors."""
    rng = np.random.default_rng((m, seed))
    x = np.array(PROCESS.initial)[:, None] * np.exp(1.5 * rng.standard_normal((13, m)))
    x[9] = rng.uniform(0, 1, m)
    floor = np.broadcast_to(np.array(FLOOR)[:, None], x.shape)
    x = np.where(rng.uniform(size=x.shape) < 0.1, floor, x)
    if m > 1:
        x[:, -1] = np.array(FLOOR)
        x[rng.integers(13), rng.integers(m)] = np.nan
    theta = THETA[:, None] * np.exp(0.3 * rng.standard_normal((THETA.size, m)))
    u = rng.uniform(0, 1, (4, m)) * np.array([2, 0.05, 0.1, 600])[:, None]
    return x, u, theta, 0.1 * rng.standard_normal((2 * len(CHANNELS), m))


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


needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler on this machine")
SIZES = [1, 7, 8, 53, 500]


@needs_compiler
@pytest.mark.parametrize("m", SIZES)
def test_compiled_and_interpreted_transitions_give_the_same_bits(m: int) -> None:
    compiled, interpreted = advance_many(), advance_many(compiled=False)
    for seed, span in enumerate((0.003, STEP, 1 / 24, 0.25)):
        x, u, theta, _ = _random(m, seed)
        np.testing.assert_array_equal(compiled(x, u, theta, span), interpreted(x, u, theta, span))
        np.testing.assert_array_equal(compiled(x, u[:, 0], theta, span), interpreted(x, u[:, 0], theta, span))


def test_one_control_for_all_is_each_its_own() -> None:
    x, u, theta, _ = _random(9, 0)
    own = advance_many()(x, np.repeat(u[:, :1], 9, axis=1), theta, 0.1)
    np.testing.assert_array_equal(advance_many()(x, u[:, 0], theta, 0.1), own)


def test_the_transition_is_the_numpy_step() -> None:
    x, theta = _columns(5)
    u = Control(1.0, 0.01, 0.0, 300.0)
    many = advance_many(compiled=False)(x, np.array(u), theta, 0.1)
    np.testing.assert_allclose(many, np.array(advance(State(*x), u, PROCESS.theta, 0.1)), rtol=1e-13)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("where", ["x", "u", "theta"])
def test_nan_stays_nan_in_every_engine(where: str, compiled: bool) -> None:
    x, theta = _columns(2)
    u = np.array([0.5, 0.0, 0.0, 300.0])
    {"x": x, "u": u, "theta": theta}[where][3 if where == "x" else 0] = np.nan
    assert np.isnan(advance_many(compiled=compiled)(x, u, theta, 0.05)).any()


def test_floors_hold_in_a_vessel_washed_out() -> None:
    x, theta = _columns(1)
    x[:3] = 1e-9
    end = advance_many(compiled=False)(x, np.array([2.0, 0.0, 50.0, 0.0]), theta, 3.0)
    assert (end >= np.array(FLOOR)[:, None]).all()


def test_transition_agrees_with_cvodes_over_28_days_through_depletion_and_refeed() -> None:
    """Unfed to exhaustion of glucose, then perfused, starved and fed again: within 1e-5 of CVODES every day."""
    run = advance_many(compiled=False)
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
        return advance_many(compiled=False)(x[:, None], u, theta[:, None], STEP).ravel()

    for j in (0, 3, 6, 10):
        h = 1e-5 * x[j] * np.eye(13)[j]
        np.testing.assert_allclose(by_x[:, j], (stepped(x + h, THETA) - stepped(x - h, THETA)) / (2 * h[j]), atol=1e-7)
    for j in (0, 4, 19, 21):
        h = 1e-5 * THETA[j] * np.eye(THETA.size)[j]
        fd = (stepped(x, THETA + h) - stepped(x, THETA - h)) / (2 * h[j])
        np.testing.assert_allclose(by_theta[:, j], fd, atol=1e-7)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
def test_tangents_are_the_chained_jacobians_of_the_steps(compiled: bool) -> None:
    x, u, theta, _ = (a[:, 0] for a in _random(1, 3))
    n, advance = 5, advance_tangents(compiled=compiled)
    dx, dcell = np.hstack([np.eye(13), np.zeros((13, N_CELL))]), np.hstack([np.zeros((N_CELL, 13)), np.eye(N_CELL)])
    end, moved = advance(x, u, theta, n * STEP, dx, dcell)
    state, chained = x, dx
    for _ in range(n):
        new, by_x, by_theta = (np.asarray(a) for a in jacobian_function()(state, u, theta, STEP))
        state, chained = new.ravel(), by_x @ chained + by_theta @ dcell
    np.testing.assert_array_equal(end, state)
    np.testing.assert_allclose(moved, chained, rtol=1e-9, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("k", SIZES[:4])
def test_compiled_and_interpreted_tangents_give_the_same_bits(k: int) -> None:
    for seed, span in enumerate((STEP, 1 / 24)):
        x, u, theta, _ = (a[:, 0] for a in _random(1, seed))
        rng = np.random.default_rng((k, seed))
        directions = rng.standard_normal((13, k)), rng.standard_normal((N_CELL, k))
        both = (advance_tangents(compiled=c)(x, u, theta, span, *directions) for c in (True, False))
        for compiled, interpreted in zip(*both, strict=True):
            np.testing.assert_array_equal(compiled, interpreted)


def _observed(channel: str, x: np.ndarray, theta: np.ndarray, error: np.ndarray, growth: np.ndarray) -> np.ndarray:
    """In NumPy, without a graph."""
    cell, rest = N_CELL, N_CELL + len(Vessel._fields)
    parts = Theta(Kinetics(*theta[:cell]), Vessel(*theta[cell:rest]), Medium(*theta[rest:]))
    state = State(*x)
    return np.asarray(reading(channel, state, physiology(state, parts), error, growth))


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("channels", [tuple(CHANNELS), tuple(reversed(CHANNELS)), ("glucose",), ("do", "ph")], ids=len)
def test_readings_are_those_of_numpy(channels: tuple[str, ...], compiled: bool) -> None:
    x, _, theta, errors = _random(53, 1)
    k = len(channels)
    errors = errors[: 2 * k]
    with np.errstate(all="ignore"):  # one state is not a number
        expected = np.array([_observed(c, x, theta, errors[i], errors[k + i]) for i, c in enumerate(channels)])
    observed = observe_many(channels, compiled)(x, theta, errors)
    np.testing.assert_allclose(observed, expected, rtol=1e-14, atol=1e-14)


@needs_compiler
@pytest.mark.parametrize("m", SIZES)
def test_compiled_and_interpreted_readings_give_the_same_bits(m: int) -> None:
    x, _, theta, errors = _random(m, 2)
    both = (observe_many(tuple(CHANNELS), c)(x, theta, errors) for c in (True, False))
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
def test_tangents_of_readings_are_their_derivatives(compiled: bool) -> None:
    """By finite differences: of the states, of two kinetics that the gas channels feel, and of the sensor errors."""
    channels = tuple(CHANNELS)
    k = len(channels)
    x, _, theta, errors = (a[:, 0] for a in _random(1, 4))
    kinetics = [Kinetics._fields.index(n) for n in ("mu_max", "q_O2")]
    at = np.concatenate([x, theta[kinetics], errors])
    width = at.size

    def readings(at: np.ndarray) -> np.ndarray:
        moved = theta.copy()
        moved[kinetics] = at[13:15]
        return np.array([_observed(c, at[:13], moved, at[15 + i], at[15 + k + i]) for i, c in enumerate(channels)])

    dcell = np.zeros((N_CELL, width))
    dcell[kinetics, [13, 14]] = 1.0
    z, dz = observe_tangents(channels, compiled)(x, theta, errors, np.eye(13, width), dcell, np.eye(2 * k, width, k=15))
    np.testing.assert_allclose(z, readings(at), rtol=1e-14, atol=1e-14)
    steps = 1e-6 * np.diag(np.maximum(np.abs(at), 1e-3))
    differences = [(readings(at + h) - readings(at - h)) / (2 * h.sum()) for h in steps]
    np.testing.assert_allclose(dz, np.array(differences).T, rtol=1e-6, atol=1e-6)


@needs_compiler
def test_compiled_and_interpreted_tangents_of_readings_give_the_same_bits() -> None:
    channels = tuple(CHANNELS)
    x, _, theta, errors = (a[:, 0] for a in _random(1, 5))
    rng = np.random.default_rng(5)
    directions = [rng.standard_normal((n, 27)) for n in (13, N_CELL, 2 * len(channels))]
    both = (observe_tangents(channels, c)(x, theta, errors, *directions) for c in (True, False))
    for compiled, interpreted in zip(*both, strict=True):
        np.testing.assert_array_equal(compiled, interpreted)


def test_numpy_step_accepts_floats_and_arrays_alike() -> None:
    one = rk4(PROCESS.initial, Control(), PROCESS.theta, 0.01)
    many = rk4(State(*(np.full(2, v) for v in PROCESS.initial)), Control(), PROCESS.theta, 0.01)
    np.testing.assert_allclose(np.array(many)[:, 1], np.array(one), rtol=1e-15)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="theta"):
        advance_many()(np.ones((13, 2)), np.zeros(4), np.ones((7, 2)), 0.1)
    with pytest.raises(ValueError, match="u \\[4\\]"):
        advance_many()(np.ones((13, 2)), np.zeros(3), np.ones((53, 2)), 0.1)
    with pytest.raises(ValueError, match="dcell"):
        advance_tangents()(np.ones(13), np.zeros(4), THETA, 0.1, np.eye(13), np.zeros((9, 13)))
    with pytest.raises(ValueError, match="errors"):
        observe_many(("ph",))(np.ones((13, 2)), np.ones((53, 2)), np.zeros((3, 2)))
