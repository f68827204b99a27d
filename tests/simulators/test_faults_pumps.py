"""Pumps and bags that do what their read-back denies, and operators."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators import Fault, Recording, median_donor, record, run_closed_loop
from simulators.faults import PUMP_MODES, Mishaps
from tests.simulators.faulty import PROCESS, of, quiet
from twin.bioreactor import Control
from twin.evidence import ControlApplied, Event


def pumped(*faults: Fault, recipe: str = "constant_2") -> Recording:
    return record(PROCESS, 3, seed=3, recipe=recipe, days=6.0, faults=faults)


def flow(r: Recording, after: float, before: float) -> float:
    time, volume = r.truth["time"], r.truth["medium_vv"]
    return float(np.interp(before, time, volume) - np.interp(after, time, volume)) / (before - after)


@pytest.mark.parametrize(("mode", "factor"), [("clog", 0.3), ("gain", 1.3)])
def test_a_pump_delivers_a_fraction_or_a_multiple_while_its_readback_stays(mode: str, factor: float) -> None:
    right, wrong = pumped(), pumped(Fault("pump:perfusion", mode, 2.0, 4.0))
    for r in (right, wrong):
        assert {v for t, v in of(r.facts, "perfusion").values() if t > 1.0} == {2.0}
    assert flow(wrong, 0.5, 2.0) == flow(right, 0.5, 2.0)
    assert flow(wrong, 2.0, 4.0) == pytest.approx(
        factor * flow(right, 2.0, 4.0), rel=0.02
    )  # fouling, samples made good
    assert flow(wrong, 4.5, 6.0) == pytest.approx(flow(right, 4.5, 6.0), rel=0.02)


def test_a_pump_that_is_stuck_on_runs_at_its_own_rate() -> None:
    right = pumped(recipe="none")
    wrong = pumped(Fault("pump:perfusion", "stuck_on", 2.0, 4.0, size=0.5), recipe="none")
    assert {v for _, v in of(wrong.facts, "perfusion").values()} == {0.0}
    assert flow(right, 2.0, 4.0) < 0.01
    assert flow(wrong, 2.0, 4.0) == pytest.approx(0.5, rel=0.1)
    fed = pumped(Fault("pump:feed", "stuck_on", 2.0), recipe="none")
    assert fed.truth["glucose"][-1] > right.truth["glucose"][-1] + 10.0


def test_a_wrong_bag_washes_the_vessel_towards_what_is_in_it() -> None:
    donor = median_donor(PROCESS)
    few = replace(donor, initial=donor.initial._replace(car_positive=1e-6, car_negative=1e-6, dead=1e-6))
    probes = quiet()
    probes = replace(probes, instruments=tuple(i for i in probes.instruments if not i.laboratory))
    fault = Fault("pump:perfusion", "wrong_bag", 1.0, 2.5, size=0.4)
    r = record(PROCESS, few, scenario=probes, recipe="constant_2", days=4.0, faults=(fault,))
    truth, bag = r.truth, PROCESS.theta.medium.glucose
    at = {t: float(truth["glucose"][np.argmin(np.abs(truth["time"] - t))]) for t in (1.0, 2.5, 4.0)}
    assert at[2.5] == pytest.approx(0.4 * bag + (at[1.0] - 0.4 * bag) * math.exp(-2.0 * 1.5), rel=1e-4)
    assert at[4.0] == pytest.approx(bag + (at[2.5] - bag) * math.exp(-2.0 * 1.5), rel=1e-4)
    assert not any(isinstance(f, Event) and f.kind == "medium" for f in r.facts)  # nobody was told


def test_a_weak_syringe_halves_the_cytokine() -> None:
    right, wrong = pumped(recipe="none"), pumped(Fault("pump:cytokine_dose", "wrong_bag", 0.0), recipe="none")
    start = right.truth["cytokine"][0]
    assert wrong.truth["cytokine"][-1] < right.truth["cytokine"][-1]
    assert wrong.truth["cytokine"][6] - start < right.truth["cytokine"][6] - start


def test_what_an_operator_sets_is_told_as_it_is() -> None:
    right, wrong = pumped(recipe="none"), pumped(Fault("pump:perfusion", "override", 2.0, 4.0, size=0.7), recipe="none")
    rates = sorted((t, v) for t, v in of(wrong.facts, "perfusion").values())
    assert {v for t, v in rates if t < 2.0} == {0.0}
    assert {v for t, v in rates if 2.0 <= t < 4.0} == {0.7}
    assert {v for t, v in rates if t >= 4.0 + 1e-4} == {0.0}
    assert min(t for t, v in rates if v == 0.7) < 2.001
    assert flow(wrong, 2.0, 4.0) == pytest.approx(0.7, rel=0.1)
    assert flow(right, 2.0, 4.0) < 0.01
    assert all(f.cmd_id is None for f in wrong.facts if isinstance(f, ControlApplied))
    assert wrong.truth["perfusion"][60] == 0.7


def test_an_operators_hand_wins_over_the_twin_and_ends_with_it() -> None:
    short = replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_latest=2.0))
    fault = Fault("pump:cytokine_dose", "override", 0.75, 1.5, size=123.0)
    r = run_closed_loop(short, "mpc", donor=3, seed=3, faults=(fault,))
    dosed = [f for f in r.facts if isinstance(f, ControlApplied) and f.actuator == "cytokine_dose"]
    during = [f for f in dosed if 0.75 <= f.at < 1.5]
    assert {(f.rate, f.cmd_id) for f in during} == {(123.0, None)}
    assert {f.rate for f in dosed if f.at >= 1.5001}.isdisjoint({123.0})
    assert r.refused == ()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(PUMP_MODES),
    st.sampled_from(["perfusion", "feed", "cytokine_dose"]),
    st.floats(0, 1),
    st.floats(0, 9),
)
def test_a_pump_fault_touches_its_own_actuator_from_onset_to_until(
    mode: str, actuator: str, size: float, at: float
) -> None:
    u = Control(1.0, 0.02, 0.0, 300.0)
    mishaps = Mishaps((Fault(f"pump:{actuator}", mode, 3.0, 6.0, size),), 0)
    after = mishaps.delivered(u, at)
    plant = median_donor(PROCESS).plant(PROCESS)
    bagged = mishaps.bagged(plant, at)
    for name in Control._fields:
        if name != actuator or not 3.0 <= at < 6.0:
            assert getattr(after, name) == getattr(u, name)
    if not 3.0 <= at < 6.0:
        assert bagged == plant
        assert mishaps.operated(at) == {}
    elif mode in ("clog", "gain"):
        assert getattr(after, actuator) == pytest.approx(size * getattr(u, actuator))


@pytest.mark.slow
@pytest.mark.parametrize("mode", PUMP_MODES)
def test_the_vessel_survives_any_pump(mode: str) -> None:
    worst = {"clog": 0.0, "gain": 3.0, "wrong_bag": 0.0, "override": 0.0}
    for actuator in ("perfusion", "feed", "cytokine_dose"):
        for seed in range(3):
            fault = Fault(f"pump:{actuator}", mode, 1.0, size=worst.get(mode))
            r = record(PROCESS, seed, seed=seed, recipe="cspr_100", days=21.0, faults=(fault,))
            assert r.truth["time"][-1] == pytest.approx(21.0)
            for name, column in r.truth.items():
                assert np.isfinite(column).all(), name
                assert (column >= 0.0).all(), name
