"""The truth that a virtual batch runs on: balances of its own, and on purpose not those of `twin.bioreactor`.

What differs, so that an estimator or controller is never scored on its own model:

================================  ==================================================================================
here                              in the model
================================  ==================================================================================
young and old cells               one pool with one count of doublings
lag of a quick and a slow share   one activation
free Hill exponents (1.5-3)       second order throughout
lactate taken up when G < 2 mM    lactate only released, at a constant yield
yield rises with growth rate      constant yield
cells change size                 constant size: capacitance and oxygen follow cell number alone
fouling: leak grows, flow falls   constant leak, pumps deliver what they say
pumps gain 2-5 % off              exact
samples leave, medium tops up     nothing leaves
donor-day random effects          none
================================  ==================================================================================

With `NEUTRAL` structure the two agree to rounding, which is how these balances are tested. Rate laws common to both come
from `twin.kinetics` and `twin.gas`. Units as there: 1e6 cells/mL, mM, d, VVD, L; amounts in 1e9 cells and mmol.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from twin.bioreactor import LN2, Control, State, Theta
from twin.gas import Gas, carbonate, oxygen_balance
from twin.integrate import FLOOR, substeps
from twin.kinetics import Scalar, monod, ph_optimum, senescence

REFILL = 0.05
"""Time constant with which level control tops up after a sample [d]."""


class PlantState(NamedTuple):
    """What is really in the vessel, and a ledger of what went through it. Fields: float, or arrays of one shape."""

    young_positive: Scalar  # viable young CAR+ cells [1e6 cells/mL]
    young_negative: Scalar
    old_positive: Scalar
    old_negative: Scalar
    dead: Scalar  # dead, still intact [1e6 cells/mL]
    glucose: Scalar  # [mM]
    lactate: Scalar  # [mM]
    glutamine: Scalar  # [mM]
    ammonia: Scalar  # [mM]
    cytokine: Scalar  # [IU/mL]
    age_young: Scalar  # population doublings of the young pool
    age_old: Scalar
    exhausted: Scalar  # [0..1]
    strong_ion: Scalar  # [mEq/L]
    quick: Scalar  # activation of the share that recovers quickly [0..1]
    slow: Scalar
    size: Scalar  # mean cell diameter over nominal
    fouling: Scalar  # of the retention filter; 0 when new
    volume: Scalar  # [L]
    perfused: Scalar = 0.0  # medium delivered, top-up included [L]
    fed: Scalar = 0.0  # concentrate delivered [L]
    grown: Scalar = 0.0  # viable cells born [1e9]
    died: Scalar = 0.0  # [1e9]
    lost: Scalar = 0.0  # viable cells that left through leak, bleed and samples [1e9]
    glucose_used: Scalar = 0.0  # [mmol]
    lactate_made: Scalar = 0.0  # net [mmol]

    @property
    def viable(self) -> Scalar:
        """Viable cell density [1e6 cells/mL]."""
        return self.young_positive + self.young_negative + self.old_positive + self.old_negative

    @property
    def viability(self) -> Scalar:
        """Viable over intact cells [0..1]."""
        return self.viable / (self.viable + self.dead)

    @property
    def car_fraction(self) -> Scalar:
        """CAR+ over viable cells [0..1]."""
        return (self.young_positive + self.old_positive) / self.viable

    @property
    def viable_cells(self) -> Scalar:
        """Viable cells in the vessel [1e9 cells]."""
        return self.viable * self.volume

    @property
    def doublings(self) -> Scalar:
        """Population doublings, mean over viable cells."""
        young = self.young_positive + self.young_negative
        return (young * self.age_young + (self.viable - young) * self.age_old) / self.viable


class Structure(NamedTuple):
    """How this donor and this rig depart from the model. `NEUTRAL` is the model itself."""

    hill_lactate: Scalar = 2.0  # exponent of growth inhibition
    hill_ammonia: Scalar = 2.0
    hill_death: Scalar = 2.0  # exponent of the onset of toxicity
    quick_share: Scalar = (
        1.0  # share of cells that leave lag at `quick_factor` tau_lag, the rest at `slow_factor` tau_lag
    )
    quick_factor: Scalar = 1.0
    slow_factor: Scalar = 1.0
    old_share: Scalar = 0.3  # share of old cells at inoculation
    age_gap: Scalar = 0.0  # doublings between old and young at inoculation
    lactate_uptake: Scalar = 0.0  # capacity of lactate uptake below `glucose_switch` [pmol/cell/d]
    glucose_switch: Scalar = 2.0  # [mM]
    yield_slope: Scalar = 0.0  # relative change of Y_LG from mu = mu_max/2 to mu = 3/2 mu_max
    size_slope: Scalar = 0.0  # relative diameter gained from mu = mu_max/2 to mu = 3/2 mu_max
    dead_signal: Scalar = 0.0  # capacitance of a dead intact cell over that of a viable one
    fouling_rate: Scalar = 0.0  # fouling per vessel volume of permeate at 20e6 cells/mL
    leak_growth: Scalar = 0.0  # relative growth of the leak per unit of fouling
    flow_loss: Scalar = 0.0  # relative loss of perfusion per unit of fouling


NEUTRAL = Structure()
FIXED_SIZE = 0.5
"""Time constant of cell size [d]."""


class DayEffect(NamedTuple):
    """What a donor's cells do otherwise on one day: factors on growth, uptake and death."""

    growth: Scalar = 1.0
    uptake: Scalar = 1.0
    death: Scalar = 1.0


