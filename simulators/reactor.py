"""A bioreactor with its instruments and its edge, as seen from a wire: time goes in, facts come out, overrides go in.

The same object serves the in-process closed loop and the MQTT edge. At each tick, in this order: the edge sets its pumps
for the step and reports them, the true vessel moves on, instruments read it, laboratory results that have become known are
handed over, and the edge asks whether the batch is done. The facts of a tick carry distinct, rising times (1 s apart), the
last one the newest, so that a twin may be waited for; an old sample keeps the time at which it was drawn. A probe that is
monitored but informs nothing is read first, at the instant of the tick, and takes no turn.

Faults (`simulators.faults`) change what is said, not what is drawn, and not when anything else is said: a reading that a
fault swallows keeps its turn. An operator goes by what is said, but not by an impossible value.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from simulators import edge
from simulators.donors import VirtualDonor, virtual_donor
from simulators.edge import Ack, EdgeSettings, EdgeState, Override, edge_settings
from simulators.faults import Fault, Mishaps, heard
from simulators.instruments import SECOND, SIGNALS, Device
from simulators.metrics import cqas
from simulators.plant import DayEffect, PlantState, Status, carry, status, withdraw
from simulators.scenario import Scenario, load_scenario
from twin.bioreactor import Control
from twin.evidence import ControlApplied, Event, Fact, Measurement, Reading
from twin.gas import Gas
from twin.process import Process
from twin.sensors import AIR_SATURATION, MONITORED, impossible

ROUND = 1e-9


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a batch ended, judged on the true vessel."""

    passed: bool  # harvested by the latest day with every target met
    missed: tuple[str, ...]  # targets that were not
    day: float  # of harvest [d]
    reason: str  # dose counted, latest day, override
    medium_vv: float  # medium that really flowed [vessel volumes]
    feed_vv: float
    cytokine: float  # commanded dose [IU/mL]
    cqas: Mapping[str, float]  # true values at harvest
    lactate_peak: float  # [mM]
    viability_low: float  # lowest true viability of the batch


