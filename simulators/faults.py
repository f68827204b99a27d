"""Faults as data: what can go wrong with a sensor, a pump or a read-back, how badly, and from when (SAFETY, vocabulary).

A fault sits between the true vessel and the wire: it changes what a device says or what a pump delivers, never a draw
of another device. Each has a generator of its own. Times in days, `at` being the time at which a sample is drawn.

==============  ==========================================================  =============================================
mode            what the device says from onset to until                    size (None: the default of the target)
==============  ==========================================================  =============================================
off             nothing                                                     -
stuck           its last value before the onset, for ever                   -
garbage         uniform over the plausible range                            -
bias            the reading with an error                                   error: ln on the log scale, else in the unit
slow            the true signal through a first-order lag, and its noise    time constant [d]
delayed         the reading of `size` ago, stamped now                      delay [d]
intermittent    nothing, with probability `size`                            probability
drift           the reading with an error that grows from zero              error per day, scale as for bias
spike           one reading in ten far out, to either side                  least distance [noise sd]; most 15/8 of it
unit_slip       the reading in another unit                                 factor
nan             NaN, +Inf or -Inf                                           -
negative        the reading with its sign turned                            -
quantised       the reading to the nearest step                             step [unit]
==============  ==========================================================  =============================================

==============  ==========================================================  =============================================
pump mode       what the pump delivers; its read-back stays as commanded    size
==============  ==========================================================  =============================================
clog            a fraction of the command                                   fraction (.3)
gain            a multiple of the command                                   multiple (1.3)
stuck_on        one rate whatever is commanded                              rate (3/4 of the actuator's span)
wrong_bag       medium whose glucose and glutamine (cytokine syringe: whose  multiple of the announced (.5)
                activity) are not as announced
override        what an operator set by hand. The read-back tells, without  rate (3/4 of the actuator's span)
                a cmd_id: a fact, not a fault
==============  ==========================================================  =============================================

`bias`, `drift`, `spike` and `slow` saturate where the device does (`twin.sensors.CHANNELS`); `unit_slip`, `nan` and
`negative` go out as they are. Several faults on one target act in the order given.
"""

from __future__ import annotations

import math
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from simulators.plant import Plant
from twin.bioreactor import Control
from twin.evidence import ACTUATORS, Event, Fact, Measurement
from twin.sensors import CHANNELS, MONITORED, Scale

SENSOR_MODES = (
    "off", "stuck", "garbage", "bias", "slow", "delayed", "intermittent", "drift", "spike", "unit_slip", "nan", "negative",
    "quantised",
)  # fmt: skip
CONTRACT = (
    "ph", "do", "capacitance", "raman_glucose", "raman_lactate", "temperature", "weight", "viable_density", "viability",
    "car_fraction", "oxygen_uptake", "readback:perfusion",
)  # fmt: skip
"""The twelve channels on which the safety contract wants every mode tried."""
PUMP_MODES = ("clog", "gain", "stuck_on", "wrong_bag", "override")
SIZELESS = frozenset({"off", "stuck", "garbage", "nan", "negative"})

ROUND = 1e-9
HUGE = 700.0  # e to this is still a float
SPIKES = 0.10
"""Fraction of readings that a spiking sensor throws out."""
LEAST, MOST = 8.0, 15.0
"""Distance of a spike [noise sd]."""


class Trouble(NamedTuple):
    """Default sizes of one channel's faults; errors on the scale on which the channel is compared."""

    bias: float
    noise: float  # sd of a healthy reading, the unit of spikes
    plausible: tuple[float, float]  # range of garbage [unit]
    step: float  # coarse resolution [unit]
    slips: tuple[float, ...]  # plausible unit mistakes, the likeliest first
    lag: float = 0.25  # [d]
    delay: float = 0.25  # [d]


TYPO = (10.0, 0.1)
GLUCOSE, LACTATE, GLUTAMINE, AMMONIA = 180.156, 90.08, 146.14, 17.031  # g/mol
X1_5 = math.log(1.5)


