"""Channel -> measurement model. What each sensor would read, on which scale its noise is Gaussian, and its own errors.

Counts, capacitance and concentrations carry multiplicative noise: they are compared as ``ln(y + detection limit)``.
Fractions, pH, DO and Raman (whose offset is additive) are compared as they are.
Noise, gates and error drifts are data: `configs/sensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from twin.bioreactor import Physiology, State
from twin.kinetics import Scalar

AIR_SATURATION = 0.21  # mM O2 in culture medium at 37 degC: 100 % DO
CAPACITANCE = 0.5  # pF/cm per 1e6 viable cells/mL at nominal cell size (Konakovsky 2015, order of)
DYING = 0.4  # share of a viable cell's capacitance that a dead intact one still shows (over-reading in decline, ibid.)

Scale = Literal["log", "linear"]
Observe = Callable[[State, Physiology, Scalar], Scalar]


class SensorError(NamedTuple):
    """A sensor's own slow error, learnt as an augmented state with a random walk."""

    name: str
    sd: float  # at calibration
    walk: float  # growth of its standard deviation [per sqrt(day)]


class GrowthEffect(NamedTuple):
    """What growing cells add to a sensor's error: they are larger and respire more than resting ones. Learnt, constant."""

    name: str
    mean: float  # per 1/d of specific growth rate, on the scale of the error
    sd: float


GROWTH = 0.4
"""Specific growth rate [1/d] at which the effect of growth is nil: about half of mu_max."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """One channel as the estimator sees it."""

    channel: str
    unit: str
    sd: float  # relative for the log scale, in `unit` for the linear one
    gate: float  # innovation gate in standard deviations: accept if |residual| <= gate sqrt(S)
    stale_after: float  # age [d] beyond which the channel counts as lost
    error: SensorError | None
    source: str
    kind: Literal["probe", "laboratory"] = "laboratory"  # a probe may stick unseen; a sample is drawn by hand
    growth: GrowthEffect | None = None


class Channel(NamedTuple):
    """What physics says of a channel: scale, what it reads, and where its readings can lie."""

    scale: Scale
    observe: Observe  # in the channel's unit; the third argument is the sensor error (0 where it has none)
    limit: float  # detection limit, added inside the logarithm (log scale only)
    low: float  # readings outside [low, high] are refused as impossible
    high: float


def _gain(truth: Callable[[State, Physiology], Scalar], limit: float, high: float) -> Channel:
    """A quantity that is read on the log scale; the sensor's own error is ln of a gain."""
    return Channel("log", lambda x, p, e: truth(x, p) * np.exp(e), limit, 0.0, high)


def _offset(truth: Callable[[State, Physiology], Scalar], low: float, high: float) -> Channel:
    """A quantity that is read as it is; the sensor's own error is added."""
    return Channel("linear", lambda x, p, e: truth(x, p) + e, 0.0, low, high)


CHANNELS: Mapping[str, Channel] = {
    "viable_density": _gain(lambda x, p: x.viable, 1e-3, 500.0),
    "dead_density": _gain(lambda x, p: x.dead, 2e-2, 500.0),
    "total_density": _gain(lambda x, p: x.viable + x.dead, 1e-3, 500.0),
    "viability": _offset(lambda x, p: x.viability, 0.0, 1.0),
    "glucose": _gain(lambda x, p: x.glucose, 0.1, 600.0),
    "lactate": _gain(lambda x, p: x.lactate, 0.1, 300.0),
    "glutamine": _gain(lambda x, p: x.glutamine, 0.05, 100.0),
    "ammonia": _gain(lambda x, p: x.ammonia, 0.05, 100.0),
    "cytokine": _gain(lambda x, p: x.cytokine, 1.0, 1e5),
    "car_fraction": _offset(lambda x, p: x.car_fraction, 0.0, 1.0),
    "exhausted_fraction": _offset(lambda x, p: x.exhausted, 0.0, 1.0),
    "capacitance": _gain(lambda x, p: CAPACITANCE * (x.viable + DYING * x.dead), 5e-3, 500.0),
    "raman_glucose": _offset(lambda x, p: x.glucose, -20.0, 600.0),
    "raman_lactate": _offset(lambda x, p: x.lactate, -20.0, 300.0),
    "ph": _offset(lambda x, p: p.gas.ph, 5.0, 9.0),
    "do": _offset(lambda x, p: 100.0 * p.gas.oxygen / AIR_SATURATION, 0.0, 500.0),
    "oxygen_uptake": _gain(lambda x, p: p.gas.our / 24.0, 1e-3, 100.0),
    "weight": _gain(lambda x, p: x.volume, 1e-6, 1e5),
}
"""Channels that inform the state. Units are those of `twin.units.CANONICAL`; viability and fractions as 0..1."""

MONITORED: Mapping[str, tuple[float, float]] = {"temperature": (0.0, 60.0), "diameter": (1.0, 100.0)}
"""Channels that are kept as evidence but inform no state of this model, with their possible range."""


def compared(channel: str, value: Scalar) -> Scalar:
    """A reading or a prediction on the scale where its noise is Gaussian."""
    c = CHANNELS[channel]
    return np.log(value + c.limit) if c.scale == "log" else value


def reading(channel: str, x: State, phys: Physiology, error: Scalar = 0.0, growth: Scalar = 0.0) -> Scalar:
    """What a channel reads at a state, on its compared scale, with the sensor's own error and its growth effect."""
    level = signal(channel, x, phys, error, growth)
    return np.log(level) if CHANNELS[channel].scale == "log" else level


def signal(channel: str, x: State, phys: Physiology, error: Scalar = 0.0, growth: Scalar = 0.0) -> Scalar:
    """As `reading`, in the unit of the channel and with its detection limit added: on the log scale ln is left to take."""
    c = CHANNELS[channel]
    return c.observe(x, phys, error + growth * (phys.mu - GROWTH)) + c.limit


def impossible(channel: str, value: float) -> str | None:
    """Why `value` cannot be a reading of `channel`, or None. Written so that NaN is impossible."""
    if channel in CHANNELS:
        low, high = CHANNELS[channel].low, CHANNELS[channel].high
    elif channel in MONITORED:
        low, high = MONITORED[channel]
    else:
        return f"unknown channel {channel!r}; known: {', '.join(sorted((*CHANNELS, *MONITORED)))}"
    if low <= value <= high:
        return None
    return f"{channel} {value!r} is outside {low:g}..{high:g}"
