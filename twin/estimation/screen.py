"""What becomes of a reading: taken in, held back, or held against the belief. Pure; the memory is a `Watch` a channel.

Every reading meets, in this order:

1. **stuck**: a probe is quarantined whose value repeats to the last digit `STUCK` times, or that scatters far less than its noise
   (frozen, lagging, quantised, or its noise divided along with the reading by a unit);
2. **unit slip**: another unit would explain it far better (`twin.estimation.slips`): held back, the unit is proposed;
3. **quarantine**: a quarantined channel is only watched, until `RETURN` readings in a row fit within `FIT_AGAIN` with an error
   that a calibrated sensor of its kind may have, and nothing speaks for a dead probe any more;
4. **gate**: taken in when ``|innovation| <= gate sqrt(S)``; their ratio is published as the test ratio;
5. **who is wrong**, after rejections: channels that contradict the belief *in one direction* say that the state is wrong,
   and the belief is widened along what they speak of. A channel alone is wrong itself, and is quarantined: a probe at
   once, a laboratory method only when two other channels that speak of the same thing contradict it, else the
   laboratory is believed.

Directions and "the same thing" are read off the belief's own joint prediction of the readings, so that a probe whose
gain is unknown testifies to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, nan, sqrt
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.linalg.lapack import dpotrf, dtrtrs  # pyright: ignore[reportAttributeAccessIssue]

from twin.estimation.belief import Belief, Layout
from twin.estimation.conditioning import INFLATE, conditioned, let_go, state_of, widened
from twin.estimation.filters import Expected, Filter, Outlook
from twin.estimation.scatter import UNHEARD, Scatter, heard
from twin.estimation.slips import likely_slip
from twin.sensors import CHANNELS, Sensor

Verdict = Literal["accepted", "widened", "rejected", "unit_slip", "quarantined"]
Why = Literal["", "stuck", "contradicted", "drift", "biased", "unit_slip"]
"""Why a channel is in alarm; the first three put it in quarantine."""

STREAK = 3
"""So many rejections decide between a wrong state and a wrong sensor."""
STUCK = 6
RETURN = {"probe": 6, "laboratory": 2}
FIT_AGAIN = 3.0
PLAIN = 2.99
"""Readings within so many standard deviations are no unit slip (`twin.estimation.slips.FIT`)."""
ALLY, WITNESS = 0.3, 0.5
"""Least correlation of two predicted readings for one channel to support, or to contradict, another."""
SLACK, LIMIT = 0.5, 8.0
"""Allowance and limit of the cumulative sums, in standard deviations of an innovation."""
LEAP = float(np.log(4.0))
"""No single method carries the state further than this (on ln): a culture does not leap, and units do slip."""
RECENT = {"probe": 0.25, "laboratory": 2.0}
"""Age [d] up to which a channel's last word counts."""


class Datum(NamedTuple):
    """One scalar reading, and what is known of its channel."""

    sensor: Sensor
    value: float  # in the canonical unit
    y: float  # on the compared scale, where its noise is Gaussian
    r: float  # variance of the noise there
    confirmed: bool = False  # a human has looked at it: no slip, no gate, no quarantine