def _molar(mass: float) -> tuple[float, ...]:
    """g/L entered as mM, mM converted twice, uM and M for mM, typing errors."""
    return (mass / 1000.0, 1000.0 / mass, 1e3, 1e-3, *TYPO)


_PER_ML = (1e6, 1e-6, 1e3, 1e-3, *TYPO)  # cells/mL or cells/uL for 1e6 cells/mL
_PERCENT = (100.0, 0.01, *TYPO)

TROUBLE: Mapping[str, Trouble] = {
    "ph": Trouble(0.10, 0.015, (6.0, 8.0), 0.1, TYPO),
    "do": Trouble(5.0, 1.0, (0.0, 100.0), 10.0, (0.01, 100.0, *TYPO)),
    "capacitance": Trouble(X1_5, 0.05, (0.0, 25.0), 1.0, (1e3, 1e-3, *TYPO)),
    "raman_glucose": Trouble(6.5, 0.9, (0.0, 40.0), 5.0, _molar(GLUCOSE)),
    "raman_lactate": Trouble(9.0, 1.4, (0.0, 40.0), 5.0, _molar(LACTATE)),
    "temperature": Trouble(0.5, 0.05, (20.0, 45.0), 1.0, TYPO),
    "weight": Trouble(0.05, 0.002, (0.0, 2.0), 0.1, (1e3, 1e-3, *TYPO)),
    "oxygen_uptake": Trouble(X1_5, 0.06, (0.0, 2.0), 0.2, (24.0, 1.0 / 24.0, 1e3, 1e-3, *TYPO)),
    "viable_density": Trouble(X1_5, 0.075, (0.0, 40.0), 5.0, _PER_ML, 2.0, 1.0),
    "dead_density": Trouble(X1_5, 0.3, (0.0, 40.0), 5.0, _PER_ML, 2.0, 1.0),
    "total_density": Trouble(X1_5, 0.075, (0.0, 40.0), 5.0, _PER_ML, 2.0, 1.0),
    "viability": Trouble(-0.10, 0.018, (0.0, 1.0), 0.1, _PERCENT, 2.0, 1.0),
    "car_fraction": Trouble(0.15, 0.025, (0.0, 1.0), 0.25, _PERCENT, 7.0, 3.5),
    "exhausted_fraction": Trouble(0.15, 0.025, (0.0, 1.0), 0.25, _PERCENT, 7.0, 3.5),
    "glucose": Trouble(X1_5, 0.035, (0.0, 40.0), 5.0, _molar(GLUCOSE), 1.0, 0.5),
    "lactate": Trouble(X1_5, 0.035, (0.0, 40.0), 5.0, _molar(LACTATE), 1.0, 0.5),
    "glutamine": Trouble(X1_5, 0.07, (0.0, 10.0), 1.0, _molar(GLUTAMINE), 1.0, 0.5),
    "ammonia": Trouble(X1_5, 0.07, (0.0, 6.0), 1.0, _molar(AMMONIA), 1.0, 0.5),
    "cytokine": Trouble(X1_5, 0.12, (0.0, 600.0), 100.0, (1e3, 1e-3, *TYPO), 7.0, 3.5),
}  # fmt: skip
"""Defaults (asm). Bias: 5 sd of a fresh calibration (SCIENCE section 3, `configs/scenarios/nominal.yaml`), x1.5 where the
scale is logarithmic; 5 % for the load cell (a tube that leans on it); 5 counting errors for fractions. Drift: a third of
the bias a day. Lag and delay: 6 h online, of the order of a sampling interval in the laboratory."""

SPAN = Control(perfusion=2.0, feed=0.05, bleed=0.3, cytokine_dose=600.0)
"""Usual full scale of the actuators [VVD; IU/mL/d]: what sizes of read-back and pump faults are measured by."""


