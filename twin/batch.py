"""The verbs of a batch: tell it something, ask it something.

Late, corrected, retracted and duplicated data are ordinary data: what is believed depends on the set of facts alone
(`twin.history`). Whatever cannot be a fact is refused with a reason and changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from immutables import Map

from twin.bioreactor import Control, Medium
from twin.donors.prior import DonorPrior, considering
from twin.estimation.belief import Belief
from twin.estimation.filters import FILTERS
from twin.estimation.model import BioreactorModel, initial_belief, make_layout
from twin.evidence import ACTUATORS, ControlApplied, Event, Fact, Measurement, Reading, Refused
from twin.history import Batch, absorb, carry, instants, last_checkpoint, replay, revised
from twin.inputs import begin, course, extended
from twin.process import Process
from twin.sensors import CHANNELS, impossible

T = TypeVar("T", Measurement, ControlApplied, Event)

REPLAY_WINDOW = 10.0
"""A result that comes later than this after its sample [d] is refused: contract laboratories need 2-5 d (SCIENCE 3)."""


def start(
    batch_id: str, process: Process, donor_prior: DonorPrior, filter_name: str = "ukf", shadow: str | None = None
) -> Batch:
    """A batch at inoculation. `filter_name` and `shadow` are of `twin.estimation.filters.FILTERS`; else ValueError.

    A shadow filter takes the same readings beside the main one and decides nothing; how far the two part is health.
    """
    for name in (filter_name, *([shadow] if shadow else [])):
        if name not in FILTERS:
            raise ValueError(f"unknown filter {name!r}; known: {', '.join(FILTERS)}")
    known = considering(donor_prior, process)
    layout = make_layout(process, known.names)
    model = BioreactorModel(process, layout)
    algorithm = FILTERS[filter_name](model, layout.size)
    beside = FILTERS[shadow](model, layout.size) if shadow else None
    prior = initial_belief(process, layout, known.mean, known.cov)
    return Batch(batch_id, process, layout, algorithm, prior, donor_prior, begin(process.theta.medium), beside)


# --- the three ways in -----------------------------------------------------------------------------------------------


def assimilate(batch: Batch, m: Measurement) -> Batch:
    """Fuse one measurement, late or not. The same fact again changes nothing; a higher version supersedes or retracts.

    Raises Refused: unknown_channel, out_of_range (NaN included), before_inoculation, from_the_future, too_late, bad_sd,
    conflict (same id and version, other content).
    """
    _admit(m)
    known = batch.valid.get(m.id)
    if known is not None and _same(m, known):
        return batch
    if not m.received_at - m.sampled_at <= REPLAY_WINDOW:
        late = m.received_at - m.sampled_at
        raise Refused("too_late", f"{m.id!r} came {late:.3g} d after its sample; up to {REPLAY_WINDOW:g} d is replayed")
    if known is None:
        return _with_measurement(batch, m)
    if m.version < known.version:
        twin = next((s for s in batch.superseded if (s.id, s.version) == (m.id, m.version)), None)
        if twin is not None and not _same(m, twin):
            raise Refused("conflict", f"measurement {m.id!r} version {m.version} is known with other content")
        return batch if twin is not None else replace(batch, superseded=_ordered(batch.superseded, m, _versioned))
    if m.version == known.version:
        raise Refused("conflict", f"measurement {m.id!r} version {m.version} is known with other content")
    return _with_measurement(batch, m, instead_of=known)


def apply(batch: Batch, c: ControlApplied) -> Batch:
    """Record what a pump did from `c.at` on, late or not. Raises Refused: unknown_actuator, out_of_range, conflict."""
    if c.actuator not in (*ACTUATORS, "harvest"):
        raise Refused(
            "unknown_actuator", f"unknown actuator {c.actuator!r}; known: {', '.join((*ACTUATORS, 'harvest'))}"
        )
    if not 0.0 <= c.rate < 1e5 or not 0.0 <= c.at < 1e4:
        raise Refused("out_of_range", f"{c.actuator} rate {c.rate!r} at {c.at!r} d is impossible")
    if (known := batch.told.get(f"applied {c.id}")) is not None:
        return _the_same(batch, c, known)
    told = replace(batch, applied=_ordered(batch.applied, c, _acted), told=batch.told.set(f"applied {c.id}", c))
    if c.actuator not in ACTUATORS:
        return told
    return _driven(told, c)


def note(batch: Batch, e: Event) -> Batch:
    """Record an event. `medium` (detail: fields of Medium) and `calibration` (detail: channel) act on the estimate.

    Raises Refused: out_of_range, unknown_field, conflict (same id, other content).
    """
    if (known := batch.told.get(f"event {e.id}")) is not None:
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
    noted = replace(batch, events=_ordered(batch.events, e, _happened), told=batch.told.set(f"event {e.id}", e))
    return _driven(noted, e) if e.kind in ("medium", "calibration") else noted


def tell(batch: Batch, fact: Fact) -> Batch:
    """Whatever kind of fact it is, by its own verb. Raises Refused as they do."""
    match fact:
        case Measurement():
            return assimilate(batch, fact)
        case ControlApplied():
            return apply(batch, fact)
        case Event():
            return note(batch, fact)


# --- the ways out ----------------------------------------------------------------------------------------------------


def believe_at(batch: Batch, t: float) -> Belief:
    """Belief at `t` [d] given the evidence sampled until then: filtered in the past, predicted in the future."""
    count = bisect_right(batch.evidence, t, key=lambda m: m.sampled_at)
    point = batch.newest
    if count < len(batch.evidence):
        point = last_checkpoint(batch, count)
        for group in instants(batch.evidence[point.count : count]):
            point, _ = absorb(batch, point, group)
    return carry(batch, point, t).belief


def as_known(batch: Batch, when: float) -> Batch:
    """The batch as it was known at `when` [d]: results that came later, and later corrections, left out.

    `believe_at(as_known(batch, k), t)` is the belief then, `believe_at(batch, t)` the belief now. What the pumps did and
    events are taken as known at once.
    """
    valid: dict[str, Measurement] = {}
    for m in (*batch.superseded, *batch.evidence):
        if m.received_at <= when and (m.id not in valid or valid[m.id].version < m.version):
            valid[m.id] = m
    evidence = tuple(sorted((m for m in valid.values() if not m.retracted), key=_measured))
    alike = next((i for i, (a, b) in enumerate(zip(evidence, batch.evidence, strict=False)) if a != b), len(evidence))
    at = evidence[alike].sampled_at if alike < len(evidence) else np.inf
    then = replace(
        batch,
        evidence=evidence,
        superseded=tuple(m for m in batch.superseded if m.received_at <= when and valid[m.id] != m),
        checkpoints=tuple(c for c in batch.checkpoints if c.count <= alike),
        valid=Map(valid),
        revisions=(),
    )
    return replay(then, min(alike, bisect_left(evidence, at, key=lambda m: m.sampled_at)))


def control_at(batch: Batch, t: float) -> Control:
    """What the pumps do at `t` [d], by their read-backs; zero before the first."""
    return batch.course.at(t).control


def medium_at(batch: Batch, t: float) -> Medium:
    """Composition of medium and feed in use at `t` [d]."""
    return batch.course.at(t).medium


def perfused(batch: Batch, t: float) -> float:
    """Vessel volumes of medium perfused until `t` [d]."""
    total, after = 0.0, 0.0
    for end, drive, _ in batch.course.spans(0.0, t):
        total += drive.control.perfusion * (end - after)
        after = end
    return float(total)


def latest(batch: Batch, now: float) -> dict[str, Reading]:
    """The newest sample of every channel whose value was known by `now` [d]: an operator's view."""
    return {
        m.channel: Reading(m.value, m.sampled_at, m.received_at)
        for m in batch.evidence
        if m.received_at <= now and m.sampled_at <= now
    }