class VirtualBioreactor:
    """One batch on one virtual rig. Deterministic: same arguments and same commands, same facts to the last bit."""

    def __init__(
        self,
        process: Process,
        donor: VirtualDonor | int | None = None,
        *,
        seed: int = 0,
        scenario: Scenario | str = "nominal",
        settings: EdgeSettings | None = None,
        online: bool = True,
        faults: Iterable[Fault] = (),
    ) -> None:
        """A rig at inoculation; its first tick, at day 0, yields `batch_start`, the pumps' rates and the first samples.

        `donor` is a `VirtualDonor`, its number, or None for number `seed`. `seed` drives the instruments alone. `settings`
        of the edge default to the process's recipe with the scenario's caps and budget. `online` False leaves the probes
        out, which alters nothing else. A pump's fault begins and ends with a step of the edge.
        """
        self.process = process
        self.scenario = load_scenario(scenario) if isinstance(scenario, str) else scenario
        if not isinstance(donor, VirtualDonor):
            donor = virtual_donor(process, seed if donor is None else donor, self.scenario.mismatch)
        self.donor = donor
        self.settings = settings or edge_settings(
            process.recipe, process.limits, self.scenario.caps, self.scenario.budget
        )
        self.step = self.scenario.tick  # [d]
        self.clock = 0.0  # time of the last tick [d]; everything until then has been told
        self.acks: list[Ack] = []
        self.signals: dict[str, float] = {}  # what a perfect device would have read, by id; for judges, as `state` is
        self._plant = donor.plant(process)
        self._x = donor.start()
        self._edge = EdgeState()
        self._readings: dict[str, Reading] = {}
        self._ticks = 0
        self._stamp = 0.0  # of the newest fact
        self._facts = 0
        self._pending: list[Measurement] = []
        self._rows: list[tuple[float, ...]] = []
        self._cytokine = 0.0
        self._ended: str | None = None
        self._lost = False  # given up before harvest
        self._mishaps = Mishaps(faults, seed)
        self._said: dict[str, float | None] = {}  # what a faulty device says instead, by id of the fact
        entropy = np.random.SeedSequence([seed, 0x1257])
        reported = frozenset((*process.sensors, *MONITORED))
        oldest_first = sorted(self.scenario.instruments, key=lambda i: -i.age)
        self._ages = tuple(dict.fromkeys(i.age for i in oldest_first if i.age > 0.0))
        self._devices = tuple(
            Device.install(i, entropy, reported) for i in oldest_first if online or i.laboratory or i.sample > 0.0
        )
        self._calibrations = [
            (day, channel, n, np.random.default_rng([seed, 0xCA11, zlib.crc32(channel.encode()), n]))
            for channel, days in self.scenario.calibrations.items()
            for n, day in enumerate(days, start=1)
        ]

    @property
    def finished(self) -> bool:
        """Whether the batch has been harvested."""
        return self._ended is not None

    @property
    def next_tick(self) -> float:
        """Time of the next tick [d]."""
        return self._ticks * self.step

    @property
    def readings(self) -> Mapping[str, Reading]:
        """What the operator knows: the newest result of each laboratory channel."""
        return dict(self._readings)

    @property
    def state(self) -> PlantState:
        """The true vessel at `clock`. For reports and judges; nothing that decides may look at it."""
        return self._x

    @property
    def applied(self) -> Control:
        """Commanded rates in force."""
        return self._edge.rates

    def command(self, override: Override) -> Ack:
        """Answer an override; what is accepted takes effect at the next tick."""
        self._edge, ack = edge.command(
            self._edge, override, self.clock, self.settings, self._readings, float(self._x.volume)
        )
        self.acks.append(ack)
        return ack

    def tick(self, until: float | None = None) -> list[Fact]:
        """All facts of the ticks up to and including `until` [d] (None: the next one); none once finished."""
        goal = self.next_tick if until is None else until
        facts: list[Fact] = []
        while not self.finished and self.next_tick <= goal + ROUND:
            facts += heard(self._first() if self._ticks == 0 else self._later(), self._said)
            self._ticks += 1
        return facts

    def _first(self) -> list[Fact]:
        facts: list[Fact] = [Event("batch-start", "batch_start", 0.0, {"donor": self.donor.id})]
        facts += [self._applied(name, rate, cmd, 0.0) for name, rate, cmd in self._resolve(0.0).readbacks]
        return facts + self._look(0.0, {})

    def _later(self) -> list[Fact]:
        now, end = self.clock, self.next_tick
        facts: list[Fact] = []
        ending = edge.harvest(self._edge, now, self.settings, self._readings, float(self._x.volume))
        if ending is not None:  # an override that came after the last tick
            return self._end(ending, self._next_stamp(now))
        resolved = self._resolve(now)
        facts += [self._applied(name, rate, cmd, self._next_stamp(now)) for name, rate, cmd in resolved.readbacks]
        x, at = self._x, now
        self._cytokine += resolved.control.cytokine_dose * (end - now)
        u, plant = self._mishaps.delivered(resolved.control, now), self._mishaps.bagged(self._plant, now)
        seen: dict[float, PlantState] = {}
        for age in self._ages:
            x = carry(plant, x, u, at, end - age - at)
            at = end - age
            seen[age] = x
        self._x = carry(plant, x, u, at, end - at)
        facts += self._look(end, seen)
        ending = edge.harvest(self._edge, end, self.settings, self._readings, float(self._x.volume))
        return facts if ending is None else facts + self._end(ending, self._next_stamp(end))

    def _resolve(self, now: float) -> edge.Resolved:
        """What the edge sets its pumps to, and an operator's hand on top of it."""
        self._edge, resolved = edge.resolve(self._edge, now, self.step, self.settings, self._readings)
        by_hand = self._mishaps.operated(now)
        if not by_hand:
            return resolved
        control = resolved.control._replace(**by_hand)
        due = {name: (rate, cmd) for name, rate, cmd in resolved.readbacks} | {k: (v, None) for k, v in by_hand.items()}
        self._edge = replace(self._edge, rates=control, answering={**self._edge.answering, **dict.fromkeys(by_hand)})
        return edge.Resolved(control, tuple((name, rate, cmd) for name, (rate, cmd) in due.items()))

    def _look(self, now: float, seen: Mapping[float, PlantState]) -> list[Fact]:
        """Readings at `now`, then results that have become known, then a heartbeat if the newest fact is an old sample."""
        self.clock = now
        day = self._day(now)
        facts: list[Fact] = []
        monitored: list[Fact] = []
        conditions: dict[float, Status] = {}  # by age; a sample that is drawn changes no concentration
        for device in self._devices:
            if not device.is_due(now):
                continue
            spec = device.spec
            age = spec.age if spec.age in seen else 0.0
            x = seen.get(age, self._x)
            if age not in conditions:
                conditions[age] = status(x, self._plant, day)
            for m in device.measure(now, now, x, self._plant, day, conditions[age]):
                aside = m.channel in MONITORED and not spec.laboratory
                stamp = now if aside else self._next_stamp(now)
                drawn = stamp if age == 0.0 else now - age + (stamp - now)
                told = drawn + (m.received_at - now) if spec.laboratory else stamp
                m = Measurement(m.id, m.channel, m.value, drawn, told)
                (self._pending if spec.laboratory else monitored if aside else facts).append(m)
                truth = self.signals[m.id] = float(SIGNALS[m.channel](x, conditions[age], self._plant))
                if self._mishaps.touches(m.channel):
                    self._said[m.id] = self._mishaps.say(m.channel, drawn, m.value, truth)
            if spec.sample > 0.0:
                self._x = withdraw(self._x, spec.sample)
        facts += self._calibrate(now)
        known = [m for m in self._pending if m.received_at <= now + ROUND]
        self._pending = [m for m in self._pending if m.received_at > now + ROUND]
        for m in sorted(known, key=lambda m: (m.received_at, m.id)):
            told = replace(m, received_at=self._stamp)
            facts.append(told)
            old, said = self._readings.get(m.channel), self._said.get(m.id, m.value)
            if said is None or impossible(m.channel, said) is not None:
                continue
            if old is None or old.sampled_at <= m.sampled_at:
                self._readings[m.channel] = Reading(said, m.sampled_at, told.received_at)
        newest = facts[-1] if facts else None
        if known or not isinstance(newest, Measurement) or newest.sampled_at < now:
            control = self._edge.rates
            facts.append(
                self._applied(
                    "perfusion", control.perfusion, self._edge.answering.get("perfusion"), self._next_stamp(now)
                )
            )
        self._record(now, (conditions.get(0.0) or status(self._x, self._plant, day)).gas)
        return monitored + facts

    def _calibrate(self, now: float) -> list[Fact]:
        """Calibrations planned until `now`: the probe's error is drawn anew, as on the day it was installed."""
        due = [c for c in self._calibrations if c[0] <= now + ROUND]
        self._calibrations = [c for c in self._calibrations if c[0] > now + ROUND]
        events: list[Fact] = []
        for _, channel, n, rng in sorted(due, key=lambda c: c[:2]):
            for device in self._devices:
                if channel in device.spec.channels:
                    device.calibrate(channel, float(rng.standard_normal()))
                    at = self._next_stamp(now)
                    events.append(Event(f"calibration-{channel}-{n}", "calibration", at, {"channel": channel}))
        return events

    def _end(self, ending: edge.Harvest, at: float) -> list[Fact]:
        self._ended = ending.reason
        return [
            self._applied(edge.HARVEST, 1.0, ending.cmd_id, at),
            Event("batch-end", "batch_end", self._next_stamp(at), {"outcome": "harvested", "detail": ending.reason}),
        ]

    def _next_stamp(self, now: float) -> float:
        self._stamp = max(now, self._stamp) + SECOND
        return self._stamp

    def _applied(self, actuator: str, rate: float, cmd_id: str | None, at: float) -> ControlApplied:
        self._facts += 1
        told = ControlApplied(f"{actuator}-{self._facts:05d}", at, actuator, float(rate), cmd_id)
        if self._mishaps.touches(f"readback:{actuator}"):
            self._said[told.id] = self._mishaps.say(f"readback:{actuator}", at, told.rate, told.rate)
        return told

    def _day(self, now: float) -> DayEffect:
        days = self._plant.days
        return days[min(int(now + ROUND), len(days) - 1)]

    def _record(self, now: float, gas: Gas) -> None:
        x, u, share = self._x, self._edge.rates, self._plant.structure.quick_share
        self._rows.append(
            (now, x.viable, x.dead, x.viability, x.viable_cells, x.car_fraction, x.exhausted, x.glucose, x.lactate, x.glutamine,
             x.ammonia, x.cytokine, float(gas.ph), 100.0 * float(gas.oxygen) / AIR_SATURATION, float(gas.our) / 24.0,
             x.doublings, x.volume, x.perfused / self._plant.level, u.perfusion, u.feed, u.bleed, u.cytokine_dose,
             x.strong_ion, share * x.quick + (1.0 - share) * x.slow)
        )  # fmt: skip

    TRUTH = (
        "time", "viable_density", "dead_density", "viability", "viable_cells", "car_fraction", "exhausted_fraction", "glucose",
        "lactate", "glutamine", "ammonia", "cytokine", "ph", "do", "oxygen_uptake", "doublings", "volume", "medium_vv",
        "perfusion", "feed", "bleed", "cytokine_dose", "strong_ion", "activation",
    )  # fmt: skip
    """Columns of `truth`, in canonical units; rates are the commanded ones."""

    @property
    def truth(self) -> dict[str, np.ndarray]:
        """The true course of the batch, one value a tick, by the names of `TRUTH`."""
        table = np.array(self._rows, dtype=float).reshape(len(self._rows), len(self.TRUTH))
        return {name: table[:, i] for i, name in enumerate(self.TRUTH)}

    def stop(self, reason: str) -> None:
        """End the batch as it stands, not harvested: its outcome has not passed. Nothing if it has ended."""
        if self._ended is None:
            self._ended, self._lost = reason, True

    def outcome(self) -> Outcome:
        """How the batch ended. Raises RuntimeError before it has."""
        if self._ended is None:
            raise RuntimeError("the batch is still running: tick on until `finished`")
        x, truth = self._x, self.truth
        values = cqas(x, status(x, self._plant, self._day(self.clock)).gas)
        missed = tuple(t.cqa for t in self.process.targets if not t.met(values[t.cqa]))
        return Outcome(
            passed=not self._lost and not missed and self.clock <= self.settings.recipe.harvest_latest + ROUND,
            missed=missed,
            day=self.clock,
            reason=self._ended,
            medium_vv=float(x.perfused / self._plant.level),
            feed_vv=float(x.fed / self._plant.level),
            cytokine=self._cytokine,
            cqas=values,
            lactate_peak=float(truth["lactate"].max()),
            viability_low=float(truth["viability"].min()),
        )