def _readback(span: float) -> Trouble:
    return Trouble(span / 8.0, span / 100.0, (0.0, span), span / 5.0, (24.0, 1.0 / 24.0, 1e3, 1e-3, *TYPO))


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. Raises ValueError for what cannot be.

    `target`: a channel; ``readback:ACTUATOR``, what a pump says; or ``pump:ACTUATOR``, what it does.
    """

    target: str
    mode: str
    onset: float  # [d]
    until: float = math.inf  # [d]; from here on the target is well
    size: float | None = None  # see the tables above; None: the target's default
    seed: int = 0  # of its own draws, together with the batch's seed

    def __post_init__(self) -> None:
        kind, _, actuator = self.target.rpartition(":")
        if kind not in ("", "readback", "pump") or actuator not in (ACTUATORS if kind else TROUBLE):
            known = ", ".join((*TROUBLE, *(f"{k}:{a}" for k in ("readback", "pump") for a in ACTUATORS)))
            raise ValueError(f"fault: unknown target {self.target!r}; known: {known}")
        modes = PUMP_MODES if kind == "pump" else SENSOR_MODES
        if self.mode not in modes:
            raise ValueError(f"fault on {self.target}: unknown mode {self.mode!r}; known: {', '.join(modes)}")
        if self.mode == "wrong_bag" and actuator == "bleed":
            raise ValueError("fault on pump:bleed: nothing is bagged there; wrong_bag is for what goes in")
        if not (0.0 <= self.onset < math.inf and self.onset < self.until):
            raise ValueError(f"{self.name}: 0 <= onset < until is needed, not {self.onset!r} and {self.until!r}")
        if self.size is not None and self.mode in SIZELESS:
            raise ValueError(f"{self.name}: takes no size, not {self.size!r}")
        if self.seed < 0:
            raise ValueError(f"{self.name}: seed {self.seed!r} must be 0 or more")
        if self.size is not None and not _LOWEST.get(self.mode, -math.inf) <= self.size <= _HIGHEST.get(self.mode, 1e9):
            raise ValueError(f"{self.name}: size {self.size!r} is impossible for this mode")

    @property
    def name(self) -> str:
        """Target and mode, for tables and errors."""
        return f"fault {self.target}/{self.mode}"

    @property
    def kind(self) -> str:
        """sensor, readback or pump."""
        return self.target.rpartition(":")[0] or "sensor"

    @property
    def actuator(self) -> str:
        """The actuator of a pump's or read-back's fault; the channel of a sensor's."""
        return self.target.rpartition(":")[2]

    def active(self, at: float) -> bool:
        """Whether the target is faulty at `at` [d]."""
        return self.onset - ROUND <= at < self.until - ROUND

    @property
    def magnitude(self) -> float:
        """`size`, or the target's default; 0 for modes without one."""
        if self.size is not None:
            return self.size
        if self.kind == "pump":
            rate = 0.75 * float(getattr(SPAN, self.actuator))
            return {"clog": 0.3, "gain": 1.3, "wrong_bag": 0.5}.get(self.mode, rate)
        t = trouble(self.target)
        sizes = {
            "bias": t.bias, "slow": t.lag, "delayed": t.delay, "intermittent": 0.7, "drift": t.bias / 3.0, "spike": LEAST,
            "unit_slip": t.slips[0], "quantised": t.step,
        }  # fmt: skip
        return sizes.get(self.mode, 0.0)


_TINY = 1e-9
_LOWEST: Mapping[str, float] = {
    **dict.fromkeys(("slow", "delayed", "spike", "unit_slip", "quantised"), _TINY),
    **dict.fromkeys(("intermittent", *PUMP_MODES), 0.0),
    **dict.fromkeys(("bias", "drift"), -1e9),
}
_HIGHEST: Mapping[str, float] = {"intermittent": 1.0, "clog": 1.0}


def trouble(target: str) -> Trouble:
    """Default sizes of a channel or read-back. Raises KeyError for a pump."""
    kind, _, name = target.rpartition(":")
    return _readback(float(getattr(SPAN, name))) if kind == "readback" else TROUBLE[name]


ONSET = 6.0
"""Day from which a fault of the vocabulary acts where none is said."""