@dataclass(frozen=True, slots=True)
class Plant:
    """Everything constant about one true batch."""

    theta: Theta  # this donor's cells, the real vessel, the medium in the bag
    structure: Structure
    pumps: Control  # delivered over commanded rate, per pump
    days: tuple[DayEffect, ...]  # one a day; after the last the last holds
    level: float  # volume that level control holds [L]


class Status(NamedTuple):
    """Specific rates and gases at one instant."""

    mu_young: Scalar  # [1/d]
    mu_old: Scalar
    death_young: Scalar  # [1/d]
    death_old: Scalar
    mu: Scalar  # mean over viable cells [1/d]
    q_glucose: Scalar  # [pmol/cell/d]
    q_lactate: Scalar  # net release [pmol/cell/d]
    q_glutamine: Scalar
    v_cytokine: Scalar  # [IU/1e6 cells/d]
    gas: Gas


def status(x: PlantState, plant: Plant, day: DayEffect) -> Status:
    """Specific rates of the true cells; the model's counterpart is `twin.bioreactor.physiology`."""
    c, v, s = plant.theta.cell, plant.theta.vessel, plant.structure
    viable = x.viable
    young_share = (x.young_positive + x.young_negative) / viable
    f_glucose, f_cytokine = monod(x.glucose, c.K_G), monod(x.cytokine, c.K_C)
    f_glutamine = monod(x.glutamine, c.K_Q)
    fresh_young, fresh_old = senescence(x.age_young, c.PD_max), senescence(x.age_old, c.PD_max)
    fresh = young_share * fresh_young + (1.0 - young_share) * fresh_old
    our = c.q_O2 * x.size**3 * viable
    oxygen = _plain(oxygen_balance(our, v.O2_set, v.O2_sat, v.kLa))
    f_oxygen = monod(oxygen, c.K_O)
    awake = s.quick_share * x.quick + (1.0 - s.quick_share) * x.slow
    growth = (
        day.growth * c.mu_max * awake * f_glucose * f_glutamine * f_cytokine * f_oxygen
        / (1.0 + (x.lactate / c.K_L) ** s.hill_lactate) / (1.0 + (x.ammonia / c.K_A) ** s.hill_ammonia)
    )  # fmt: skip
    acid = c.Y_LG * (c.a_G * growth * fresh + c.m_G) * f_glucose * viable
    bicarbonate, pco2, ph = carbonate(x.strong_ion, v.RQ * our + acid, v.pH_set, v.pCO2_floor, v.kLa_CO2)
    growth = growth * _plain(ph_optimum(ph, c.pH_opt, c.w_pH))
    mu_young, mu_old = growth * fresh_young, growth * fresh_old
    mu = growth * fresh
    starved = 1.0 - f_glucose * f_oxygen
    death = (
        c.k_d0
        + c.k_dS * starved * starved
        + c.k_dC * (1.0 - f_cytokine)
        + c.k_dL * _onset(x.lactate / c.K_DL, s.hill_death)
        + c.k_dA * _onset(x.ammonia / c.K_DA, s.hill_death)
    )
    pace = mu / c.mu_max - 0.5
    q_glucose = day.uptake * (c.a_G * mu + c.m_G) * f_glucose
    starving = 0.5 * (1.0 + _plain(np.tanh((s.glucose_switch - x.glucose) / 0.4)))
    q_lactate = (
        c.Y_LG * (1.0 + s.yield_slope * pace) * q_glucose
        - s.lactate_uptake * starving * x.lactate / (2.0 + x.lactate)
    )  # fmt: skip
    return Status(
        mu_young, mu_old,
        day.death * (death + c.k_dP * (1.0 - fresh_young)), day.death * (death + c.k_dP * (1.0 - fresh_old)),
        mu, q_glucose, q_lactate,
        day.uptake * (c.a_Q * mu + c.m_Q) * f_glutamine,
        c.v_C * monod(x.cytokine, c.K_mC),
        Gas(oxygen, our, v.RQ * our + acid, pco2, bicarbonate, ph),
    )  # fmt: skip