# --- the facts ---------------------------------------------------------------------------------------------------------


def _measured(m: Measurement) -> tuple[float, str, str]:
    return (m.sampled_at, m.channel, m.id)


def _versioned(m: Measurement) -> tuple[float, str, str, int]:
    return (*_measured(m), m.version)


def _acted(c: ControlApplied) -> tuple[float, str, str]:
    return (c.at, c.actuator, c.id)


def _happened(e: Event) -> tuple[float, str, str]:
    return (e.at, e.kind, e.id)


def _ordered(items: tuple[T, ...], item: T, key: Callable[[T], tuple[Any, ...]]) -> tuple[T, ...]:
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
    if m.sd is not None and not 1e-12 < m.sd < 1e6:  # squares must be numbers, too
        raise Refused("bad_sd", f"{m.id!r}: sd {m.sd!r} must be positive, between 1e-12 and 1e6")


def _with_measurement(batch: Batch, m: Measurement, instead_of: Measurement | None = None) -> Batch:
    """The batch with a measurement that is new, or the higher version of one that it had."""
    evidence, superseded, first = batch.evidence, batch.superseded, np.inf
    if instead_of is not None and not instead_of.retracted:
        position = evidence.index(instead_of, bisect_left(evidence, _measured(instead_of), key=_measured))
        evidence = (*evidence[:position], *evidence[position + 1 :])
        superseded = _ordered(superseded, instead_of, _versioned)
        first = instead_of.sampled_at
    if m.retracted:
        superseded = _ordered(superseded, m, _versioned)
    else:
        position = bisect_left(evidence, _measured(m), key=_measured)
        evidence = (*evidence[:position], m, *evidence[position:]) if position < len(evidence) else (*evidence, m)
        first = min(first, m.sampled_at)
    told = replace(batch, evidence=evidence, superseded=superseded, valid=batch.valid.set(m.id, m))
    if first == np.inf:
        return told
    return revised(batch, replay(told, bisect_left(evidence, first, key=lambda e: e.sampled_at)), m.id, first)


def _driven(batch: Batch, fact: ControlApplied | Event) -> Batch:
    """The batch with its course brought up to date for a pump's rate, a medium or a calibration, and replayed from there."""
    told = extended(batch.course, fact) if _is_last(batch, fact) else None
    if told is None:
        told = course(batch.process.theta.medium, batch.applied, batch.events)
        told = batch.course if told == batch.course else told
    if told is batch.course:
        return batch
    after = replace(batch, course=told)
    position = bisect_left(batch.evidence, fact.at, key=lambda m: m.sampled_at)
    return revised(batch, replay(after, position), fact.id, fact.at)


def _is_last(batch: Batch, fact: ControlApplied | Event) -> bool:
    """Whether a fact, already in its place, comes after all others that make the course."""
    if isinstance(fact, Event):
        return batch.events[-1] is fact and (not batch.applied or batch.applied[-1].at <= fact.at)
    return batch.applied[-1] is fact and (not batch.events or batch.events[-1].at < fact.at)
