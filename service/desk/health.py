"""Whether an estimate is to be trusted, as it goes out: flags, figures, and what became of the newest readings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from controllers.guard import COORDINATE_RANGE
from service.messages import HealthPart, Revised, Verdict, Whiteness, instant
from service.messages.base import is_id, one_line
from twin.batch import believe_at
from twin.estimation import health
from twin.estimation.belief import Belief
from twin.estimation.pumps import readback_alarms
from twin.history import Batch

QUARANTINED = ("stuck", "contradicted", "drift")


class Look(NamedTuple):
    """What is believed at one instant, and how far."""

    at: float  # [d]
    belief: Belief
    health: health.Health
    alarms: tuple[health.Alarm, ...]
    doubts: tuple[str, ...]  # flags of a belief on which nothing can rest


def look(batch: Batch, at: float) -> Look:
    """A batch looked at at `at` [d]; what was sampled later must not be in it (`service.desk.answers.until`)."""
    belief = believe_at(batch, at)
    state = health.health(batch, at)
    # an edge may report its pumps on change only: their silence is the guard's business, nonsense from them is everyone's
    nonsense = (a for a in readback_alarms(batch, at) if a.code == "readback_garbage")
    alarms = (*health.alarms(batch, at, state), *nonsense)
    return Look(at, belief, state, alarms, doubts(belief, batch))


def doubts(belief: Belief, batch: Batch) -> tuple[str, ...]:
    """Flags of a belief on which nothing can rest: not finite, or a coordinate outside what the guard takes for possible."""
    if not belief.finite:
        return ("belief_not_finite",)
    known = (
        (COORDINATE_RANGE[n], m) for n, m in zip(batch.layout.names, belief.mean, strict=True) if n in COORDINATE_RANGE
    )
    inside = all(math.log(low) <= mean <= math.log(high) for (low, high), mean in known)
    return () if inside else ("belief_out_of_range",)


def flags(seen: Look) -> tuple[str, ...]:
    """Doubts, then what is wrong by channel (`quarantined:ph:stuck`), then with the estimate."""
    said = [_flag(a) for a in seen.alarms if a.code != "not_finite"]
    return (*seen.doubts, *said)


def _flag(a: health.Alarm) -> str:
    if not a.channel:
        return a.code
    return f"quarantined:{a.channel}:{a.code}" if a.code in QUARANTINED else f"{a.code}:{a.channel}"


def health_part(seen: Look, batch: Batch, start: datetime) -> HealthPart:
    """The health of a look in wire form."""
    h, last = seen.health, batch.revisions[-1] if batch.revisions else None
    return HealthPart(
        window_days=health.WINDOW,
        nis=_finite(h.nis),
        honest=h.honest,
        channels={c: _whiteness(w) for c, w in h.channels.items()},
        newest=_newest(batch, seen.at, start),
        repairs=seen.belief.repairs,
        shadow_gap=None if h.apart is None else _finite(h.apart),
        revisions=Revised(
            n=h.revisions,
            last=None if last is None else _finite(last.jump),
            largest=_finite(h.largest_jump) if batch.revisions else None,
            cause=last.cause if last is not None and is_id(last.cause) else None,
            at=None if last is None else instant(last.at, start),
        ),
    )


def _whiteness(w: health.Whiteness) -> Whiteness:
    return Whiteness(
        n=w.n, rejected=w.rejected, nis=_finite(w.nis), low=w.low, high=_finite(w.high), bias=w.bias, lag1=w.lag1,
        white=w.white, ratio=_finite(w.ratio),
    )  # fmt: skip


def _newest(batch: Batch, at: float, start: datetime) -> dict[str, Verdict]:
    found: dict[str, Verdict] = {}
    for i in _backwards(batch, at):
        if i.channel not in found:
            found[i.channel] = Verdict(
                at=instant(i.time, start), verdict=i.verdict, ratio=_finite(i.ratio), detail=one_line(i.detail, 200)
            )
        if len(found) == len(batch.watches):
            break
    return dict(sorted(found.items()))


def _backwards(batch: Batch, at: float) -> Iterable[health.Innovation]:
    return (i for i in reversed(batch.innovations) if i.time <= at)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
