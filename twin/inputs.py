"""What drives a batch: the pumps' rates and the medium in the bag, a step function of time, and calibrations of probes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from twin.bioreactor import Control, Medium
from twin.evidence import ACTUATORS, ControlApplied, Event

IDLE = Control(0.0, 0.0, 0.0, 0.0)


class Drive(NamedTuple):
    """The inputs in force over a span: what the pumps do, and what the medium bag holds."""

    control: Control
    medium: Medium


@dataclass(frozen=True, slots=True)
class Course:
    """Drives and the instants from which they hold; the first holds from the beginning."""

    since: tuple[float, ...]  # ascending, one fewer than `drives` [d]
    drives: tuple[Drive, ...]
    calibrations: tuple[tuple[float, str], ...] = ()  # (when [d], channel), ascending

    def at(self, t: float) -> Drive:
        """What is in force at `t` [d]; a change at `t` itself has happened."""
        return self.drives[bisect_right(self.since, t)]

    def spans(self, after: float, until: float) -> Iterable[tuple[float, Drive, tuple[str, ...]]]:
        """Stretches of (after, until] in order: end, drive in force during it, and channels calibrated at its end."""
        calibrated: dict[float, list[str]] = {}
        if self.calibrations:
            for when, channel in self.calibrations:
                if after < when <= until:
                    calibrated.setdefault(when, []).append(channel)
        first, last = bisect_right(self.since, after), bisect_left(self.since, until)
        if first == last and not calibrated:
            yield until, self.drives[first], ()
            return
        for end in sorted({*self.since[first:last], *calibrated, until}):
            yield end, self.at(after), tuple(calibrated.get(end, ()))
            after = end


def begin(medium: Medium) -> Course:
    """Nothing runs, `medium` is connected."""
    return Course((), (Drive(IDLE, medium),))


def course(medium: Medium, applied: Iterable[ControlApplied], events: Iterable[Event]) -> Course:
    """The step function that read-backs and events describe, both in order of time."""
    acting = [e for e in events if e.kind in ("medium", "calibration")]
    told = begin(medium)
    for fact in sorted([*applied, *acting], key=lambda f: f.at):
        told = extended(told, fact)
    return told


def extended(told: Course, fact: ControlApplied | Event) -> Course:
    """The course with a fact that is not older than any it holds."""
    drive = told.drives[-1]
    if isinstance(fact, ControlApplied):
        if fact.actuator not in ACTUATORS or getattr(drive.control, fact.actuator) == fact.rate:
            return told
        drive = drive._replace(control=drive.control._replace(**{fact.actuator: fact.rate}))
    elif fact.kind == "medium":
        named = {k: float(v) for k, v in fact.detail.items() if k != "name"}
        drive = drive._replace(medium=drive.medium._replace(**named))
    elif fact.kind == "calibration":
        entry = (fact.at, str(fact.detail.get("channel", "")))
        return Course(told.since, told.drives, (*told.calibrations, entry))
    if told.since and told.since[-1] == fact.at:
        return Course(told.since, (*told.drives[:-1], drive), told.calibrations)
    return Course((*told.since, fact.at), (*told.drives, drive), told.calibrations)


def altered(told: Course, since: float, until: float, really: Callable[[Drive], Drive]) -> Course:
    """The course with `really` of every drive in force over [since, until) [d]; `until` may be infinite."""
    since = max(since, 0.0)
    turns = sorted({*told.since, *(t for t in (since, until) if 0.0 < t < float("inf"))})
    starts = (-1.0, *turns)  # the first drive holds from the beginning
    drives = tuple(really(told.at(t)) if since <= max(t, 0.0) < until else told.at(t) for t in starts)
    return Course(tuple(turns), drives, told.calibrations)
