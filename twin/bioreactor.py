"""The process model: one definition, read by the plant's skeleton, the estimator, the MPC and the donor fit.

Units need no conversion factors: densities in 1e6 cells/mL, concentrations in mM, time in days, specific rates in
pmol/cell/d (times 1e6 cells/mL is mM/d), flows in vessel volumes per day (VVD), volume in litres.
Fields may hold float, ndarray, CasADi or PyTensor values; see `twin.kinetics` for the one rule that makes this work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from twin.gas import Gas, carbonate, oxygen_balance
from twin.kinetics import Scalar, hill2, inhibition, monod, ph_optimum, senescence

LN2 = float(np.log(2.0))


class State(NamedTuple):
    """The well-mixed vessel; field order is the vector layout.

    The viable pool is kept as CAR+ and CAR- cells, so that both stay positive and the CAR+ fraction stays in (0, 1).
    """

    car_positive: Scalar  # viable CAR+ cells [1e6 cells/mL]
    car_negative: Scalar  # viable CAR- cells [1e6 cells/mL]
    dead: Scalar  # dead, still intact cells [1e6 cells/mL]
    glucose: Scalar  # [mM]
    lactate: Scalar  # [mM]
    glutamine: Scalar  # [mM]
    ammonia: Scalar  # [mM]
    cytokine: Scalar  # IL-2 or IL-15 activity [IU/mL]
    doublings: Scalar  # cumulative population doublings of the live pool
    exhausted: Scalar  # exhausted (dysfunctional) fraction of viable cells [0..1]
    strong_ion: Scalar  # strong-ion difference [mEq/L]
    activation: Scalar  # recovery from lag [0..1]
    volume: Scalar  # culture volume [L]

    @property
    def viable(self) -> Scalar:
        """Viable cell density [1e6 cells/mL]."""
        return self.car_positive + self.car_negative

    @property
    def viability(self) -> Scalar:
        """Viable over intact cells [0..1]."""
        return self.viable / (self.viable + self.dead)

    @property
    def car_fraction(self) -> Scalar:
        """CAR+ over viable cells [0..1]."""
        return self.car_positive / self.viable

    @property
    def viable_cells(self) -> Scalar:
        """Viable cells in the vessel [1e9 cells]."""
        return self.viable * self.volume


class Coordinates(NamedTuple):
    """The same 13 degrees of freedom as positive quantities whose logarithms a filter can treat as Gaussian.

    The viable pool is described by its density and the odds CAR+ : CAR-, so that a count informs one coordinate and a
    flow sample the other, each linearly. (With the two densities instead, the sum is curved in the coordinates and the
    unscented filter overstated the variance of counts about twofold.)
    """

    viable: Scalar  # [1e6 cells/mL]
    car_odds: Scalar  # CAR+ : CAR-
    dead: Scalar
    glucose: Scalar
    lactate: Scalar
    glutamine: Scalar
    ammonia: Scalar
    cytokine: Scalar
    doublings: Scalar
    exhausted: Scalar
    strong_ion: Scalar
    activation: Scalar
    volume: Scalar


def to_coordinates(x: State) -> Coordinates:
    """State to coordinates; units as in `State`."""
    return Coordinates(x.viable, x.car_positive / x.car_negative, *x[2:])


def from_coordinates(c: Coordinates) -> State:
    """Coordinates to state."""
    negative = c.viable / (1.0 + c.car_odds)
    return State(negative * c.car_odds, negative, *c[2:])


class Control(NamedTuple):
    """Manipulated rates, as the pumps deliver them."""

    perfusion: Scalar = 0.0  # fresh medium in, cell-free permeate out [VVD]
    feed: Scalar = 0.0  # concentrated feed [VVD]
    bleed: Scalar = 0.0  # culture out, cells included [VVD]
    cytokine_dose: Scalar = 0.0  # [IU/mL/d]


class Kinetics(NamedTuple):
    """What differs between cell types and donors. Values, donor spread and sources: `configs/presets`."""

    mu_max: Scalar  # maximum specific growth rate [1/d]
    tau_lag: Scalar  # lag time constant [d]
    K_G: Scalar  # Monod constant, glucose [mM]
    K_Q: Scalar  # Monod constant, glutamine [mM]
    K_L: Scalar  # growth inhibition by lactate [mM]
    K_A: Scalar  # growth inhibition by ammonia [mM]
    K_C: Scalar  # half-saturation of cytokine [IU/mL]
    K_O: Scalar  # half-saturation of oxygen [mM]
    pH_opt: Scalar  # [pH]
    w_pH: Scalar  # width of the pH optimum [pH]
    k_d0: Scalar  # basal death [1/d]
    k_dS: Scalar  # death by starvation of glucose or oxygen [1/d]
    k_dC: Scalar  # death by want of cytokine [1/d]
    k_dL: Scalar  # death by lactate [1/d]
    k_dA: Scalar  # death by ammonia [1/d]
    k_dP: Scalar  # death at the replicative limit [1/d]
    K_DL: Scalar  # onset of lactate toxicity [mM]
    K_DA: Scalar  # onset of ammonia toxicity [mM]
    k_lys: Scalar  # lysis of dead cells [1/d]
    a_G: Scalar  # glucose per growth [pmol/cell]
    m_G: Scalar  # glucose maintenance [pmol/cell/d]
    Y_LG: Scalar  # lactate from glucose [mol/mol]
    a_Q: Scalar  # glutamine per growth [pmol/cell]
    m_Q: Scalar  # glutamine maintenance [pmol/cell/d]
    Y_AQ: Scalar  # ammonia from glutamine [mol/mol]
    k_Q: Scalar  # spontaneous glutamine decay to ammonia [1/d]
    q_O2: Scalar  # specific oxygen uptake [pmol/cell/d]
    k_C: Scalar  # cytokine decay at 37 degC [1/d]
    v_C: Scalar  # cytokine uptake capacity [IU/1e6 cells/d]
    K_mC: Scalar  # half-saturation of cytokine uptake [IU/mL]
    PD_max: Scalar  # replicative limit [doublings]
    delta: Scalar  # growth handicap of CAR+ cells [1/d]
    k_E: Scalar  # exhaustion with replicative age [1/d]
    e_L: Scalar  # exhaustion with lactate [1/d]


class Vessel(NamedTuple):
    """What belongs to the reactor, not to the cells."""

    kLa: Scalar  # oxygen transfer [1/h]
    kLa_CO2: Scalar  # carbon dioxide stripping [1/h]
    O2_sat: Scalar  # O2 in equilibrium with the gas in use [mM]
    O2_set: Scalar  # O2 held by the DO loop while supply lasts [mM]
    pH_set: Scalar  # held by the CO2 loop while it can [pH]
    pCO2_floor: Scalar  # [mmHg]
    RQ: Scalar  # respiratory quotient [mol/mol]
    leak: Scalar  # fraction of viable and dead cells that pass the retention device (1 - retention)
    base_max: Scalar  # capacity of the base pump [mEq/L/d]
    pH_base: Scalar  # pH below which the base pump works [pH]
    level: Scalar  # 1: harvest keeps the volume level; 0: feed makes it grow (fed-batch)


class Medium(NamedTuple):
    """Composition of the perfusion medium and of the concentrated feed."""

    glucose: Scalar  # [mM]
    lactate: Scalar  # [mM]
    glutamine: Scalar  # [mM]
    ammonia: Scalar  # [mM]
    cytokine: Scalar  # [IU/mL]
    strong_ion: Scalar  # [mEq/L]
    feed_glucose: Scalar  # [mM]
    feed_glutamine: Scalar  # [mM]


class Theta(NamedTuple):
    """Everything that parametrises `rates`."""

    cell: Kinetics
    vessel: Vessel
    medium: Medium


class Physiology(NamedTuple):
    """Specific rates of the cells and the gas status they sit in, at one instant."""

    mu: Scalar  # specific growth rate [1/d]
    k_d: Scalar  # specific death rate [1/d]
    q_G: Scalar  # glucose uptake [pmol/cell/d]
    q_L: Scalar  # lactate release [pmol/cell/d]
    q_Q: Scalar  # glutamine uptake [pmol/cell/d]
    q_A: Scalar  # ammonia release [pmol/cell/d]
    v_C: Scalar  # cytokine uptake [IU/1e6 cells/d]
    gas: Gas


def physiology(x: State, theta: Theta) -> Physiology:
    """Specific rates at state `x` (SCIENCE section 1).

    CER counts respiration plus the CO2 that lactic acid drives out of bicarbonate. The acid is taken at the growth rate
    before the pH factor (which is within 10 % of 1 over pH 6.9-7.4): that breaks the loop pH -> mu -> acid -> pH.
    """
    c, v = theta.cell, theta.vessel
    viable = x.viable
    f_glucose, f_cytokine = monod(x.glucose, c.K_G), monod(x.cytokine, c.K_C)
    f_glutamine = monod(x.glutamine, c.K_Q)
    fresh = senescence(x.doublings, c.PD_max)
    our = c.q_O2 * viable
    oxygen = oxygen_balance(our, v.O2_set, v.O2_sat, v.kLa)
    f_oxygen = monod(oxygen, c.K_O)
    unbuffered = (
        c.mu_max * x.activation * f_glucose * f_glutamine * f_cytokine * f_oxygen * fresh
        * inhibition(x.lactate, c.K_L) * inhibition(x.ammonia, c.K_A)
    )  # fmt: skip
    cer = v.RQ * our + c.Y_LG * (c.a_G * unbuffered + c.m_G) * f_glucose * viable
    bicarbonate, pco2, ph = carbonate(x.strong_ion, cer, v.pH_set, v.pCO2_floor, v.kLa_CO2)
    mu = unbuffered * ph_optimum(ph, c.pH_opt, c.w_pH)
    starved = 1.0 - f_glucose * f_oxygen
    k_d = (
        c.k_d0
        + c.k_dS * starved * starved
        + c.k_dC * (1.0 - f_cytokine)
        + c.k_dL * hill2(x.lactate, c.K_DL)
        + c.k_dA * hill2(x.ammonia, c.K_DA)
        + c.k_dP * (1.0 - fresh)
    )
    q_glucose = (c.a_G * mu + c.m_G) * f_glucose
    q_glutamine = (c.a_Q * mu + c.m_Q) * f_glutamine
    return Physiology(
        mu=mu,
        k_d=k_d,
        q_G=q_glucose,
        q_L=c.Y_LG * q_glucose,
        q_Q=q_glutamine,
        q_A=c.Y_AQ * q_glutamine,
        v_C=c.v_C * monod(x.cytokine, c.K_mC),
        gas=Gas(oxygen, our, cer, pco2, bicarbonate, ph),
    )


def rates(x: State, u: Control, theta: Theta) -> State:
    """Mass balances dx/dt [per day]: the only place where they are written.

    Perfusion replaces medium and keeps cells (all but the leak). Feed enters at `u.feed`; with `vessel.level` 1 the
    permeate makes room for it, with 0 the volume grows and cells are diluted (fed-batch). Solutes obey the same
    ``F (c_feed - c)`` either way: what leaves with the permeate equals what growth in volume dilutes.
    Lactate, ammonia and cytokine are absent from the feed; its strong-ion difference is the medium's.
    """
    c, v, m = theta.cell, theta.vessel, theta.medium
    p, f, viable = u.perfusion, u.feed, x.viable
    phys = physiology(x, theta)
    growth_of_volume = (1.0 - v.level) * f
    outflow = u.bleed + v.leak * (p + v.level * f) + growth_of_volume
    net = phys.mu - phys.k_d - outflow
    car_fraction = x.car_fraction
    decay = c.k_Q * x.glutamine
    age = x.doublings / c.PD_max
    stress = x.lactate / 30.0
    base = 0.5 * v.base_max * (1.0 + np.tanh((v.pH_base - phys.gas.ph) / 0.05))
    return State(
        car_positive=(net - c.delta * (1.0 - car_fraction)) * x.car_positive,
        car_negative=(net + c.delta * car_fraction) * x.car_negative,
        dead=phys.k_d * viable - (c.k_lys + outflow) * x.dead,
        glucose=p * (m.glucose - x.glucose) + f * (m.feed_glucose - x.glucose) - phys.q_G * viable,
        lactate=p * (m.lactate - x.lactate) - f * x.lactate + phys.q_L * viable,
        glutamine=p * (m.glutamine - x.glutamine) + f * (m.feed_glutamine - x.glutamine) - phys.q_Q * viable - decay,
        ammonia=p * (m.ammonia - x.ammonia) - f * x.ammonia + phys.q_A * viable + decay,
        cytokine=p * (m.cytokine - x.cytokine) - f * x.cytokine + u.cytokine_dose - c.k_C * x.cytokine - phys.v_C * viable,
        doublings=phys.mu / LN2,
        exhausted=(c.k_E * age * age + c.e_L * stress * stress) * (1.0 - x.exhausted),
        strong_ion=(p + f) * (m.strong_ion - x.strong_ion) - phys.q_L * viable + base,
        activation=(1.0 - x.activation) / c.tau_lag,
        volume=growth_of_volume * x.volume,
    )  # fmt: skip
