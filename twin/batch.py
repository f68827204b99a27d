"""One manufacturing run as a value: evidence in order of sampling, what the pumps did, and checkpoints of belief.

Late, corrected and duplicated data are ordinary data. A fact that belongs before the newest checkpoint rewinds to the
last earlier one and replays; the posterior is therefore a function of the *set* of facts, bit for bit, whatever the
order in which they arrived. Rewind and replay live here and nowhere else.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from twin.bioreactor import Control, Medium
from twin.donors.prior import DonorPrior
from twin.estimation.belief import Belief, Layout
from twin.estimation.filters import FILTERS, STREAK, Datum, Filter, Innovation
from twin.estimation.model import BioreactorModel, Drive, initial_belief, make_layout
from twin.evidence import ACTUATORS, ControlApplied, Event, Measurement, Reading, Refused
from twin.process import Process
from twin.sensors import CHANNELS, compared, impossible

T = TypeVar("T", Measurement, ControlApplied, Event)

KEEP_ALL = 256
"""So many of the newest checkpoints are all kept; of older ones every KEEP_EVERY-th (bounded memory over long batches)."""
KEEP_EVERY = 32


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Belief after the first `count` pieces of evidence."""

    count: int
    belief: Belief
    streaks: tuple[tuple[str, int], ...] = ()  # consecutive rejections, by channel
    informed: int = 0  # innovations so far: pieces of evidence whose channel has a sensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Evidence and belief of one batch. Only the functions of this module make new ones."""

    id: str
    process: Process
    layout: Layout
    filter: Filter
    prior: Belief
    donor_prior: DonorPrior
    evidence: tuple[Measurement, ...] = ()  # by (sampled_at, channel, id); the valid version of each
    superseded: tuple[Measurement, ...] = ()  # earlier versions, kept
    applied: tuple[ControlApplied, ...] = ()  # by (at, actuator, id)
    events: tuple[Event, ...] = ()  # by (at, kind, id)
    innovations: tuple[Innovation, ...] = ()  # of the evidence that informs the state, in its order
    checkpoints: tuple[Checkpoint, ...] = ()

    @property
    def belief(self) -> Belief:
        """Belief after the newest evidence."""
        return self.checkpoints[-1].belief if self.checkpoints else self.prior


def start(batch_id: str, process: Process, donor_prior: DonorPrior, filter_name: str = "ukf") -> Batch:
    """A batch at inoculation. `filter_name` is one of `twin.estimation.filters.FILTERS`; raises ValueError for another."""
    if filter_name not in FILTERS:
        raise ValueError(f"unknown filter {filter_name!r}; known: {', '.join(FILTERS)}")
    layout = make_layout(process, donor_prior.names)
    algorithm = FILTERS[filter_name](BioreactorModel(process, layout), layout.size)
    prior = initial_belief(process, layout, donor_prior.mean, donor_prior.cov)
    return Batch(batch_id, process, layout, algorithm, prior, donor_prior)


# --- the three ways in -----------------------------------------------------------------------------------------------


def assimilate(batch: Batch, m: Measurement) -> Batch:
    """Fuse one measurement, late or not. The same fact again changes nothing; a higher version supersedes.

    Raises Refused: unknown_channel, out_of_range (NaN included), before_inoculation, from_the_future, bad_sd, conflict
    (same id and version, other content).
    """
    _admit(m)
    known = next((k for k in batch.evidence if k.id == m.id), None)
    if known is not None:
        if _same(m, known):
            return batch
        if m.version < known.version:
            twin = next((s for s in batch.superseded if (s.id, s.version) == (m.id, m.version)), None)
            if twin is not None and not _same(m, twin):
                raise Refused("conflict", f"measurement {m.id!r} version {m.version} is known with other content")
            return batch if twin is not None else replace(batch, superseded=_ordered(batch.superseded, m, _measured))
        if m.version == known.version:
            raise Refused("conflict", f"measurement {m.id!r} version {m.version} is known with other content")
        batch = _without(batch, known)
        batch = replace(batch, superseded=_ordered(batch.superseded, known, _measured))
    position = bisect_left(batch.evidence, _measured(m), key=_measured)
    evidence = (*batch.evidence[:position], m, *batch.evidence[position:])
    return _replay(replace(batch, evidence=evidence), position)


