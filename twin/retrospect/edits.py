"""What the pumps did, edited: `twin.whatif.edits` applied to the recorded inputs of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from twin.inputs import Course, Drive, altered
from twin.process import Limits
from twin.whatif.edits import Edit, most_of


class Edited(NamedTuple):
    """The inputs as edited."""

    course: Course
    capped: tuple[str, ...]  # actuators that were asked for more than they can do, and do their most


def edited(course: Course, edits: Sequence[Edit], limits: Limits, now: float = 0.0) -> Edited:
    """`course` under `edits`, in their order; an edit without a beginning holds from `now` [d].

    An edit that asks for more than an actuator's limit, and for more than it did, gets the limit. Raises ValueError for an
    edit that ends before it begins.
    """
    most = most_of(limits)
    capped: list[str] = []
    for e in edits:
        since, until = e.window(now)
        if not since < until:
            raise ValueError(f"edit of {e.actuator}: ends on day {until:g}, before it begins on day {since:g}")

        def really(drive: Drive, e: Edit = e) -> Drive:
            did = float(getattr(drive.control, e.actuator))
            asked, limit = float(e.rate(did)), max(float(getattr(most, e.actuator)), did)
            if asked > limit:
                capped.append(e.actuator)
            return drive._replace(control=drive.control._replace(**{e.actuator: min(asked, limit)}))

        course = altered(course, since, until, really)
    return Edited(course, tuple(dict.fromkeys(capped)))
