"""Simulated instruments: what a device would say of the true vessel, and when anyone would hear of it.

Each device owns its random generator, so that leaving one out changes no reading of another. Noise, calibration error and
drift act on the scale on which the channel is compared (`twin.sensors.CHANNELS`): ln for counts and concentrations.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from simulators.plant import DayEffect, Plant, PlantState, Status, status
from twin.evidence import Measurement
from twin.sensors import AIR_SATURATION, CAPACITANCE, CHANNELS, MONITORED

Signal = Callable[[PlantState, Status, Plant], float]

HOUR = 1.0 / 24.0
BODY_HEAT = 37.0  # what the vessel is held at [degC]
SECOND = 1.0 / 86400.0


def _capacitance(x: PlantState, s: Status, plant: Plant) -> float:
    """Follows biovolume, not number (permittivity goes with the fourth power of the radius), and counts dying cells in."""
    return CAPACITANCE * x.size**4 * (x.viable + plant.structure.dead_signal * x.dead)


SIGNALS: Mapping[str, Signal] = {
    "viable_density": lambda x, s, p: x.viable,
    "dead_density": lambda x, s, p: x.dead,
    "total_density": lambda x, s, p: x.viable + x.dead,
    "viability": lambda x, s, p: x.viability,
    "glucose": lambda x, s, p: x.glucose,
    "lactate": lambda x, s, p: x.lactate,
    "glutamine": lambda x, s, p: x.glutamine,
    "ammonia": lambda x, s, p: x.ammonia,
    "cytokine": lambda x, s, p: x.cytokine,
    "car_fraction": lambda x, s, p: x.car_fraction,
    "exhausted_fraction": lambda x, s, p: x.exhausted,
    "capacitance": _capacitance,
    "raman_glucose": lambda x, s, p: x.glucose,
    "raman_lactate": lambda x, s, p: x.lactate,
    "ph": lambda x, s, p: s.gas.ph,
    "do": lambda x, s, p: 100.0 * s.gas.oxygen / AIR_SATURATION,
    "oxygen_uptake": lambda x, s, p: s.gas.our / 24.0,
    "weight": lambda x, s, p: x.volume,
    "temperature": lambda x, s, p: BODY_HEAT,
}
"""What a perfect instrument would read, in the channel's canonical unit."""


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """Errors of one channel; relative (ln) for log-scale channels, in the channel's unit for linear ones."""

    noise: float  # standard deviation of each reading
    bias: float = 0.0  # standard deviation of the error at calibration (gain on the log scale)
    walk: float = 0.0  # random walk of that error [per sqrt(day)]
    drift: float = 0.0  # steady drift, its sign drawn once [per day]


@dataclass(frozen=True, slots=True)
class Instrument:
    """One device and its routine. Times in days."""

    name: str
    channels: Mapping[str, ChannelSpec]
    interval: float
    first: float = 0.0
    delay: tuple[float, float] = (0.0, 0.0)  # turn-around, uniform
    age: float = 0.0  # how old an online reading is when it is sent (under one tick)
    late_probability: float = 0.0  # chance that a result is entered late ...
    late: tuple[float, float] = (0.0, 0.0)  # ... by so much, uniform
    dropout: float = 0.0  # chance that a reading never comes
    sample: float = 0.0  # volume withdrawn [L]
    laboratory: bool = False  # drawn by hand: what an operator's recipe may act on


@dataclass(slots=True)
class Device:
    """An instrument at work: its drift so far and its own randomness."""

    spec: Instrument
    rng: np.random.Generator
    channels: tuple[str, ...]  # those that are reported
    due: float = 0.0
    count: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    drifts: dict[str, float] = field(default_factory=dict)
    drifted_to: float = 0.0

    @classmethod
    def install(cls, spec: Instrument, seed: np.random.SeedSequence, reported: frozenset[str]) -> Device:
        """Calibrated at day 0. `seed` of the batch; the device derives its own from its name."""
        own = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, zlib.crc32(spec.name.encode())))
        rng = np.random.default_rng(own)
        device = cls(spec, rng, tuple(c for c in spec.channels if c in reported), spec.first)
        for name, c in spec.channels.items():
            device.errors[name] = c.bias * float(rng.standard_normal())
            device.drifts[name] = c.drift * (1.0 if rng.random() < 0.5 else -1.0)
        return device

    def calibrate(self, channel: str, error: float) -> None:
        """Replace the channel's accumulated error; its drift goes on. `error` in sd of a fresh calibration."""
        self.errors[channel] = self.spec.channels[channel].bias * error

    def is_due(self, now: float) -> bool:
        """Whether a reading falls due by `now` [d]."""
        return self.due <= now + 1e-9

    def measure(
        self,
        now: float,
        sampled_at: float,
        x: PlantState,
        plant: Plant,
        day: DayEffect,
        condition: Status | None = None,
    ) -> list[Measurement]:
        """Readings of the vessel `x` at `sampled_at`, due at `now`; `received_at` is when they are known at the earliest.

        `condition` is `status(x, plant, day)` where it is known already.

        All draws are made whether or not a channel is reported or the reading lost, so that no such choice shifts a later
        draw.
        """
        spec, rng = self.spec, self.rng
        span, self.drifted_to = now - self.drifted_to, now
        while self.due <= now + 1e-9:
            self.due += spec.interval
        lost = rng.random() < spec.dropout
        delay = rng.uniform(*spec.delay)
        extra = rng.uniform(*spec.late)
        if rng.random() < spec.late_probability:
            delay += extra
        self.count += 1
        condition = condition or status(x, plant, day)
        readings: list[Measurement] = []
        for name, c in spec.channels.items():
            step, noise = rng.standard_normal(2)
            self.errors[name] += self.drifts[name] * span + c.walk * float(math.sqrt(max(span, 0.0)) * step)
            if lost or name not in self.channels:
                continue
            value = _reading(
                name, float(SIGNALS[name](x, condition, plant)), self.errors[name] + c.noise * float(noise)
            )
            readings.append(Measurement(f"{spec.name}-{self.count}-{name}", name, value, sampled_at, now + delay))
        return readings


def _reading(channel: str, truth: float, error: float) -> float:
    if channel in MONITORED:
        low, high = MONITORED[channel]
        return min(max(truth + error, low), high)
    c = CHANNELS[channel]
    value = truth * float(np.exp(error)) if c.scale == "log" else truth + error
    return min(max(value, c.low), c.high)
