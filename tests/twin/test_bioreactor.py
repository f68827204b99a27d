"""The mass balances: one definition on four backends, conservation, closed forms, positivity."""

from __future__ import annotations

from typing import Any

import casadi as ca
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.bioreactor import (
    Control,
    Kinetics,
    Medium,
    State,
    Theta,
    Vessel,
    from_coordinates,
    physiology,
    rates,
    to_coordinates,
)
from twin.config import load_config
from twin.integrate import FLOOR, advance
from twin.transition import N_CELL, N_VESSEL, flat, symbols

PROCESS = load_config("car_nk")
THETA = PROCESS.theta

positive = st.floats(1e-3, 60.0)
states = st.builds(
    State,
    car_positive=positive, car_negative=positive, dead=positive, glucose=st.floats(1e-6, 60.0), lactate=positive,
    glutamine=st.floats(1e-6, 10.0), ammonia=st.floats(1e-3, 10.0), cytokine=st.floats(1e-3, 900.0),
    doublings=st.floats(0.1, 30.0), exhausted=st.floats(1e-4, 0.99), strong_ion=st.floats(1.0, 45.0),
    activation=st.floats(0.01, 1.0), volume=st.floats(0.1, 10.0),
)  # fmt: skip
controls = st.builds(
    Control, perfusion=st.floats(0, 2), feed=st.floats(0, 0.1), bleed=st.floats(0, 0.5), cytokine_dose=st.floats(0, 600)
)


def _theta_of(vector: Any) -> Theta:
    cell, vessel = N_CELL, N_CELL + N_VESSEL
    return Theta(Kinetics(*vector[:cell]), Vessel(*vector[cell:vessel]), Medium(*vector[vessel:]))


def _close(actual: Any, expected: Any, scale: Any) -> None:
    difference = np.abs(np.array(actual, dtype=float) - np.array(expected, dtype=float))
    assert (difference <= 1e-12 * (np.abs(np.array(expected, dtype=float)) + np.array(scale, dtype=float))).all()


@settings(max_examples=60, deadline=None)
@given(states, controls)
def test_casadi_and_numpy_give_the_rates_of_plain_floats(x: State, u: Control) -> None:
    expected = rates(x, u, THETA)
    s = symbols()
    f = ca.Function("rates", list(s), [ca.vertcat(*rates(*s.unpack()))])
    _close(np.asarray(f(np.array(x), np.array(u), flat(THETA))).ravel(), expected, x)
    many = rates(State(*(np.full(3, v) for v in x)), Control(*(np.full(3, v) for v in u)), THETA)
    _close([np.broadcast_to(v, 3)[2] for v in many], expected, x)


def test_pytensor_gives_the_rates_of_plain_floats() -> None:
    pytest.importorskip("pytensor", reason="the donors extra is not installed")
    import pytensor.tensor as pt
    from pytensor import function

    symbolic = pt.dvector("x"), pt.dvector("u"), pt.dvector("theta")
    x, u = State(*(symbolic[0][i] for i in range(13))), Control(*(symbolic[1][i] for i in range(4)))
    theta = _theta_of([symbolic[2][i] for i in range(flat(THETA).size)])
    f = function(symbolic, pt.stack(list(rates(x, u, theta))), mode="FAST_COMPILE")
    rng = np.random.default_rng(7)
    for _ in range(20):
        point = State(*(np.array(PROCESS.initial) * np.exp(rng.normal(0, 0.7, 13))))
        control = Control(*rng.uniform(0, [2, 0.1, 0.5, 600]))
        _close(f(np.array(point), np.array(control), flat(THETA)), rates(point, control, THETA), point)


def _without_base(theta: Theta) -> Theta:
    return theta._replace(vessel=theta.vessel._replace(base_max=0.0))


@settings(max_examples=25, deadline=None)
@given(st.floats(0.0, 2.0), st.floats(0.0, 0.05))
def test_charge_is_conserved_with_lactate_at_constant_volume(p: float, f: float) -> None:
    """Lactic acid takes from the strong-ion difference what it adds to lactate: their sum only mixes with medium."""
    theta, m = _without_base(THETA), THETA.medium
    x, days = PROCESS.initial, 5.0
    end = advance(x, Control(p, f, 0.0, 300.0), theta, days)
    inflow = p * (m.strong_ion + m.lactate) + f * m.strong_ion
    rate = p + f
    start = x.strong_ion + x.lactate
    steady = inflow / rate if rate > 0 else start
    expected = steady + (start - steady) * np.exp(-rate * days)
    assert end.strong_ion + end.lactate == pytest.approx(expected, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.0, 0.05))
