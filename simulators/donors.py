"""Virtual donors: kinetics about the preset's medians, and a structure that the model does not have. Seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulators.plant import NEUTRAL, DayEffect, Plant, PlantState, Structure, inoculate
from twin.bioreactor import Control, Coordinates, Kinetics, State, Vessel, from_coordinates, to_coordinates
from twin.process import Process

DAYS = 40
CORRELATED = (
    ("mu_max", "a_G", 0.3), ("mu_max", "tau_lag", -0.3), ("mu_max", "PD_max", 0.2), ("K_L", "PD_max", 0.4),
    ("a_G", "a_Q", 0.3), ("k_d0", "PD_max", -0.3), ("a_G", "q_O2", 0.3),
)  # fmt: skip
"""Assumed correlations of ln parameters across donors (asm): quick growers eat more, wake sooner and last longer."""

DAY_SD = DayEffect(growth=0.06, uptake=0.05, death=0.15)
"""Donor-day effects, standard deviation of ln (SCIENCE: day-dependent noise of 3-6 %/sqrt(d) on densities)."""

PUMP_SD = 0.03
"""Gain error of the pumps (SCIENCE section 3: 2-5 %)."""


@dataclass(frozen=True, slots=True)
class VirtualDonor:
    """One donor on one rig: all that is random about a batch but the instruments."""

    id: str
    cell: Kinetics
    initial: State  # at inoculation of the bioreactor
    structure: Structure
    vessel: Vessel  # the real one; the twin knows the nominal one
    pumps: Control  # delivered over commanded rate
    days: tuple[DayEffect, ...]

    def plant(self, process: Process) -> Plant:
        """This donor in `process`'s medium."""
        theta = process.theta._replace(cell=self.cell, vessel=self.vessel)
        return Plant(theta, self.structure, self.pumps, self.days, float(self.initial.volume))

    def start(self) -> PlantState:
        """The vessel at inoculation."""
        return inoculate(self.initial, self.structure)


def median_donor(process: Process, structure: Structure = NEUTRAL) -> VirtualDonor:
    """The donor at the preset's medians, without chance; with `NEUTRAL` structure the plant is the model itself."""
    return VirtualDonor(
        "median", process.theta.cell, process.initial, structure, process.theta.vessel, Control(1.0, 1.0, 1.0, 1.0), (DayEffect(),)
    )  # fmt: skip


def virtual_donor(process: Process, seed: int, mismatch: float = 1.0) -> VirtualDonor:
    """Donor number `seed` of the preset's population.

    `mismatch` scales every departure from the model's structure, pump errors and donor-day effects included: 1 as
    SCIENCE lists them, 0 a donor who obeys the model. Kinetics and seed state do not depend on it.
    """
    if not 0.0 <= mismatch <= 2.0:
        raise ValueError(f"mismatch {mismatch!r}: a number from 0 (plant = model) to 2 is needed")
    kinetics, seeding, shape, rig, daily = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5))
    cell = _draw_cell(process, kinetics)
    vessel = process.theta.vessel
    gain = np.exp(mismatch * 0.08 * rig.standard_normal(2))
    vessel = vessel._replace(kLa=vessel.kLa * float(gain[0]), kLa_CO2=vessel.kLa_CO2 * float(gain[1]))
    pumps = 1.0 + mismatch * np.clip(PUMP_SD * rig.standard_normal(4), -0.08, 0.08)
    factors = np.exp(mismatch * np.array(DAY_SD) * daily.standard_normal((DAYS, 3)))
    return VirtualDonor(
        id=f"D{seed:02d}",
        cell=cell,
        initial=_draw_initial(process, seeding),
        structure=_draw_structure(shape, mismatch),
        vessel=vessel,
        pumps=Control(*(float(g) for g in pumps)),
        days=tuple(DayEffect(*(float(v) for v in row)) for row in factors),
    )


def _draw_cell(process: Process, rng: np.random.Generator) -> Kinetics:
    names = [n for n in Kinetics._fields if n in process.donor_sd]
    corr = np.eye(len(names))
    for a, b, rho in CORRELATED:
        if a in names and b in names:
            i, j = names.index(a), names.index(b)
            corr[i, j] = corr[j, i] = rho
    z = np.linalg.cholesky(corr) @ rng.standard_normal(len(names))
    ln = {n: process.donor_sd[n] * float(np.clip(value, -3.0, 3.0)) for n, value in zip(names, z, strict=True)}
    return process.theta.cell._replace(**{n: float(getattr(process.theta.cell, n) * np.exp(v)) for n, v in ln.items()})


def _draw_initial(process: Process, rng: np.random.Generator) -> State:
    """Seed state: each coordinate log-normal about the process's own, at most 3 sd out."""
    z = np.clip(rng.standard_normal(len(Coordinates._fields)), -3.0, 3.0)
    centre = to_coordinates(process.initial)
    drawn = Coordinates(*(float(v * np.exp(s * e)) for v, s, e in zip(centre, process.initial_sd, z, strict=True)))
    x = from_coordinates(drawn)
    return x._replace(exhausted=min(x.exhausted, 0.5), activation=min(x.activation, 0.9))


def _draw_structure(rng: np.random.Generator, mismatch: float) -> Structure:
    drawn = Structure(
        hill_lactate=rng.uniform(1.5, 3.0),
        hill_ammonia=rng.uniform(1.5, 3.0),
        hill_death=rng.uniform(1.5, 3.0),
        quick_share=rng.uniform(0.5, 0.8),
        quick_factor=0.6,
        slow_factor=1.6,
        old_share=rng.uniform(0.15, 0.4),
        age_gap=rng.uniform(1.5, 4.0),
        lactate_uptake=0.8 * float(np.exp(0.4 * rng.standard_normal())),
        glucose_switch=2.0,
        yield_slope=rng.normal(0.15, 0.10),
        size_slope=rng.uniform(0.05, 0.15),
        dead_signal=rng.uniform(0.2, 0.6),
        fouling_rate=0.15 * float(np.exp(0.5 * rng.standard_normal())),
        leak_growth=2.0,
        flow_loss=0.08,
    )
    return Structure(*(float(n + mismatch * (d - n)) for n, d in zip(NEUTRAL, drawn, strict=True)))


TYPICAL = Structure(
    hill_lactate=2.2, hill_ammonia=2.2, hill_death=2.2, quick_share=0.65, quick_factor=0.6, slow_factor=1.6, old_share=0.28,
    age_gap=2.7, lactate_uptake=0.8, glucose_switch=2.0, yield_slope=0.15, size_slope=0.10, dead_signal=0.4,
    fouling_rate=0.15, leak_growth=2.0, flow_loss=0.08,
)  # fmt: skip
"""The middle of what `virtual_donor` draws: for looking at the plant without chance."""
