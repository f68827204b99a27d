"""Oxygen, carbon dioxide, pH and osmolality: the fast quantities, held quasi-steady.

They settle in minutes while cells change over hours; carrying them as states would make the set stiff for nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from twin.kinetics import Scalar, smooth_max, smooth_min

CO2_SOLUBILITY = 0.0307  # mM/mmHg at 37 degC
PK_CARBONIC = 6.1  # apparent pK of CO2/HCO3- at 37 degC
WEAK_ACID = 3.0  # mEq/L of strong-ion difference not balanced by bicarbonate (phosphate, protein)
PCO2_CEILING = 90.0  # mmHg
LN10 = float(np.log(10.0))


class Gas(NamedTuple):
    """Quasi-steady dissolved gases and acid-base status."""

    oxygen: Scalar  # dissolved O2 [mM]
    our: Scalar  # oxygen uptake rate [mM/d]
    cer: Scalar  # carbon dioxide evolution rate, titrated bicarbonate included [mM/d]
    pco2: Scalar  # [mmHg]
    bicarbonate: Scalar  # [mM]
    ph: Scalar  # [pH]


def oxygen_balance(our: Scalar, o2_set: Scalar, o2_sat: Scalar, kla_per_h: Scalar) -> Scalar:
    """Dissolved O2 [mM]: the set point while supply lasts, else what transfer leaves; never negative."""
    supply_limited = o2_sat - our / (24.0 * kla_per_h)
    return smooth_max(smooth_min(o2_set, supply_limited, 1e-3), 0.0, 1e-3)


def carbonate(
    strong_ion: Scalar, cer: Scalar, ph_set: Scalar, pco2_floor: Scalar, kla_co2_per_h: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """Bicarbonate [mM], pCO2 [mmHg] and pH of a CO2-controlled vessel.

    The controller holds ``ph_set`` by choosing pCO2 between what stripping can reach and 90 mmHg.
    """
    bicarbonate = smooth_max(strong_ion - WEAK_ACID, 0.0, 1.0)
    wanted = bicarbonate / (CO2_SOLUBILITY * np.exp(LN10 * (ph_set - PK_CARBONIC)))
    lowest = pco2_floor + cer / (24.0 * CO2_SOLUBILITY * kla_co2_per_h)
    pco2 = smooth_min(smooth_max(wanted, lowest, 1.0), PCO2_CEILING, 1.0)
    ph = PK_CARBONIC + np.log(bicarbonate / (CO2_SOLUBILITY * pco2)) / LN10
    return bicarbonate, pco2, ph


def osmolality(glucose: Scalar, lactate: Scalar, glutamine: Scalar, strong_ion: Scalar, salts: float = 225.0) -> Scalar:
    """Osmolality [mOsm/kg]: background salts plus the species that the model moves (ideal, all fully counted)."""
    return salts + glucose + lactate + glutamine + strong_ion