def test_fed_batch_amounts_balance(f: float) -> None:
    """In fed-batch the volume grows as exp(F t); charge plus lactate in the vessel grows by what the feed brings."""
    theta = _without_base(THETA._replace(vessel=THETA.vessel._replace(level=0.0)))
    x = PROCESS.initial
    end = advance(x, Control(0.0, f, 0.0, 300.0), theta, 5.0)
    assert end.volume == pytest.approx(x.volume * np.exp(f * 5.0), rel=1e-9)
    brought = theta.medium.strong_ion * (end.volume - x.volume)
    before, after = (x.strong_ion + x.lactate) * x.volume, (end.strong_ion + end.lactate) * end.volume
    assert after == pytest.approx(before + brought, rel=1e-9)


def test_glucose_carbon_reappears_as_lactate_in_a_closed_vessel() -> None:
    end = advance(PROCESS.initial, Control(cytokine_dose=300.0), THETA, 6.0)
    made, used = end.lactate - PROCESS.initial.lactate, PROCESS.initial.glucose - end.glucose
    assert made == pytest.approx(THETA.cell.Y_LG * used, rel=1e-9)


def test_car_odds_fall_as_their_closed_form_whatever_the_culture_does() -> None:
    """Growth, death, bleed and leak act on both pools alike; only the handicap delta changes the odds."""
    u = Control(1.0, 0.02, 0.3, 200.0)
    before, after = to_coordinates(PROCESS.initial), to_coordinates(advance(PROCESS.initial, u, THETA, 10.0))
    assert after.car_odds == pytest.approx(before.car_odds * np.exp(-THETA.cell.delta * 10.0), rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(states)
def test_coordinates_are_the_state_in_other_words(x: State) -> None:
    np.testing.assert_allclose(np.array(from_coordinates(to_coordinates(x))), np.array(x), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(states, controls)
def test_states_stay_finite_and_above_their_floors(x: State, u: Control) -> None:
    end = advance(x, u, THETA, 0.5)
    assert all(np.isfinite(v) and v >= low for v, low in zip(end, FLOOR, strict=True))


@settings(max_examples=100, deadline=None)
@given(states)
def test_physiology_stays_within_physical_bounds(x: State) -> None:
    p = physiology(x, THETA)
    assert 0.0 <= p.mu <= THETA.cell.mu_max
    assert p.k_d >= THETA.cell.k_d0
    assert 0.0 <= p.gas.oxygen <= THETA.vessel.O2_set + 1e-3
    assert 5.0 < p.gas.ph < 8.5
    assert p.gas.pco2 <= 91.0


def test_the_reference_run_of_the_preset() -> None:
    """Density-step perfusion: about 28.9e6/mL at day 14, viability .84, lactate 27, ammonia 2.4, 7.5 volumes (SCIENCE)."""
    x, medium = PROCESS.initial, 0.0
    for _ in range(56):
        p = 0.0 if x.viable < 2 else 0.5 if x.viable < 10 else 0.75 if x.viable < 15 else 1.0
        x = advance(x, Control(perfusion=p, cytokine_dose=300.0), THETA, 0.25)
        medium += 0.25 * p
    assert x.viable == pytest.approx(28.9, rel=0.03)
    assert x.viability == pytest.approx(0.84, abs=0.02)
    assert x.lactate == pytest.approx(27.0, rel=0.05)
    assert x.ammonia == pytest.approx(2.4, rel=0.05)
    assert medium == pytest.approx(7.5, abs=0.3)


def test_without_cytokine_the_culture_stalls_and_dies() -> None:
    dosed = advance(PROCESS.initial, Control(cytokine_dose=300.0), THETA, 7.0)
    starved = advance(PROCESS.initial, Control(), THETA, 14.0)
    assert starved.viable < 1.5
    assert starved.viability < 0.7
    assert dosed.viable > 3.0
