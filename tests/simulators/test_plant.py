"""The plant's own balances: the model when neutral, closed in mass, near the published course."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.donors import TYPICAL, median_donor, virtual_donor
from simulators.plant import NEUTRAL, DayEffect, Plant, PlantState, carry, inoculate, plant_rates, status, withdraw
from twin.bioreactor import Control, State, rates
from twin.config import load_config

PROCESS = load_config("car_nk")
NO_DAY = DayEffect()

STATES = st.builds(
    State,
    car_positive=st.floats(0.01, 30), car_negative=st.floats(0.01, 30), dead=st.floats(0.01, 20), glucose=st.floats(0.01, 40),
    lactate=st.floats(0.01, 45), glutamine=st.floats(0.01, 8), ammonia=st.floats(0.01, 8), cytokine=st.floats(0.1, 400),
    doublings=st.floats(1, 22), exhausted=st.floats(0.01, 0.9), strong_ion=st.floats(5, 40), activation=st.floats(0.01, 1),
    volume=st.just(1.0),
)  # fmt: skip
CONTROLS = st.builds(Control, st.floats(0, 2), st.floats(0, 0.05), st.floats(0, 0.3), st.floats(0, 600))


@settings(max_examples=150, deadline=None)
@given(STATES, CONTROLS, st.sampled_from([0.0, 1.0]))
def test_without_its_departures_the_plant_is_the_model(x: State, u: Control, level: float) -> None:
    theta = PROCESS.theta._replace(vessel=PROCESS.theta.vessel._replace(level=level))
    plant = Plant(theta, NEUTRAL, Control(1.0, 1.0, 1.0, 1.0), (NO_DAY,), 1.0)
    truth = plant_rates(inoculate(x, NEUTRAL), u, plant, NO_DAY)
    model = rates(x, u, theta)
    pairs = {
        "car_positive": truth.young_positive + truth.old_positive,
        "car_negative": truth.young_negative + truth.old_negative,
        "doublings": truth.age_old,
        "activation": truth.quick,
    } | {n: getattr(truth, n) for n in State._fields if n in PlantState._fields}
    for name, mine in pairs.items():
        theirs = getattr(model, name)
        assert mine == pytest.approx(theirs, rel=1e-12, abs=1e-11), name
    assert truth.age_young == truth.age_old
    assert truth.size == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(STATES, CONTROLS, st.floats(0.9, 1.0), st.floats(0, 3), st.sampled_from([0.0, 1.0]), st.integers(0, 50))
def test_every_balance_closes(x: State, u: Control, volume: float, fouling: float, level: float, seed: int) -> None:
    donor = virtual_donor(PROCESS, seed)
    plant = donor.plant(PROCESS)
    plant = replace(plant, theta=plant.theta._replace(vessel=plant.theta.vessel._replace(level=level)), level=1.0)
    day = donor.days[3]
    y = inoculate(x, donor.structure)._replace(volume=volume, fouling=fouling)
    d, now, m, c = plant_rates(y, u, plant, day), status(y, plant, day), plant.theta.medium, plant.theta.cell

    def amount(name: str) -> float:  # d(V c)/dt
        return d.volume * getattr(y, name) + volume * getattr(d, name)

    viable = sum(
        d.volume * getattr(y, n) + volume * getattr(d, n)
        for n in ("young_positive", "young_negative", "old_positive", "old_negative")
    )
    permeate = d.perfused + d.fed - d.volume  # what comes in and does not stay goes out
    assert viable == pytest.approx(d.grown - d.died - d.lost, rel=1e-9, abs=1e-9)
    assert amount("glucose") == pytest.approx(
        d.perfused * m.glucose + d.fed * m.feed_glucose - permeate * y.glucose - d.glucose_used, rel=1e-9, abs=1e-9
    )
    assert amount("lactate") == pytest.approx(
        d.perfused * m.lactate - permeate * y.lactate + d.lactate_made, rel=1e-9, abs=1e-9
    )
    nitrogen = amount("glutamine") + amount(
        "ammonia"
    )  # ammonia appears only where glutamine goes, less what cells keep
    kept = (1.0 - c.Y_AQ) * now.q_glutamine * y.viable * volume
    assert nitrogen == pytest.approx(
        d.perfused * (m.glutamine + m.ammonia) + d.fed * m.feed_glutamine - permeate * (y.glutamine + y.ammonia) - kept,
        rel=1e-9, abs=1e-9,
    )  # fmt: skip


def run(plant: Plant, x: PlantState, days: int, perfusion: float | None, sample_l: float = 0.0) -> PlantState:
    for hour in range(24 * days):
        steps = 0.0 if x.viable < 2 else 0.5 if x.viable < 10 else 0.75 if x.viable < 15 else 1.0
        u = Control(steps if perfusion is None else perfusion, 0.0, 0.0, 300.0)
        x = carry(plant, x, u, hour / 24, 1 / 24)
        if sample_l and hour % 12 == 0:
            x = withdraw(x, sample_l)
    return x


def test_the_ledger_of_a_sampled_batch_closes() -> None:
    donor = virtual_donor(PROCESS, 11)
    x0 = donor.start()
    x = run(donor.plant(PROCESS), x0, 14, None, sample_l=0.004)
    assert x.viable_cells == pytest.approx(x0.viable_cells + x.grown - x.died - x.lost, rel=1e-6)
    assert x.lost > 0.0
    assert x.volume == pytest.approx(donor.initial.volume, rel=0.01)  # level control made good what was sampled


def test_acid_and_lactate_move_together_in_a_closed_vessel() -> None:
    donor = virtual_donor(PROCESS, 4)
    plant = donor.plant(PROCESS)
    plant = replace(plant, theta=plant.theta._replace(vessel=plant.theta.vessel._replace(base_max=0.0)))
    x0 = donor.start()
    x = x0
    for hour in range(24 * 8):
        x = carry(plant, x, Control(cytokine_dose=300.0), hour / 24, 1 / 24)
    assert x.lactate > 10.0
    assert x.lactate + x.strong_ion == pytest.approx(x0.lactate + x0.strong_ion, rel=1e-9)
    assert x.lactate - x0.lactate == pytest.approx(x.lactate_made / x.volume, rel=1e-9)


@pytest.mark.parametrize("structure", [NEUTRAL, TYPICAL])
def test_density_steps_reach_the_published_course(structure: object) -> None:
    donor = median_donor(PROCESS, structure)  # type: ignore[arg-type]
    x = run(donor.plant(PROCESS), donor.start(), 14, None)
    assert 25.0 < x.viable < 30.0  # SCIENCE section 1: 28.9e6/mL, viability .84, lactate 27 mM, 7.5 volumes
    assert 0.81 < x.viability < 0.87
    assert 24.0 < x.lactate < 31.0
    assert 6.5 < x.perfused < 8.5


def test_without_dosing_the_culture_stalls_and_dies() -> None:
    donor = median_donor(PROCESS, TYPICAL)
    plant, x, peak = donor.plant(PROCESS), donor.start(), 0.0
    for hour in range(24 * 14):
        x = carry(plant, x, Control(0.5), hour / 24, 1 / 24)
        peak = max(peak, x.viable)
    assert peak < 3.0
    assert x.viable < 0.5 * peak


def test_lactate_is_taken_up_when_glucose_runs_out() -> None:
    donor = median_donor(PROCESS, TYPICAL)
    plant = donor.plant(PROCESS)
    x = donor.start()._replace(glucose=0.3, lactate=10.0, young_positive=5.0, quick=1.0, slow=1.0)
    assert status(x, plant, NO_DAY).q_lactate < 0.0
    assert status(x._replace(glucose=10.0), plant, NO_DAY).q_lactate > 0.0


def test_starvation_keeps_everything_positive_and_finite() -> None:
    donor = virtual_donor(PROCESS, 2)
    x = donor.start()._replace(young_positive=20.0, old_negative=10.0)
    x = run(donor.plant(PROCESS), x, 14, 0.0)
    values = np.array(x)
    assert np.isfinite(values).all()
    assert (values[:19] >= 0.0).all()
    assert x.glucose < 0.1


def test_the_step_is_small_enough() -> None:
    donor = virtual_donor(PROCESS, 6)
    plant = donor.plant(PROCESS)
    coarse = fine = donor.start()
    for hour in range(24 * 12):
        u = Control(0.8 if hour > 96 else 0.0, 0.0, 0.0, 300.0)
        coarse = carry(plant, coarse, u, hour / 24, 1 / 24)
        for part in range(8):
            fine = carry(plant, fine, u, hour / 24 + part / 192, 1 / 192)
    assert coarse.viable == pytest.approx(fine.viable, rel=1e-5)
    assert coarse.glucose == pytest.approx(fine.glucose, rel=1e-4)


def test_arrays_of_plants_run_as_single_ones_do() -> None:
    donor = median_donor(PROCESS, TYPICAL)
    plant, x = donor.plant(PROCESS), donor.start()
    many = PlantState(*(np.array([v, v]) for v in x))
    u = Control(0.5, 0.0, 0.0, 300.0)
    one, two = carry(plant, x, u, 0.0, 3.0), carry(plant, many, u, 0.0, 3.0)
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx([a, a], rel=1e-9)


def test_fouling_lets_cells_through_and_costs_flow() -> None:
    donor = median_donor(PROCESS, TYPICAL)
    plant = donor.plant(PROCESS)
    clean = donor.start()._replace(young_positive=10.0)
    fouled = clean._replace(fouling=2.0)
    u = Control(1.0, 0.0, 0.0, 300.0)
    a, b = plant_rates(clean, u, plant, NO_DAY), plant_rates(fouled, u, plant, NO_DAY)
    assert b.lost > 2.0 * a.lost
    assert b.perfused < a.perfused
