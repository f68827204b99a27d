"""Edits of what the pumps did, as people write them: ``perfusion*2 from 8``, ``feed*1.1 for 6h``, ``bleed=.1 from 3 to 5``.

    EDIT  = ACTUATOR OP NUMBER [from DAY] [to DAY | for SPAN]        several: separated by ";"
    OP    = "*" | "=" | "+" | "-"
    DAY   = days since inoculation; SPAN = a number with unit h or d

Without `from` an edit holds from the time that the asker calls now; without an end, to the end of the batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from twin.bioreactor import Control
from twin.evidence import ACTUATORS
from twin.inputs import Course, Drive, altered
from twin.process import Limits

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
FORM = re.compile(
    rf"\s*(?P<actuator>[A-Za-z_]+)\s*(?P<op>[*=+-])\s*(?P<value>{NUMBER})"
    rf"(?:\s+from\s+(?P<since>{NUMBER})\s*d?)?"
    rf"(?:\s+to\s+(?P<until>{NUMBER})\s*d?|\s+for\s+(?P<span>{NUMBER})\s*(?P<unit>h|d))?\s*"
)
EXPECTED = (
    'expected ACTUATOR*NUMBER (or =, +, -), then "from DAY", "to DAY" or "for NUMBERh", as in "perfusion*2 from 8"'
)
LONGEST = 100.0
"""No day of a batch is later [d]."""


class Edit(NamedTuple):
    """One change of one actuator's rate."""

    actuator: str
    op: str  # * = + -
    value: float  # factor, or rate in VVD (IU/mL/d for cytokine_dose)
    since: float | None = None  # [d]; None: now
    until: float | None = None  # [d]; None: see `span`
    span: float = math.inf  # [d], counted from `since`

    def rate(self, now: float) -> float:
        """What becomes of a rate; never negative."""
        changed = {"*": now * self.value, "=": self.value, "+": now + self.value, "-": now - self.value}[self.op]
        return max(0.0, changed)

    def window(self, now: float) -> tuple[float, float]:
        """From when until when it holds [d]."""
        since = now if self.since is None else self.since
        return since, self.until if self.until is not None else since + self.span


def parse_edits(text: str) -> tuple[Edit, ...]:
    """Edits from text. Raises ValueError naming the piece and what was expected."""
    pieces = [p.strip() for p in text.split(";") if p.strip()]
    if not pieces:
        raise ValueError(f"edit {text!r}: is empty; {EXPECTED}")
    return tuple(_parsed(p) for p in pieces)


def _parsed(piece: str) -> Edit:
    found = FORM.fullmatch(piece)
    if found is None:
        raise ValueError(f"edit {piece!r}: is not understood; {EXPECTED}")
    if found["actuator"] not in ACTUATORS:
        raise ValueError(f"edit {piece!r}: unknown actuator {found['actuator']!r}; known: {', '.join(ACTUATORS)}")
    since, until = (float(found[k]) if found[k] else None for k in ("since", "until"))
    span = float(found["span"]) / (24.0 if found["unit"] == "h" else 1.0) if found["span"] else math.inf
    if not all(math.isfinite(float(found[k])) for k in ("value", "since", "until", "span") if found[k]):
        raise ValueError(f"edit {piece!r}: expected finite numbers")
    if any(t is not None and t > LONGEST for t in (since, until)):
        raise ValueError(f"edit {piece!r}: expected days since inoculation, 0 to {LONGEST:g}")
    if not span > 0.0 or (since is not None and until is not None and until <= since):
        raise ValueError(f"edit {piece!r}: expected an end after the beginning")
    return Edit(found["actuator"], found["op"], float(found["value"]), since, until, span)


class Edited(NamedTuple):
    """The inputs as edited."""

    course: Course
    capped: tuple[str, ...]  # actuators that were asked for more than they can do, and do their most


def edited(course: Course, edits: Sequence[Edit], limits: Limits, now: float = 0.0) -> Edited:
    """`course` under `edits`, in their order; an edit without a beginning holds from `now` [d].

    An edit that asks for more than an actuator's limit, and for more than it did, gets the limit. Raises ValueError for an
    edit that ends before it begins.
    """
    most = Control(limits.perfusion_max, limits.feed_max, limits.bleed_max, limits.cytokine_dose_max)
    capped: list[str] = []
    for e in edits:
        since, until = e.window(now)
        if not since < until:
            raise ValueError(f"edit of {e.actuator}: ends on day {until:g}, before it begins on day {since:g}")

        def really(drive: Drive, e: Edit = e) -> Drive:
            did = float(getattr(drive.control, e.actuator))
            asked, limit = e.rate(did), max(float(getattr(most, e.actuator)), did)
            if asked > limit:
                capped.append(e.actuator)
            return drive._replace(control=drive.control._replace(**{e.actuator: min(asked, limit)}))

        course = altered(course, since, until, really)
    return Edited(course, tuple(dict.fromkeys(capped)))
