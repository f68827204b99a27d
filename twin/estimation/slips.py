"""Unit slips: a reading that would fit well if its number were in another unit, or had a digit too many.

g/L taken for mM (x5.55 for glucose), x10 and /10 (a typing error, a dilution forgotten), x1e3 and x1e6 (cells/mL for
1e6 cells/mL) and their inverses. A slip is never put right by itself: it is held back, and the likely unit is proposed.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from twin.sensors import CHANNELS, compared
from twin.units import CANONICAL, MOLAR_MASS

ODDS = float(np.log(1e3))
"""ln of how much better a slipped unit must explain a reading before it is believed: one reading in a thousand slips."""

FIT = 3.0
"""A slip explains a reading within so many standard deviations of the innovation, and the reading as it is does not."""


class Slip(NamedTuple):
    """One way to misread a unit."""

    factor: float  # value * factor is what was meant
    meaning: str


@cache
def slips(channel: str) -> tuple[Slip, ...]:
    """The slips that can befall a channel."""
    unit = CANONICAL[channel]
    found = [
        Slip(f, f"a factor of {1 / f:g} too large" if f < 1 else f"a factor of {f:g} too small")
        for f in (0.1, 10.0, 1e-3, 1e3, 1e-6, 1e6)
    ]
    if unit == "mM":
        per_gram = 1000.0 / MOLAR_MASS[channel]
        found += [Slip(per_gram, "g/L stated as mM"), Slip(1.0 / per_gram, "mM stated as g/L")]
    if unit == "percent":
        found.append(Slip(100.0, "a fraction stated as percent"))
    return tuple(found)


@cache
def _factors(channel: str) -> np.ndarray:
    return np.array([s.factor for s in slips(channel)])


def likely_slip(channel: str, value: float, predicted: float, s: float) -> Slip | None:
    """The slip that explains a reading far better than the reading itself, or None.

    `predicted` is on the channel's compared scale, `s` the innovation variance. Bayes' rule with prior odds of one in a
    thousand: it may also find a slip that a wide gate would have let through.
    """
    plain = compared(channel, value) - predicted
    if not plain * plain > FIT * FIT * s:  # NaN finds none
        return None
    c = CHANNELS[channel]
    meant = value * _factors(channel)
    residual = np.where((meant >= c.low) & (meant <= c.high), compared(channel, np.abs(meant)) - predicted, np.inf)
    best = int(np.argmin(np.abs(residual)))
    off = float(residual[best])
    if off * off > FIT * FIT * s or plain * plain - off * off < 2.0 * s * ODDS:
        return None
    return slips(channel)[best]