_NAMED = re.compile(r"(?P<target>[a-z_0-9:]+)/(?P<mode>[a-z_]+)(=(?P<size>[^@]+))?(@(?P<onset>.+))?")


def parse_fault(text: str) -> Fault:
    """A fault by name, ``TARGET/MODE[=SIZE][@DAY]``: ``ph/drift``, ``pump:perfusion/clog=0.1@3``. Raises ValueError."""
    told = _NAMED.fullmatch(text.strip())
    if told is None:
        raise ValueError(f"fault {text!r}: TARGET/MODE[=SIZE][@DAY] is expected, for instance ph/drift@6")
    try:
        size, onset = (None if told[k] is None else float(told[k]) for k in ("size", "onset"))
    except ValueError:
        raise ValueError(f"fault {text!r}: SIZE and DAY must be numbers") from None
    return Fault(told["target"], told["mode"], ONSET if onset is None else onset, size=size)


def every_fault(onset: float = ONSET) -> tuple[Fault, ...]:
    """Each single fault of the vocabulary once, at its default size: the contract's channels, then the pumps that feed."""
    fed = tuple(a for a in ACTUATORS if a != "bleed")
    sensors = [Fault(target, mode, onset) for target in CONTRACT for mode in SENSOR_MODES]
    return (*sensors, *(Fault(f"pump:{a}", mode, onset) for a in fed for mode in PUMP_MODES))


def slips(target: str, onset: float, until: float = math.inf) -> tuple[Fault, ...]:
    """One unit slip for every plausible factor of `target`."""
    return tuple(Fault(target, "unit_slip", onset, until, factor) for factor in trouble(target).slips)


# --- devices that lie ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Lie:
    """One sensor or read-back fault at work. Fed every healthy reading in order of time, also before the onset."""

    fault: Fault
    rng: np.random.Generator
    held: bool = False  # between two readings the signal stays (a rate) instead of moving straight (a concentration)
    told: list[tuple[float, float]] = field(default_factory=list)  # (time, healthy reading)
    lagged: tuple[float, float, float] | None = None  # time, true signal and lagged signal there

    def say(self, at: float, value: float, truth: float) -> float | None:
        """What the device says at `at` [d] instead of `value`, the true signal being `truth`; None: nothing."""
        before = self.told[-1][1] if self.told else value
        if self.fault.mode in ("stuck", "delayed") and not (self.fault.mode == "stuck" and self.fault.active(at)):
            self.told.append((at, value))
        lag = self._lag(at, truth) if self.fault.mode == "slow" else truth
        if not self.fault.active(at):
            return value
        size = self.fault.magnitude
        match self.fault.mode:
            case "off":
                return None
            case "stuck":
                if not self.told:
                    self.told.append((at, value))
                return before
            case "delayed":
                return self.told[max(0, bisect_right(self.told, at - size, key=lambda r: r[0]) - 1)][1]
            case "intermittent":
                return None if self.rng.random() < size else value
            case "nan":
                return (math.nan, math.inf, -math.inf)[int(self.rng.integers(3))]
            case "negative":
                return -value
            case "unit_slip":
                return value * size
            case "quantised":
                return float(np.round(value / size)) * size
            case "garbage":
                return float(self.rng.uniform(*trouble(self.fault.target).plausible))
            case "slow":
                return self._saturated(value * lag / truth if self._log and truth > 0.0 else value + lag - truth)
            case "drift":
                return self._wrong(value, size * (at - self.fault.onset))
            case "spike":
                out, side, far = self.rng.random(3)
                far = size * (1.0 + (MOST / LEAST - 1.0) * far) * trouble(self.fault.target).noise
                return self._wrong(value, math.copysign(far, side - 0.5)) if out < SPIKES else value
            case _:
                return self._wrong(value, size)

    @property
    def _log(self) -> bool:
        scale: Scale = CHANNELS[self.fault.target].scale if self.fault.target in CHANNELS else "linear"
        return scale == "log"

    def _wrong(self, value: float, error: float) -> float:
        return self._saturated(value * math.exp(min(error, HUGE)) if self._log else value + error)

    def _saturated(self, value: float) -> float:
        if self.fault.target in CHANNELS:
            low, high = CHANNELS[self.fault.target].low, CHANNELS[self.fault.target].high
        else:
            low, high = MONITORED.get(self.fault.target, (0.0, 1e4))
        return min(max(value, low), high)

    def _lag(self, at: float, truth: float) -> float:
        """The true signal through ``tau dy/dt = truth - y`` from the onset on; exact for the signal assumed in between."""
        if self.lagged is None or not self.fault.active(at):
            self.lagged = (at, truth, truth)
            return truth
        then, x, y = self.lagged
        slope = 0.0 if self.held or at <= then else (truth - x) / (at - then)
        if then < self.fault.onset:  # quick until then
            x += slope * (self.fault.onset - then)
            then, y = self.fault.onset, x
        tau, span = self.fault.magnitude, at - then
        now = x + slope * (span - tau) + (y - x + slope * tau) * math.exp(-span / tau)
        self.lagged = (at, truth, now)
        return now


