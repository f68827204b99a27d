"""What a plan costs: medium, cytokine, moves, soft limits on the way, targets missed at harvest. Pure expressions.

Everything is priced in vessel volumes of medium (`Prices`), so that a trade is legible: one mM of lactate above its soft
limit for a day is worth .03 volumes; a dose missed by 1 % is worth three.
Soft limits carry slacks with a linear and a quadratic price; a limit that can be held at a fair price is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from controllers.mpc.settings import Prices
from twin.bioreactor import Control, Physiology, State
from twin.gas import osmolality
from twin.kinetics import Scalar
from twin.process import Limits

PATH = ("glucose", "lactate", "lactate_hard", "ammonia", "cytokine", "ph_low", "ph_high", "oxygen", "osmolality")
N_PATH = len(PATH)
N_PATH_LIMITS = N_PATH + 1  # and the largest step of perfusion

N_CLOSING = 3
"""Terms of `closing_terms`."""

PATH_SCALE = (5.0, 5.0, 5.0, 1.0, 50.0, 0.1, 0.1, 0.02, 20.0)
"""Slacks are in units of these [mM, mM, mM, mM, IU/mL, pH, pH, mM, mOsm/kg]."""

LOGARITHMIC = ("viable_cells", "viable_density", "lactate", "ammonia")
"""CQAs that are amounts: a miss is measured as ln of the ratio. The others are fractions: a miss is a difference."""


@dataclass(frozen=True, slots=True)
class Economy:
    """Prices and path limits, as symbols or numbers."""

    prices: Prices
    limits: list[Any]


def limit_vector(limits: Limits, reserve: float) -> np.ndarray:
    """The operating limits in the order that `path_violations` reads, then the largest step of perfusion [VVD].

    `reserve` is the share of the hard lactate limit that is held back.
    """
    return np.array([
        limits.glucose_min, limits.lactate_soft, limits.lactate_hard * (1.0 - reserve), limits.ammonia_max, limits.cytokine_min,
        limits.ph_min, limits.ph_max, limits.oxygen_min, limits.osmolality_max, limits.perfusion_step,
    ])  # fmt: skip


def path_violations(x: State, phys: Physiology, economy: Economy) -> list[Scalar]:
    """By how much `x` is beyond each limit of `PATH`, in units of `PATH_SCALE`; negative where it is within."""
    low_glucose, soft, hard, ammonia, cytokine, ph_low, ph_high, oxygen, osmotic = economy.limits[:N_PATH]
    beyond = (
        low_glucose - x.glucose,
        x.lactate - soft,
        x.lactate - hard,
        x.ammonia - ammonia,
        cytokine - x.cytokine,
        ph_low - phys.gas.ph,
        phys.gas.ph - ph_high,
        oxygen - phys.gas.oxygen,
        osmolality(x.glucose, x.lactate, x.glutamine, x.strong_ion) - osmotic,
    )
    return [value / unit for value, unit in zip(beyond, PATH_SCALE, strict=True)]


def path_prices(p: Prices) -> tuple[Scalar, ...]:
    """Prices of the limits of `PATH` [volumes per unit and day]."""
    return p.glucose, p.lactate, p.lactate_hard, p.ammonia, p.cytokine, p.ph, p.ph, p.oxygen, p.osmolality


def running_cost(u: Control, economy: Economy) -> Scalar:
    """Consumption per day [volumes of medium per day]."""
    p = economy.prices
    return p.medium * u.perfusion + p.feed * u.feed + p.dose * u.cytokine_dose


def slack_cost(slacks: list[Scalar], h: Scalar, economy: Economy) -> Scalar:
    """Price of the slacks (units of `PATH_SCALE`) over a stage of `h` days; never quite 0, so that the optimum is unique."""
    total = 0.0
    for s, price, unit in zip(slacks, path_prices(economy.prices), PATH_SCALE, strict=True):
        amount = s * unit
        total = total + (h * price + 1e-6) * (amount + economy.prices.quadratic / unit * amount * amount)
    return total


def closing_terms(x: State, spent: Scalar, left: Scalar, economy: Economy) -> list[tuple[Scalar, Scalar]]:
    """Excesses at harvest and their prices: medium beyond what was left, lactate and ammonia that the culture carries.

    Without the last two a plan coasts: it stops perfusing a day before harvest, and where the dose is then missed by a
    little, the culture has no way back.
    """
    p = economy.prices
    return [
        (spent - left, p.budget),
        (x.lactate - economy.limits[PATH.index("lactate")], p.end_lactate),
        (x.ammonia - economy.limits[PATH.index("ammonia")], p.end_ammonia),
    ]


def attribute(cqa: str, x: State) -> Scalar:
    """A CQA of the harvest, in its own unit."""
    values = {
        "viable_cells": x.viable_cells, "viable_density": x.viable, "viability": x.viability, "car_fraction": x.car_fraction,
        "exhausted_fraction": x.exhausted, "lactate": x.lactate, "ammonia": x.ammonia,
    }  # fmt: skip
    return values[cqa]


def target_shortfall(cqa: str, sense: str, x: State, value: Scalar) -> tuple[Scalar, bool]:
    """By how much the harvest `x` misses a target (negative: met), and whether that is in ln of the amount."""
    have, logarithmic = attribute(cqa, x), cqa in LOGARITHMIC
    gap = np.log(value / have) if logarithmic else value - have
    return (gap if sense == "at_least" else -gap), logarithmic