def apply(batch: Batch, c: ControlApplied) -> Batch:
    """Record what a pump did from `c.at` on, late or not. Raises Refused: unknown_actuator, out_of_range, conflict."""
    if c.actuator not in (*ACTUATORS, "harvest"):
        raise Refused(
            "unknown_actuator", f"unknown actuator {c.actuator!r}; known: {', '.join((*ACTUATORS, 'harvest'))}"
        )
    if not 0.0 <= c.rate < 1e5 or not 0.0 <= c.at < 1e4:
        raise Refused("out_of_range", f"{c.actuator} rate {c.rate!r} at {c.at!r} d is impossible")
    if (known := next((k for k in batch.applied if k.id == c.id), None)) is not None:
        return _the_same(batch, c, known)
    unchanged = c.actuator in ACTUATORS and getattr(control_at(batch, c.at), c.actuator) == c.rate
    told = replace(batch, applied=_ordered(batch.applied, c, _acted))
    return told if unchanged else _replay_from(told, c.at)


def note(batch: Batch, e: Event) -> Batch:
    """Record an event. `medium` (detail: fields of Medium) and `calibration` (detail: channel) act on the estimate.

    Raises Refused: out_of_range, unknown_field, conflict (same id, other content).
    """
    if (known := next((k for k in batch.events if k.id == e.id), None)) is not None:
        return _the_same(batch, e, known)
    if not 0.0 <= e.at < 1e4:
        raise Refused("out_of_range", f"event {e.kind} at {e.at!r} d is impossible")
    if e.kind == "medium":
        unknown = sorted(set(e.detail) - set(Medium._fields) - {"name"})
        if unknown:
            raise Refused("unknown_field", f"medium event {e.id!r}: unknown {', '.join(unknown)}")
        for name in sorted(set(e.detail) & set(Medium._fields)):
            value = e.detail[name]
            if not isinstance(value, int | float) or not 0.0 <= value < 1e5:
                raise Refused("out_of_range", f"medium event {e.id!r}: {name} {value!r} must be a number from 0 to 1e5")
    acts = e.kind in {"medium", "calibration"}
    noted = replace(batch, events=_ordered(batch.events, e, _happened))
    return _replay_from(noted, e.at) if acts else noted


# --- the ways out ----------------------------------------------------------------------------------------------------


def believe_at(batch: Batch, t: float) -> Belief:
    """Belief at `t` [d] given the evidence sampled until then: filtered in the past, predicted in the future."""
    count = bisect_right(batch.evidence, t, key=lambda m: m.sampled_at)
    if count == len(batch.evidence):
        return _carry(batch, batch.belief, t)
    point = _last_checkpoint(batch, count)
    for m in batch.evidence[point.count : count]:
        point, _ = _absorb(batch, point, m)
    return _carry(batch, point.belief, t)


def control_at(batch: Batch, t: float) -> Control:
    """What the pumps do at `t` [d], by their read-backs; zero before the first."""
    rates = dict.fromkeys(ACTUATORS, 0.0)
    for c in batch.applied[: bisect_right(batch.applied, t, key=lambda c: c.at)]:
        if c.actuator in rates:
            rates[c.actuator] = c.rate
    return Control(**rates)


def medium_at(batch: Batch, t: float) -> Medium:
    """Composition of medium and feed in use at `t` [d]."""
    medium = batch.process.theta.medium
    for e in batch.events:
        if e.kind == "medium" and e.at <= t:
            medium = medium._replace(**{k: float(v) for k, v in e.detail.items() if k != "name"})
    return medium


