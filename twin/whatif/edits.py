"""Edits of inputs, as people write them: ``perfusion*2 from 8``, ``feed +10 % for six hours``, ``harvest on day 12``.

    EDIT   = ACTUATOR OP NUMBER [WINDOW] | hold ACTUATOR at NUMBER [WINDOW] | harvest on [day] DAY    several: separated by ";"
    OP     = "*" | "=" | "+" | "-"; after + and - the number may be a percentage, after = and "at" it may have its unit
    WINDOW = [from DAY] [to DAY | until DAY | for SPAN]
    DAY    = days since inoculation; SPAN = a number (or one to twelve) with h, hours, d or days

Without `from` an edit holds from the time that the asker calls now; without an end, to the end of the batch. One grammar serves
what would have been (`twin.retrospect.edits`) and what will be (`twin.whatif.paired`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple, cast

import numpy as np

from twin.bioreactor import Control
from twin.evidence import ACTUATORS
from twin.kinetics import Scalar
from twin.process import Limits, Process

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
UNITS = {name: ("IU/mL/d",) if name == "cytokine_dose" else ("VVD", "1/d") for name in ACTUATORS}
_DAY, _UNIT = rf"(?:day\s+)?{NUMBER}", "|".join(re.escape(u) for u in ("VVD", "1/d", "IU/mL/d"))
_WINDOW = (
    rf"(?:\s+from\s+(?P<since>{_DAY})\s*d?)?"
    rf"(?:\s+(?:to|until)\s+(?P<until>{_DAY})\s*d?"
    rf"|\s+for\s+(?P<span>{NUMBER}|{'|'.join(WORDS)})\s*(?P<scale>hours?|h|days?|d))?\s*"
)
_VALUE = rf"(?P<value>{NUMBER})\s*(?P<unit>%|{_UNIT})?"
FORMS = (
    re.compile(rf"\s*(?P<actuator>[A-Za-z_]+)\s*(?P<op>[*=+-])\s*{_VALUE}{_WINDOW}", re.IGNORECASE),
    re.compile(rf"\s*(?P<op>hold)\s+(?P<actuator>[A-Za-z_]+)\s+at\s+{_VALUE}{_WINDOW}", re.IGNORECASE),
)
HARVEST = re.compile(rf"\s*harvest\s*(?:on|at|=)\s*(?P<day>{_DAY})\s*d?\s*", re.IGNORECASE)
EXPECTED = (
    'expected ACTUATOR*NUMBER (or =, +, -), then "from DAY", "to DAY" or "for NUMBERh", as in "perfusion*2 from 8"; '
    'or "hold ACTUATOR at NUMBER"; or "harvest on DAY"'
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

    def rate(self, now: Scalar) -> Scalar:
        """What becomes of a rate (a float or one a future); never negative."""
        changed = {"*": now * self.value, "=": now * 0.0 + self.value, "+": now + self.value, "-": now - self.value}
        return np.maximum(0.0, changed[self.op])

    def window(self, now: float) -> tuple[float, float]:
        """From when until when it holds [d]."""
        since = now if self.since is None else self.since
        return since, self.until if self.until is not None else since + self.span

    def __str__(self) -> str:
        """The text that parses to this edit."""
        text = f"{self.actuator}{self.op}{_number(self.value)}"
        text += "" if self.since is None else f" from {_number(self.since)}"
        if self.until is not None:
            return f"{text} to {_number(self.until)}"
        if not math.isfinite(self.span):
            return text
        hours = self.span * 24.0
        exact = float(_number(hours)) / 24.0 == self.span
        return f"{text} for {_number(hours)}h" if exact else f"{text} for {_number(self.span)}d"


class Edits(NamedTuple):
    """Changes of rates, in order, and of the day of harvest; nothing: the empty edit."""

    rates: tuple[Edit, ...] = ()
    harvest: float | None = None  # [d since inoculation]

    @classmethod
    def parse(cls, text: str | Iterable[str]) -> Edits:
        """Edits from one text or several. Raises ValueError naming the piece and what was expected."""
        given = [text] if isinstance(text, str) else list(text)
        rates: list[Edit] = []
        harvest: float | None = None
        for piece in (p.strip() for t in given for p in t.split(";") if p.strip()):
            if (found := HARVEST.fullmatch(piece)) is None:
                rates.append(_rate(piece))
            elif harvest is not None:
                raise ValueError(f"edit {piece!r}: the day of harvest is given twice")
            else:
                harvest = _day(found["day"], piece)
        return cls(tuple(rates), harvest)

    def __str__(self) -> str:
        """The text that parses to these edits; empty for the empty edit."""
        last = [] if self.harvest is None else [f"harvest on {_number(self.harvest)}"]
        return "; ".join([*map(str, self.rates), *last])

    def checked(self, process: Process, now: float, furthest: float) -> Edits:
        """These edits, if they make sense on day `now` of a batch; `furthest` is the last day that is forecast [d].

        Raises ValueError naming the edit and what was expected: a window that is over or begins after the harvest, a harvest that
        is past or too far.
        """
        if self.harvest is not None and self.harvest <= now:
            raise ValueError(
                f"edit 'harvest on {self.harvest:g}': has passed, now is day {now:.4g}; expected a later day"
            )
        if self.harvest is not None and self.harvest > furthest:
            raise ValueError(
                f"edit 'harvest on {self.harvest:g}': lies past the horizon; expected day {furthest:g} at most"
            )
        last = min(self.harvest if self.harvest is not None else process.recipe.harvest_latest, furthest)
        for e in self.rates:
            since, until = e.window(now)
            if not until > since:
                raise ValueError(f"edit {str(e)!r}: ends on day {until:g}, before it begins on day {since:.4g}")
            if until <= now:
                raise ValueError(
                    f"edit {str(e)!r}: is over on day {until:g}, now is day {now:.4g}; expected a later end"
                )
            if since >= last:
                raise ValueError(
                    f"edit {str(e)!r}: begins on day {since:g}, the harvest is on day {last:g} at the latest"
                )
        return self


def most_of(limits: Limits) -> Control:
    """The most that every actuator can do."""
    return Control(limits.perfusion_max, limits.feed_max, limits.bleed_max, limits.cytokine_dose_max)


def parse_edits(text: str) -> tuple[Edit, ...]:
    """Edits of rates from text: at least one, and no harvest, which a finished batch has had. Raises ValueError."""
    found = Edits.parse(text)
    if found.harvest is not None:
        raise ValueError(f"edit 'harvest on {found.harvest:g}': the batch has been harvested; expected edits of rates")
    if not found.rates:
        raise ValueError(f"edit {text!r}: is empty; {EXPECTED}")
    return found.rates


def _rate(piece: str) -> Edit:
    found = next((m for form in FORMS if (m := form.fullmatch(piece))), None)
    if found is None:
        raise ValueError(f"edit {piece!r}: is not understood; {EXPECTED}")
    actuator, op, unit = found["actuator"], "=" if found["op"].lower() == "hold" else found["op"], found["unit"]
    if actuator not in ACTUATORS:
        raise ValueError(
            f'edit {piece!r}: unknown actuator {actuator!r}; known: {", ".join(ACTUATORS)}, or "harvest on DAY"'
        )
    value, span = float(found["value"]), _span(found["span"], found["scale"])
    since, until = (_day(found[k], piece) if found[k] else None for k in ("since", "until"))
    if not math.isfinite(value) or (found["span"] and not math.isfinite(span)):
        raise ValueError(f"edit {piece!r}: expected finite numbers")
    if unit == "%":
        if op not in "+-":
            raise ValueError(f"edit {piece!r}: expected + or - before a percentage")
        op, value = "*", max(0.0, 1.0 + (value if op == "+" else -value) / 100.0)
    elif unit and (op != "=" or unit.lower() not in [u.lower() for u in UNITS[actuator]]):
        raise ValueError(f"edit {piece!r}: expected {' or '.join(UNITS[actuator])}, and only where a rate is set")
    if not span > 0.0 or (since is not None and until is not None and until <= since):
        raise ValueError(f"edit {piece!r}: expected an end after the beginning")
    return Edit(actuator, op, value, since, until, span)


def _day(text: str, piece: str) -> float:
    day = float(text.lower().removeprefix("day"))
    if not math.isfinite(day):
        raise ValueError(f"edit {piece!r}: expected finite numbers")
    if day > LONGEST:
        raise ValueError(f"edit {piece!r}: expected days since inoculation, 0 to {LONGEST:g}")
    return day


def _span(text: str | None, scale: str | None) -> float:
    if text is None:
        return math.inf
    number = WORDS.index(text.lower()) + 1.0 if text.lower() in WORDS else float(text)
    return number / (24.0 if cast(str, scale).lower().startswith("h") else 1.0)


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")
