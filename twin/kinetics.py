"""Rate laws, one function a law.

Rule: only ``+ - * / **`` and ``exp log sqrt tanh`` on the operands, so that every law runs unchanged on float, ndarray,
CasADi symbols and PyTensor variables. Switches are smooth; nothing here looks inside its operands.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Scalar: TypeAlias = Any
"""One quantity: float, ndarray, casadi.SX/MX or a PyTensor variable."""


def monod(c: Scalar, half: Scalar) -> Scalar:
    """Saturation ``c/(K+c)`` in a substrate (Monod 1949; CHO set PMC5874891 table 2)."""
    return c / (half + c)


def inhibition(c: Scalar, half: Scalar) -> Scalar:
    """Second-order inhibition ``1/(1+(c/K)^2)`` by lactate or ammonia (PMC2796705, Truskey 1990, Hassell 1991)."""
    z = c / half
    return 1.0 / (1.0 + z * z)


def hill2(c: Scalar, half: Scalar) -> Scalar:
    """Hill function of order two, ``z^2/(1+z^2)`` with ``z = c/K``: onset of toxicity."""
    z = c / half
    return z * z / (1.0 + z * z)


def ph_optimum(ph: Scalar, optimum: Scalar, width: Scalar) -> Scalar:
    """Gaussian pH window ``exp(-((pH-pH_opt)/w)^2)`` (hybridoma: over 90 % of mu between 6.9 and 7.4)."""
    z = (ph - optimum) / width
    return np.exp(-z * z)


def senescence(doublings: Scalar, limit: Scalar) -> Scalar:
    """Replicative limit ``1/(1+(PD/PD_max)^6)`` on cumulative population doublings (PMC2776622: 15.8, 10.6-30.2)."""
    z = doublings / limit
    z2 = z * z
    return 1.0 / (1.0 + z2 * z2 * z2)


def smooth_max(a: Scalar, b: Scalar, blend: float) -> Scalar:
    """Smooth ``max(a, b)``; exceeds it by ``blend/2`` where the two meet."""
    return 0.5 * (a + b + np.sqrt((a - b) ** 2 + blend * blend))


def smooth_min(a: Scalar, b: Scalar, blend: float) -> Scalar:
    """Smooth ``min(a, b)``; below it by ``blend/2`` where the two meet."""
    return 0.5 * (a + b - np.sqrt((a - b) ** 2 + blend * blend))