class Mishaps:
    """All faults of one batch at work. What has none is passed through untouched."""

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        """`seed` of the batch: the same fault in another batch draws otherwise."""
        self.faults = tuple(faults)
        self._lies: dict[str, list[Lie]] = {}
        self._pumps = tuple(f for f in self.faults if f.kind == "pump")
        for n, f in enumerate(self.faults):
            if f.kind != "pump":
                key = (seed, 0xFA17, f.seed, n, zlib.crc32(f.target.encode()), zlib.crc32(f.mode.encode()))
                lie = Lie(f, np.random.default_rng(np.random.SeedSequence(key)), held=f.kind == "readback")
                self._lies.setdefault(f.target, []).append(lie)

    def touches(self, target: str) -> bool:
        """Whether a fault may ever change what `target` says."""
        return target in self._lies

    def say(self, target: str, at: float, value: float, truth: float) -> float | None:
        """What the channel or read-back `target` says at `at` [d], the true signal being `truth`; None: nothing."""
        said: float | None = value
        for lie in self._lies.get(target, ()):
            if said is None:
                break
            said = lie.say(at, said, truth)
        return said

    def operated(self, at: float) -> dict[str, float]:
        """Rates that an operator has set by hand, by actuator."""
        return {f.actuator: f.magnitude for f in self._pumps if f.mode == "override" and f.active(at)}

    def delivered(self, u: Control, at: float) -> Control:
        """What the pumps deliver from `at` [d] on under the rates in force, but for the plant's own pump errors."""
        for f in self._pumps:
            if not f.active(at) or f.mode == "override" or (f.mode == "wrong_bag" and f.actuator != "cytokine_dose"):
                continue
            rate = f.magnitude if f.mode == "stuck_on" else float(getattr(u, f.actuator)) * f.magnitude
            u = u._replace(**{f.actuator: rate})
        return u

    def bagged(self, plant: Plant, at: float) -> Plant:
        """The plant with the medium that is really in its bags at `at` [d]."""
        for f in self._pumps:
            if f.mode != "wrong_bag" or f.actuator == "cytokine_dose" or not f.active(at):
                continue
            names = ("glucose", "glutamine") if f.actuator == "perfusion" else ("feed_glucose", "feed_glutamine")
            medium = plant.theta.medium
            medium = medium._replace(**{n: getattr(medium, n) * f.magnitude for n in names})
            plant = replace(plant, theta=plant.theta._replace(medium=medium))
        return plant


def heard(facts: Sequence[Fact], said: Mapping[str, float | None]) -> list[Fact]:
    """The facts as they are told: those whose id is in `said` with that value or rate, or (None) not at all."""
    if not said:
        return list(facts)
    told: list[Fact] = []
    for fact in facts:
        value = said.get(fact.id, math.nan)
        if isinstance(fact, Event) or fact.id not in said:
            told.append(fact)
        elif value is not None:
            told.append(replace(fact, value=value) if isinstance(fact, Measurement) else replace(fact, rate=value))
    return told