def perfused(batch: Batch, t: float) -> float:
    """Vessel volumes of medium perfused until `t` [d]."""
    steps = [(c.at, c.rate) for c in batch.applied if c.actuator == "perfusion" and c.at < t]
    ends = [*(at for at, _ in steps[1:]), t][: len(steps)]
    return float(sum(rate * (end - at) for (at, rate), end in zip(steps, ends, strict=True)))


def latest(batch: Batch, now: float) -> dict[str, Reading]:
    """The newest sample of every channel whose value was known by `now` [d]: an operator's view."""
    return {
        m.channel: Reading(m.value, m.sampled_at, m.received_at)
        for m in batch.evidence
        if m.received_at <= now and m.sampled_at <= now
    }


# --- rewind and replay -----------------------------------------------------------------------------------------------


def _measured(m: Measurement) -> tuple[float, str, str]:
    return (m.sampled_at, m.channel, m.id)


def _acted(c: ControlApplied) -> tuple[float, str, str]:
    return (c.at, c.actuator, c.id)


def _happened(e: Event) -> tuple[float, str, str]:
    return (e.at, e.kind, e.id)


def _ordered(items: tuple[T, ...], item: T, key: Callable[[T], tuple[float, str, str]]) -> tuple[T, ...]:
    position = bisect_right(items, key(item), key=key)
    return (*items[:position], item, *items[position:])


def _same(a: Measurement, b: Measurement) -> bool:
    """The same fact: equal but for when we learnt it."""
    return replace(a, received_at=0.0) == replace(b, received_at=0.0)


def _the_same(batch: Batch, told: ControlApplied | Event, known: ControlApplied | Event) -> Batch:
    """The batch as it is when a known fact is told again. Raises Refused(conflict) when it is told otherwise."""
    if told != known:
        raise Refused("conflict", f"{type(told).__name__} {told.id!r} is known with other content")
    return batch


def _admit(m: Measurement) -> None:
    reason = impossible(m.channel, m.value)
    if reason is not None:
        known = m.channel in CHANNELS or reason.startswith(m.channel)
        raise Refused("out_of_range" if known else "unknown_channel", reason)
    if not m.sampled_at >= 0.0:
        raise Refused("before_inoculation", f"{m.id!r} was sampled at {m.sampled_at!r} d, before inoculation")
    if not m.sampled_at <= m.received_at:
        raise Refused(
            "from_the_future", f"{m.id!r} was sampled at {m.sampled_at!r} d but received at {m.received_at!r} d"
        )
    if m.sd is not None and not 0.0 < m.sd < 1e6:
        raise Refused("bad_sd", f"{m.id!r}: sd {m.sd!r} must be positive")


def _without(batch: Batch, m: Measurement) -> Batch:
    position = batch.evidence.index(m)
    kept = tuple(c for c in batch.checkpoints if c.count <= position)
    shorter = replace(batch, evidence=(*batch.evidence[:position], *batch.evidence[position + 1 :]), checkpoints=kept)
    return _replay(shorter, position)


def _replay_from(batch: Batch, at: float) -> Batch:
    """Redo everything sampled at `at` or later: an input or a sensor has changed there."""
    return _replay(batch, bisect_left(batch.evidence, at, key=lambda m: m.sampled_at))


def _last_checkpoint(batch: Batch, count: int) -> Checkpoint:
    """The newest checkpoint that has seen at most `count` pieces of evidence."""
    position = bisect_right(batch.checkpoints, count, key=lambda c: c.count)
    return batch.checkpoints[position - 1] if position else Checkpoint(0, batch.prior)


def _replay(batch: Batch, position: int) -> Batch:
    """Rebuild checkpoints and innovations from evidence[position] on."""
    if position == len(batch.evidence) and (not batch.checkpoints or batch.checkpoints[-1].count == position):
        return batch
    point = _last_checkpoint(batch, position)
    checkpoints = list(batch.checkpoints[: bisect_right(batch.checkpoints, position, key=lambda c: c.count)])
    innovations = list(batch.innovations[: point.informed])
    for m in batch.evidence[point.count :]:
        point, innovation = _absorb(batch, point, m)
        checkpoints.append(point)
        if innovation is not None:
            innovations.append(innovation)
    return replace(batch, checkpoints=_thin(checkpoints), innovations=tuple(innovations))


