"""Is the estimate to be trusted? Innovations over a window, the shadow filter, repairs, and alarms about channels.

When the filter is honest, innovations are white with the variance it states: their normalised squares (NIS) average 1,
and neighbours are uncorrelated. Under n readings the mean NIS lies within chi-square bounds (Bar-Shalom, Li and
Kirubarajan, Estimation with Applications to Tracking and Navigation, 2001, section 5.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import chi2

from twin.estimation.belief import N_STATE
from twin.estimation.screen import Innovation
from twin.history import Batch

WINDOW = 1.0
"""Innovations of so many days make up the windowed figures."""
FEWEST = 5
"""Fewer readings than this in the window say nothing."""
APART = 3.0
"""The shadow filter may differ from the main one by so many standard deviations."""

LATE = {"probe": 1.0, "laboratory": 1.5}
"""A channel is lost after so many times its `stale_after`: laboratory results may be entered a day late."""

Severity = Literal["information", "warning", "critical"]


class Whiteness(NamedTuple):
    """One channel over the window."""

    n: int
    nis: float  # mean normalised innovation squared
    low: float  # 99 % bounds of that mean for an honest filter
    high: float
    bias: float  # mean of residual over its standard deviation
    lag1: float  # correlation of neighbouring innovations; 0 when white
    white: bool  # |lag1| within 2.58/sqrt(n)
    ratio: float  # largest test ratio: |innovation| over the gate
    rejected: int


class Health(NamedTuple):
    """Of one batch at one instant."""

    at: float  # [d]
    channels: Mapping[str, Whiteness]
    nis: float  # over all channels of the window
    honest: bool  # its 99 % upper bound holds: the filter is not overconfident
    repairs: int  # covariance repairs since inoculation
    apart: (
        float | None
    )  # largest distance of the shadow's state from the main filter's, in its sd; None without a shadow
    revisions: int
    largest_jump: float  # by a revision, in standard deviations
    finite: bool


class Alarm(NamedTuple):
    """Something a human should know, about one channel or (channel "") the estimate."""

    code: str  # a key of ACTIONS, or of `twin.estimation.pumps`
    channel: str
    since: float  # [d]
    severity: Severity
    message: str
    action: str


ACTIONS: Mapping[str, tuple[Severity, str]] = {
    "stuck": ("warning", "Check the probe and its transmitter; readings are not used until they move again and fit."),
    "contradicted": ("warning", "Check or recalibrate; readings are not used until several in a row fit again."),
    "drift": ("warning", "Recalibrate against a sample; the learnt error of the probe has been let go."),
    "biased": ("information", "Compare the method with a second one; its readings are still used."),
    "unit_slip": ("warning", "Correct the value (a higher version), or confirm it; it is not used until then."),
    "lost": ("warning", "No reading for longer than allowed: check the device and its line."),
    "overconfident": ("warning", "Innovations are larger than the filter says: trust its bands less and sample more."),
    "shadow_apart": ("warning", "The two filters disagree: the problem is more curved than usual; sample more."),
    "not_finite": ("critical", "The estimate is unusable: the edge keeps to its recipe."),
}


def health(batch: Batch, now: float, window: float = WINDOW) -> Health:
    """Figures of the readings sampled in ``(now - window, now]`` and of the filter as it stands."""
    recent = _since(batch.innovations, now - window, now)
    by_channel: dict[str, list[Innovation]] = {}
    for i in recent:
        by_channel.setdefault(i.channel, []).append(i)
    channels = {k: whiteness(v) for k, v in by_channel.items() if len(v) >= FEWEST}
    taken = [i.nis for i in recent if i.accepted]
    n = len(taken)
    mean = float(np.mean(taken)) if n else float("nan")
    point = batch.newest
    apart: float | None = None
    if point.shadow is not None:
        spread = np.sqrt(np.maximum(np.diagonal(point.belief.cov)[:N_STATE], 1e-300))
        apart = float(np.max(np.abs(point.shadow.mean - point.belief.mean)[:N_STATE] / spread))
    return Health(
        at=now,
        channels=channels,
        nis=mean,
        honest=n < FEWEST or mean <= float(chi2.ppf(0.995, n)) / n,
        repairs=point.belief.repairs,
        apart=apart,
        revisions=len(batch.revisions),
        largest_jump=max((r.jump for r in batch.revisions), default=0.0),
        finite=point.belief.finite,
    )


def whiteness(innovations: Sequence[Innovation]) -> Whiteness:
    """Size, bias and neighbour correlation of one channel's innovations; refused readings count as rejected only."""
    taken = [i for i in innovations if i.accepted]
    n = len(taken)
    scores = np.array([i.residual for i in taken]) / np.sqrt([i.s for i in taken]) if n else np.zeros(0)
    square = float(np.mean(scores * scores)) if n else float("nan")
    lag1 = float(np.mean(scores[1:] * scores[:-1]) / square) if n > 1 and square > 0.0 else 0.0
    return Whiteness(
        n=n,
        nis=square,
        low=float(chi2.ppf(0.005, n)) / n if n else 0.0,
        high=float(chi2.ppf(0.995, n)) / n if n else float("inf"),
        bias=float(np.mean(scores)) if n else 0.0,
        lag1=lag1,
        white=n < FEWEST or abs(lag1) <= 2.58 / float(np.sqrt(n)),
        ratio=max((i.ratio for i in innovations), default=0.0),
        rejected=len(innovations) - n,
    )


def channel_alarms(batch: Batch, now: float) -> tuple[Alarm, ...]:
    """Alarms about single channels at `now` [d]."""
    found: list[Alarm] = []
    for channel, w in sorted(batch.watches.items()):
        sensor = batch.process.sensors[channel]
        if w.why:
            found.append(_alarm(w.why, channel, w.alarmed, w.detail))
        patience = LATE[sensor.kind] * sensor.stale_after
        if now - w.at > patience:
            found.append(_alarm("lost", channel, w.at + patience, f"no reading since day {w.at:.2f}"))
    return tuple(found)


def alarms(batch: Batch, now: float, state: Health | None = None) -> tuple[Alarm, ...]:
    """Everything that a human should know at `now` [d], by channel, then of the estimate; `state` is its health, if known."""
    found = list(channel_alarms(batch, now))
    state = state or health(batch, now)
    if not state.finite:
        found.append(_alarm("not_finite", "", now, "the belief is not a number"))
    if not state.honest:
        found.append(_alarm("overconfident", "", now, f"mean NIS {state.nis:.2f} over the last day"))
    if state.apart is not None and not state.apart <= APART:
        found.append(_alarm("shadow_apart", "", now, f"EKF and UKF differ by {state.apart:.1f} standard deviations"))
    return tuple(found)


def _alarm(code: str, channel: str, since: float, message: str) -> Alarm:
    severity, action = ACTIONS[code]
    return Alarm(code, channel, since, severity, message, action)


def _since(innovations: Iterable[Innovation], after: float, until: float) -> list[Innovation]:
    return [i for i in innovations if after < i.time <= until]