def _plain(v: Scalar) -> Scalar:
    """A NumPy scalar as a float, the same bits: arithmetic on floats is twice as fast. Arrays stay arrays."""
    return float(v) if isinstance(v, float) else v


def _onset(z: Scalar, exponent: Scalar) -> Scalar:
    power = z**exponent
    return power / (1.0 + power)


def plant_rates(x: PlantState, u: Control, plant: Plant, day: DayEffect) -> PlantState:
    """dx/dt [per day] under the commanded rates `u`."""
    c, v, m, s = plant.theta.cell, plant.theta.vessel, plant.theta.medium, plant.structure
    now = status(x, plant, day)
    viable, volume = x.viable, x.volume
    p = u.perfusion * plant.pumps.perfusion / (1.0 + s.flow_loss * x.fouling)
    f, bleed = u.feed * plant.pumps.feed, u.bleed * plant.pumps.bleed
    dose = u.cytokine_dose * plant.pumps.cytokine_dose
    refill = v.level * _plain(np.maximum(plant.level - volume, 0.0)) / (volume * REFILL)
    swell = (1.0 - v.level) * f + refill  # relative growth of volume
    escape = bleed + v.leak * (1.0 + s.leak_growth * x.fouling) * (p + v.level * f)
    out = escape + swell
    car = x.car_fraction
    young, old = now.mu_young - now.death_young - out, now.mu_old - now.death_old - out
    gain, drag = c.delta * car, c.delta * (1.0 - car)
    n_young, n_old = x.young_positive + x.young_negative, x.old_positive + x.old_negative
    dying = now.death_young * n_young + now.death_old * n_old
    decay = c.k_Q * x.glutamine
    fresh_medium = p + refill
    age, stress = x.doublings / c.PD_max, x.lactate / 30.0
    base = 0.5 * v.base_max * (1.0 + _plain(np.tanh((v.pH_base - now.gas.ph) / 0.05)))
    return PlantState(
        young_positive=(young - drag) * x.young_positive,
        young_negative=(young + gain) * x.young_negative,
        old_positive=(old - drag) * x.old_positive,
        old_negative=(old + gain) * x.old_negative,
        dead=dying - (c.k_lys + out) * x.dead,
        glucose=fresh_medium * (m.glucose - x.glucose) + f * (m.feed_glucose - x.glucose) - now.q_glucose * viable,
        lactate=fresh_medium * (m.lactate - x.lactate) - f * x.lactate + now.q_lactate * viable,
        glutamine=fresh_medium * (m.glutamine - x.glutamine) + f * (m.feed_glutamine - x.glutamine)
        - now.q_glutamine * viable - decay,
        ammonia=fresh_medium * (m.ammonia - x.ammonia) - f * x.ammonia + c.Y_AQ * now.q_glutamine * viable + decay,
        cytokine=fresh_medium * (m.cytokine - x.cytokine) - f * x.cytokine + dose - c.k_C * x.cytokine
        - now.v_cytokine * viable,
        age_young=now.mu_young / LN2,
        age_old=now.mu_old / LN2,
        exhausted=(c.k_E * age * age + c.e_L * stress * stress) * (1.0 - x.exhausted),
        strong_ion=(fresh_medium + f) * (m.strong_ion - x.strong_ion) - now.q_lactate * viable + base,
        quick=(1.0 - x.quick) / (c.tau_lag * s.quick_factor),
        slow=(1.0 - x.slow) / (c.tau_lag * s.slow_factor),
        size=(1.0 + s.size_slope * (now.mu / c.mu_max - 0.5) - x.size) / FIXED_SIZE,
        fouling=s.fouling_rate * p * viable / 20.0,
        volume=swell * volume,
        perfused=fresh_medium * volume,
        fed=f * volume,
        grown=(now.mu_young * n_young + now.mu_old * n_old) * volume,
        died=dying * volume,
        lost=escape * viable * volume,
        glucose_used=now.q_glucose * viable * volume,
        lactate_made=now.q_lactate * viable * volume,
    )  # fmt: skip