def _thin(checkpoints: list[Checkpoint]) -> tuple[Checkpoint, ...]:
    if len(checkpoints) <= 2 * KEEP_ALL:
        return tuple(checkpoints)
    old, new = checkpoints[:-KEEP_ALL], checkpoints[-KEEP_ALL:]
    return (*(c for c in old if c.count % KEEP_EVERY == 0), *new)


def _absorb(batch: Batch, point: Checkpoint, m: Measurement) -> tuple[Checkpoint, Innovation | None]:
    """One piece of evidence into the belief. Channels without a sensor entry are kept but inform nothing."""
    sensor = batch.process.sensors.get(m.channel)
    if sensor is None:
        return replace(point, count=point.count + 1), None
    scale = CHANNELS[m.channel].scale
    sd = sensor.sd
    if m.sd is not None:
        sd = m.sd / (m.value + CHANNELS[m.channel].limit) if scale == "log" else m.sd
    belief = _carry(batch, point.belief, m.sampled_at)
    datum = Datum(m.channel, float(compared(m.channel, m.value)), sd * sd, sensor.gate)
    streaks = dict(point.streaks)
    drive = Drive(control_at(batch, m.sampled_at), medium_at(batch, m.sampled_at))
    belief, innovation = batch.filter.update(belief, datum, drive, streaks.pop(m.channel, 0))
    rejections = 0 if innovation.accepted else dict(point.streaks).get(m.channel, 0) + 1
    if 0 < rejections < STREAK:
        streaks[m.channel] = rejections
    return Checkpoint(point.count + 1, belief, tuple(sorted(streaks.items())), point.informed + 1), innovation


def _carry(batch: Batch, belief: Belief, until: float) -> Belief:
    """Predict to `until`, stopping wherever an input changes or a sensor is calibrated."""
    if until <= belief.time:
        return belief
    for at in _breaks(batch, belief.time, until):
        drive = Drive(control_at(batch, belief.time), medium_at(batch, belief.time))
        belief = batch.filter.predict(belief, drive, at)
        for e in batch.events:
            if e.kind == "calibration" and e.at == at:
                belief = _calibrated(batch, belief, str(e.detail.get("channel", "")))
    return belief


def _breaks(batch: Batch, after: float, until: float) -> list[float]:
    """Instants in (after, until] at which prediction must stop; `until` is the last."""
    first = bisect_right(batch.applied, after, key=lambda c: c.at)
    last = bisect_left(batch.applied, until, key=lambda c: c.at)
    times = {until}
    control = control_at(batch, after) if first < last else None
    for c in batch.applied[first:last]:
        now = control_at(batch, c.at)
        if now != control:
            times.add(c.at)
            control = now
    times.update(e.at for e in batch.events if e.kind in {"medium", "calibration"} and after < e.at < until)
    return sorted(times)


def _calibrated(batch: Batch, belief: Belief, channel: str) -> Belief:
    """Forget a sensor's learnt error: it has been calibrated. An unknown channel changes nothing."""
    sensor = batch.process.sensors.get(channel)
    if sensor is None or sensor.error is None:
        return belief
    i = batch.layout.index(sensor.error.name)
    mean, cov = belief.mean.copy(), belief.cov.copy()
    mean[i], cov[i, :], cov[:, i] = 0.0, 0.0, 0.0
    cov[i, i] = sensor.error.sd**2
    return Belief(belief.time, mean, cov)


def nis(batch: Batch, newest: int = 50) -> Mapping[str, float]:
    """Mean normalised innovation squared of the newest readings of every channel; 1 when the filter is honest."""
    by_channel: dict[str, list[float]] = {}
    for i in batch.innovations:
        by_channel.setdefault(i.channel, []).append(i.nis)
    return {k: float(np.mean(v[-newest:])) for k, v in by_channel.items()}