class Innovation(NamedTuple):
    """What one reading said against what was expected of it, and what became of it."""

    time: float  # [d]
    channel: str
    residual: float  # on the compared scale of the channel
    s: float  # its variance under the model
    nis: float
    ratio: float  # |residual| over its gate: above 1 the reading is not believed
    verdict: Verdict
    detail: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the gate let it pass (a widened belief took it in, but contradicted it)."""
        return self.verdict == "accepted"


class Enacted(NamedTuple):
    """What was done to the belief about one reading."""

    verdict: Verdict
    let_go: bool  # the sensor's own error was let go
    inflate: float = INFLATE  # by how much the predicted variance grew, where the belief was widened


TAKEN = Enacted("accepted", let_go=False)


class Watch(NamedTuple):
    """What is remembered of a channel between readings."""

    streak: int = 0  # rejections in a row
    since: float = np.inf  # first of them [d]
    seen: float = -np.inf  # last reading taken in [d]
    last: float = np.nan  # last value
    repeats: int = 0  # readings since that were the same
    score: float = 0.0  # last residual over sqrt(S)
    at: float = -np.inf  # when [d]
    up: float = 0.0  # CUSUM of the scores: a drift upwards
    down: float = 0.0
    why: Why = ""  # reason of a quarantine or alarm in force
    alarmed: float = np.inf  # since when [d]
    good: int = 0  # readings in quarantine that fitted, in a row
    detail: str = ""
    scatter: Scatter = UNHEARD  # of a probe from reading to reading

    @property
    def quarantined(self) -> bool:
        """Whether readings are watched only."""
        return self.why in ("stuck", "contradicted", "drift")


FRESH = Watch()
Watches = Mapping[str, Watch]
Sensors = Mapping[str, Sensor]


class Fused(NamedTuple):
    """The belief after all readings of one instant, and what became of each."""

    belief: Belief
    innovations: tuple[Innovation, ...]
    watches: Watches
    enacted: tuple[Enacted, ...]


def fuse(
    algorithm: Filter,
    belief: Belief,
    data: Sequence[Datum],
    drive: Any,
    watches: Watches,
    layout: Layout,
    sensors: Sensors,
) -> Fused:
    """All readings of one instant into the belief.

    The readings are conditioned on one after the other within one joint Gaussian. Where each is as expected, as most are,
    that is the vector update of the textbook, and is done as one.
    """
    n = layout.size
    channels = tuple(dict.fromkeys(d.sensor.channel for d in data))
    expected = algorithm.expect(belief, channels, drive)
    at_once = _at_once(expected, belief, data, watches) if len(channels) == len(data) else None
    if at_once is not None:
        return at_once
    joint, known = expected.beside(belief), dict(watches)
    innovations: list[Innovation] = []
    enacted: list[Enacted] = []
    for datum in data:
        channel = datum.sensor.channel
        row = n + channels.index(channel)
        predicted, s = float(joint.mean[row]), float(joint.cov[row, row]) + datum.r
        before = known.get(channel, FRESH)
        error = datum.sensor.error
        implied = float(joint.mean[layout.index(error.name)]) + datum.y - predicted if error else 0.0
        verdict, watch, detail = _judge(datum, belief.time, predicted, s, before, implied)
        if verdict == "rejected" and watch.streak:
            now = state_of(joint, belief, n)
            ruling, detail = _who_is_wrong(
                algorithm, now, drive, datum.sensor, watch, datum.y - predicted, known, sensors
            )
            if ruling == "state":
                verdict, watch = "widened", watch._replace(streak=0, since=np.inf, seen=belief.time, up=0.0, down=0.0)
            elif ruling == "sensor":
                verdict, watch = (
                    "quarantined",
                    watch._replace(why="contradicted", alarmed=belief.time, good=0, detail=detail),
                )
        inflate = max(INFLATE, (datum.y - predicted) ** 2 / s) if datum.confirmed else INFLATE
        step = Enacted(verdict, watch.quarantined and not before.quarantined, inflate)
        joint = _enact(algorithm, joint, belief, datum, row, step, channels, drive, layout)
        known[channel] = watch
        enacted.append(step)
        residual = datum.y - predicted
        ratio = abs(residual) / (datum.sensor.gate * sqrt(s)) if s > 0.0 else nan
        innovations.append(Innovation(belief.time, channel, residual, s, residual**2 / s, ratio, verdict, detail))
    return Fused(state_of(joint, belief, n), tuple(innovations), known, tuple(enacted))


def _at_once(expected: Expected, belief: Belief, data: Sequence[Datum], watches: Watches) -> Fused | None:
    """All readings of one instant, of one channel each, taken in together; None where there is a question about any of them.

    With ``S = L L'`` the residuals given the readings before are ``L_jj (L^-1 (y - z))_j``, their variances ``L_jj^2``.
    """
    n, k, now = belief.mean.size, len(data), belief.time
    s, right = expected.cov.copy(), np.empty((k, n + 1), order="F")
    s.ravel()[:: k + 1] += [d.r for d in data]
    factor, failed = dpotrf(s, lower=True, clean=True)
    if failed:
        return None
    right[:, :n] = expected.cross.T
    np.subtract([d.y for d in data], expected.mean, out=right[:, n])
    white, _ = dtrtrs(factor, right, lower=True, overwrite_b=True)
    told, scores, sds = white[:, :n], white[:, n].tolist(), factor.diagonal().tolist()
    known, innovations = dict(watches), list[Innovation]()
    for d, score, sd in zip(data, scores, sds, strict=True):
        channel = d.sensor.channel
        watch = _unremarkable(d, now, score, known.get(channel, FRESH))
        if watch is None:
            return None
        known[channel] = watch
        ratio = abs(score) / d.sensor.gate
        innovations.append(Innovation(now, channel, score * sd, sd * sd, score * score, ratio, "accepted"))
    after = Belief(now, belief.mean + white[:, n] @ told, belief.cov - told.T @ told, belief.repairs)
    return Fused(after, tuple(innovations), known, (TAKEN,) * len(data))


def follow(
    algorithm: Filter, belief: Belief, data: Sequence[Datum], enacted: Sequence[Enacted], drive: Any, layout: Layout
) -> Belief:
    """The same readings into the belief of a shadow filter, with what was decided about them in `fuse`."""
    channels, n = tuple(dict.fromkeys(d.sensor.channel for d in data)), layout.size
    joint = algorithm.look(belief, channels, drive)
    for datum, step in zip(data, enacted, strict=True):
        row = n + channels.index(datum.sensor.channel)
        joint = _enact(algorithm, joint, belief, datum, row, step, channels, drive, layout)
    return state_of(joint, belief, layout.size)


def _enact(
    algorithm: Filter, joint: Outlook, belief: Belief, datum: Datum, row: int, step: Enacted, channels: tuple[str, ...],
    drive: Any, layout: Layout,
) -> Outlook:  # fmt: skip
    if step.verdict == "widened":
        now = state_of(joint, belief, layout.size)
        wide = widened(now, joint.cov[: layout.size, row], joint.cov[row, row], layout, step.inflate)
        joint = algorithm.look(wide, channels, drive)
    elif step.let_go and datum.sensor.error is not None:
        joint = algorithm.look(
            let_go(state_of(joint, belief, layout.size), datum.sensor.error, layout), channels, drive
        )
    return conditioned(joint, row, datum.y, datum.r) if step.verdict in ("accepted", "widened") else joint


def _judge(d: Datum, now: float, predicted: float, s: float, w: Watch, implied: float) -> tuple[Verdict, Watch, str]:
    """Verdict on one reading by its own channel's memory; who is wrong after a rejection is decided elsewhere.

    `implied` is the error that the sensor must have if the belief is right.
    """
    sensor = d.sensor
    score = (d.y - predicted) / sqrt(s) if s > 0.0 else nan
    plain = _unremarkable(d, now, score, w)
    if plain is not None:
        return "accepted", plain, ""
    repeats = w.repeats + 1 if d.value == w.last else 0
    before = w.score
    w = w._replace(last=d.value, repeats=repeats, score=score, at=now, scatter=_scatter(w, d, now))
    if not isfinite(score):
        return "rejected", w, "not a number"
    taken = w._replace(streak=0, since=np.inf, seen=now)
    if d.confirmed:
        taken = taken._replace(up=0.0, down=0.0, why="", alarmed=np.inf, good=0, detail="", scatter=UNHEARD)
        return ("accepted" if abs(score) <= sensor.gate else "widened"), taken, "confirmed"
    if sensor.kind == "probe" and (repeats + 1 >= STUCK or w.scatter.dead):
        same = repeats + 1 >= STUCK
        detail = f"the same value {repeats + 1} times" if same else "scatters far less than its noise"
        since = w.alarmed if w.why == "stuck" else now
        return "quarantined", w._replace(why="stuck", alarmed=since, good=0, detail=detail), detail
    slip = likely_slip(sensor.channel, d.value, predicted, s)
    if slip is not None:
        detail = f"{slip.meaning}: {d.value * slip.factor:.4g} would fit"
        if w.quarantined:
            return "unit_slip", w._replace(good=0), detail
        since = w.alarmed if w.why else now
        return "unit_slip", w._replace(why="unit_slip", alarmed=since, detail=detail), detail
    if w.quarantined:
        good = w.good + 1 if w.scatter.alive and _possible(d, now, implied) and abs(score) <= FIT_AGAIN else 0
        if good < RETURN[sensor.kind]:
            return "quarantined", w._replace(good=good), w.detail
        taken = taken._replace(why="", alarmed=np.inf, good=0, detail="", up=0.0, down=0.0)
    if not abs(score) <= sensor.gate:
        if w.streak and score * before <= 0.0:  # contradicts the belief, and the contradiction before
            w = w._replace(streak=0, since=np.inf)
        return "rejected", w._replace(streak=w.streak + 1, since=min(w.since, now)), ""
    if taken.why == "unit_slip":
        taken = taken._replace(why="", alarmed=np.inf, detail="")
    return "accepted", _cusum(taken, sensor, now), ""


def _unremarkable(d: Datum, now: float, score: float, w: Watch) -> Watch | None:
    """What is remembered after a reading that there is nothing to say about; None for any other."""
    repeats = w.repeats + 1 if d.value == w.last else 0
    if w.why or d.confirmed or repeats + 1 >= STUCK or not abs(score) <= min(d.sensor.gate, PLAIN):
        return None
    up, down = max(0.0, w.up + score - SLACK), max(0.0, w.down - score - SLACK)
    scatter = _scatter(w, d, now)
    if max(up, down) > LIMIT or scatter.dead:
        return None
    return Watch(0, inf, now, d.value, repeats, score, now, up, down, "", w.alarmed, w.good, w.detail, scatter)


def _scatter(w: Watch, d: Datum, now: float) -> Scatter:
    return heard(w.scatter, d.y, d.r, now) if d.sensor.kind == "probe" else w.scatter


def _possible(d: Datum, now: float, implied: float) -> bool:
    """Whether a probe may have the error that the belief implies of it: as calibrated, and drifted since inoculation.

    A quarantined probe's learnt error was let go, so that any reading would fit it. A laboratory method is held to its score.
    """
    error = d.sensor.error
    if d.sensor.kind == "laboratory" or error is None:
        return True
    return abs(implied) <= FIT_AGAIN * sqrt(error.sd**2 + error.walk**2 * now)


def _cusum(w: Watch, sensor: Sensor, now: float) -> Watch:
    """Page's cumulative sums of the scores: what a slow drift leaves behind within the gate.

    Beyond the limit a probe is quarantined and its error let go; a laboratory method is announced as biased until the sums
    have fallen to half of it.
    """
    w = w._replace(up=max(0.0, w.up + w.score - SLACK), down=max(0.0, w.down - w.score - SLACK))
    most = max(w.up, w.down)
    if w.why == "biased" and most < LIMIT / 2.0:
        return w._replace(why="", alarmed=np.inf, detail="")
    if w.why or not most > LIMIT:
        return w
    detail = f"reads {'higher' if w.up > w.down else 'lower'} than the belief again and again"
    if sensor.kind == "laboratory":
        return w._replace(why="biased", alarmed=now, detail=detail)
    return w._replace(why="drift", alarmed=now, good=0, up=0.0, down=0.0, detail=detail)


def _who_is_wrong(
    algorithm: Filter,
    belief: Belief,
    drive: Any,
    sensor: Sensor,
    watch: Watch,
    residual: float,
    known: Watches,
    sensors: Sensors,
) -> tuple[Literal["state", "sensor", "unclear"], str]:
    """After a rejection: the state, when others contradict it alike; the sensor, when it stands alone; else wait."""
    n = belief.mean.size
    others = [c for c, w in known.items() if c != sensor.channel and _heard(c, w, belief.time, sensors)]
    joint = algorithm.look(belief, (sensor.channel, *others), drive)
    spread = np.sqrt(np.maximum(np.diagonal(joint.cov)[n:], 1e-300))
    together = joint.cov[n, n + 1 :] / (spread[0] * spread[1:])
    allies = [
        c
        for c, rho in zip(others, together, strict=True)
        if known[c].streak and abs(rho) >= ALLY and rho * known[c].score * watch.score > 0.0
    ]
    if allies and watch.streak + sum(known[c].streak for c in allies) >= STREAK:
        return "state", f"{', '.join(allies)} contradict the belief alike"
    if watch.streak < STREAK:
        return "unclear", ""
    witnesses = [
        c
        for c, rho in zip(others, together, strict=True)
        if not known[c].streak and known[c].seen >= watch.since and abs(rho) >= WITNESS
    ]
    if CHANNELS[sensor.channel].scale == "log" and abs(residual) > LEAP:
        return (
            "sensor",
            f"{watch.streak} contradictions, by more than a factor of {np.exp(LEAP):.0f}, and no other channel alike",
        )
    if sensor.kind == "probe" or len(witnesses) >= 2:
        against = f", and {', '.join(witnesses)} contradict it" if witnesses else ""
        return "sensor", f"it alone contradicts the belief, {watch.streak} times{against}"
    return "state", f"{watch.streak} contradictions, and nothing else speaks of it"


def _heard(channel: str, w: Watch, now: float, sensors: Sensors) -> bool:
    return channel in sensors and not w.why and now - w.at <= RECENT[sensors[channel].kind]