_LOW = PlantState(
    young_positive=FLOOR.car_positive, young_negative=FLOOR.car_negative, old_positive=FLOOR.car_positive,
    old_negative=FLOOR.car_negative, dead=FLOOR.dead, glucose=FLOOR.glucose, lactate=FLOOR.lactate,
    glutamine=FLOOR.glutamine, ammonia=FLOOR.ammonia, cytokine=FLOOR.cytokine, age_young=0.0, age_old=0.0,
    exhausted=FLOOR.exhausted, strong_ion=FLOOR.strong_ion, quick=0.0, slow=0.0, size=0.1, fouling=0.0,
    volume=FLOOR.volume, lactate_made=-math.inf,
)  # fmt: skip


def carry(plant: Plant, x: PlantState, u: Control, at: float, span: float) -> PlantState:
    """The plant `span` days after `at` [d] under the commanded rates `u`; RK4 of at most 15 min, split at midnights."""
    end = at + span
    while end - at > 1e-9:
        stop = min(end, math.floor(at + 1e-9) + 1.0)
        day = plant.days[min(int(at + 1e-9), len(plant.days) - 1)]
        n = substeps(stop - at)
        for _ in range(n):
            x = _step(plant, x, u, day, (stop - at) / n)
        at = stop
    return x


def _step(plant: Plant, x: PlantState, u: Control, day: DayEffect, h: float) -> PlantState:
    k1 = plant_rates(x, u, plant, day)
    k2 = plant_rates(PlantState(*[a + 0.5 * h * b for a, b in zip(x, k1, strict=True)]), u, plant, day)
    k3 = plant_rates(PlantState(*[a + 0.5 * h * b for a, b in zip(x, k2, strict=True)]), u, plant, day)
    k4 = plant_rates(PlantState(*[a + h * b for a, b in zip(x, k3, strict=True)]), u, plant, day)
    w = h / 6.0
    raw = (a + w * (b + 2.0 * (p + q) + r) for a, b, p, q, r in zip(x, k1, k2, k3, k4, strict=True))
    if isinstance(x.volume, np.ndarray):
        return PlantState(*[np.maximum(a, low) for a, low in zip(raw, _LOW, strict=True)])
    return PlantState(*[max(float(a), low) for a, low in zip(raw, _LOW, strict=True)])


def inoculate(x: State, structure: Structure) -> PlantState:
    """The plant at inoculation from the model's state: cells split into young and old about the same mean age."""
    old = structure.old_share
    return PlantState(
        young_positive=x.car_positive * (1.0 - old), young_negative=x.car_negative * (1.0 - old),
        old_positive=x.car_positive * old, old_negative=x.car_negative * old,
        dead=x.dead, glucose=x.glucose, lactate=x.lactate, glutamine=x.glutamine, ammonia=x.ammonia, cytokine=x.cytokine,
        age_young=max(0.0, x.doublings - old * structure.age_gap), age_old=x.doublings + (1.0 - old) * structure.age_gap,
        exhausted=x.exhausted, strong_ion=x.strong_ion, quick=x.activation, slow=x.activation,
        size=1.0, fouling=0.0, volume=x.volume,
    )  # fmt: skip


def withdraw(x: PlantState, litres: float) -> PlantState:
    """A sample taken: volume and cells leave, concentrations stay. The vessel is never emptied."""
    litres = min(litres, 0.5 * x.volume)
    return x._replace(volume=x.volume - litres, lost=x.lost + litres * x.viable)
