"""Which explanation of the last days is right: nothing, a pump, the medium bag, the cells, or a sensor?

Mass balances leave residuals when a pump does not deliver what it reports. The generalised likelihood ratio of Willsky
and Jones (IEEE Trans. Autom. Control 21, 108, 1976) compares what each explanation predicts for the same readings. Here:

1. One pass of the batch's own filter over the window, every reading taken in as it is, gives the gains and the innovation
   variances of every instant. Readings that the screen held back are left out.
2. A bank of means, one a hypothesis (kind, size, onset), runs through the *nonlinear* model under the hypothesised inputs
   and is corrected with those common gains. Innovations enter through Huber's function, alike for all.
3. The log-likelihoods and the priors of `catalogue` give posterior probabilities.

A fault's prior is hazard x time x a distribution of sizes (at most one change a window); onset and size are not fitted but
summed over, which is what a fitted onset costs. Small changes, which every healthy rig shows, count as nothing wrong. Pure.

What mass balances cannot tell: a pump that delivers otherwise than it says from a read-back that says otherwise than it
delivers; a perfusion that falls to a fraction from an uptake that rises by its inverse, except by how plausible either is,
as all solutes then go to the same levels (their speed and the decay of glutamine differ); and anything about a cytokine
that is far above its half-saturation and is not assayed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from twin.batch import believe_at
from twin.bioreactor import Coordinates, Kinetics, Medium, State, from_coordinates, to_coordinates
from twin.estimation.belief import N_STATE, Belief
from twin.estimation.filters import symmetric
from twin.estimation.model import BioreactorModel
from twin.evidence import ACTUATORS, Measurement
from twin.history import Batch, Checkpoint, carry, datum_of
from twin.inputs import Drive
from twin.process import Process
from twin.sensors import CHANNELS
from twin.transition import advance_many

WINDOW = 4.0
"""How far back [d] a change is looked for; a standing diagnosis is followed further, `LONGEST` at most."""
LONGEST = 8.0
STEP = 0.25
"""Onsets are tried this far apart [d]."""
LEAD = 0.25
"""The window begins this long before the earliest onset [d]."""
HUBER = 3.0
"""Innovations beyond so many standard deviations count linearly, and correct no further."""
APART = 0.125
"""One reading of a probe in so much time [d] is weighed: the next ones repeat it, model errors included."""
TOGETHER = 0.04
"""Readings within so much time [d] are weighed at the instant of the last: hourly probes are not read all at once."""
SPEAKING = (
    "viable_density", "total_density", "viability", "dead_density", "glucose", "lactate", "glutamine", "ammonia", "cytokine",
    "capacitance", "oxygen_uptake", "raman_glucose", "raman_lactate", "ph",
)  # fmt: skip
"""Channels that a mass balance moves."""
PACE = 1.0 / 24.0
"""Longest step of the bank [d]."""

Kind = Literal["nothing", "delivery", "stuck_on", "bag", "growth", "uptake", "death", "yield", "sensor"]


class Prior(NamedTuple):
    """What a kind of change may be, and how often it comes about."""

    kind: Kind
    target: str
    sizes: tuple[tuple[float, float], ...]  # size and weight; factors, rates of `stuck_on`, or jumps of a sensor
    hazard: float  # [1/d]
    tolerance: tuple[tuple[float, float], ...] = ()  # sizes that count as nothing wrong
    wobble: float = 0.0  # hazard of those [1/d]


LESS = ((0.0, 1.0), (0.15, 1.0), (0.3, 1.5), (0.45, 1.0), (0.6, 1.0), (0.72, 1.0))
MORE = ((1.3, 1.0), (1.5, 1.0), (1.9, 0.5))
SHIFTS = ((0.5, 0.5), (0.67, 1.0), (1.5, 1.0), (2.0, 0.5))
BAGS = ((0.25, 0.5), (0.5, 1.0), (0.7, 1.0), (1.4, 1.0), (2.0, 0.5))
WOBBLE = ((0.87, 1.0), (1.15, 1.0))
PUMP_WOBBLE = ((0.82, 0.5), (0.9, 1.0), (1.1, 1.0))
"""Sizes that are tried, with weights: of a pump's delivery, of the cells' rates, of a bag; and what healthy rigs show."""
BAGGED: Mapping[str, tuple[str, ...]] = {
    "medium": ("glucose", "glutamine"), "glucose": ("glucose",), "glutamine": ("glutamine",),
}  # fmt: skip
"""What is not as announced in a medium bag."""
CELLS: Mapping[str, tuple[str, ...]] = {
    "growth": ("mu_max",), "uptake": ("a_G", "m_G", "a_Q", "m_Q"), "death": ("k_d0", "k_dS", "k_dC", "k_dL", "k_dA", "k_dP"),
    "yield": ("Y_LG",),
}  # fmt: skip
"""Kinetics that move together when the cells' behaviour shifts."""


def catalogue(process: Process) -> tuple[Prior, ...]:
    """Everything that is thought of, with priors (asm): a pump fails once in a hundred days, cells shift as often."""
    most = {"perfusion": process.limits.perfusion_max, "cytokine_dose": process.limits.cytokine_dose_max}
    jammed = tuple((f, 1.0) for f in (0.25, 0.5, 0.75, 1.0))
    return (
        *(
            Prior("delivery", a, (*LESS, *MORE), 0.01, PUMP_WOBBLE if a == "perfusion" else (), 0.1)
            for a in ("perfusion", "cytokine_dose")
        ),
        *(
            Prior("stuck_on", a, tuple((f * most[a], w) for f, w in jammed), 0.0025)
            for a in ("perfusion", "cytokine_dose")
        ),
        *(Prior("bag", b, BAGS, 0.006 if b == "medium" else 0.002) for b in BAGGED),
        Prior("growth", "", SHIFTS, 0.01, WOBBLE, 0.2),
        Prior("uptake", "", ((0.6, 0.5), (0.7, 1.0), (1.4, 1.0), (1.7, 0.5)), 0.005, WOBBLE, 0.2),
        Prior("yield", "", ((0.1, 1.0), (0.3, 1.0), (0.6, 1.0), (1.5, 1.0)), 0.01, WOBBLE, 0.2),
        Prior("death", "", ((3.0, 1.0), (6.0, 1.0), (12.0, 0.5)), 0.01, ((1.5, 1.0),), 0.2),
        *(
            Prior("sensor", c, tuple((s * k, 1.0) for s in (-1.0, 1.0) for k in (1.5, 3.0)), 0.005)
            for c in ("raman_glucose", "raman_lactate", "glucose", "lactate", "viable_density")
            if c in process.sensors and process.sensors[c].error is not None
        ),
    )


class Explanation(NamedTuple):
    """One kind of change, its sizes and onsets weighed together."""

    kind: Kind
    target: str  # actuator, BAGGED's key, channel; "" for the cells and for nothing
    posterior: float
    factor: float  # posterior median of the size: factor, rate (`stuck_on`) or jump (`sensor`); 1 for nothing
    since: float  # posterior median of the onset [d]
    gain: float  # log-likelihood ratio of its best member to nothing wrong


class Diagnosis(NamedTuple):
    """Explanations of a window, the likeliest first; their posteriors sum to 1."""

    at: float  # [d]
    after: float  # start of the window [d]
    readings: int  # that were weighed
    ranked: tuple[Explanation, ...]

    @property
    def best(self) -> Explanation:
        return self.ranked[0]

    def posterior(self, *kinds: str) -> float:
        """Probability of these kinds together."""
        return float(sum(e.posterior for e in self.ranked if e.kind in kinds))


class Member(NamedTuple):
    """One hypothesis: a change of one size from one onset on."""

    owner: int  # index into the priors, -1: nothing
    minor: bool  # within tolerance
    size: float
    onset: float  # [d]
    weight: float  # prior probability, up to a common factor
    until: float = np.inf  # [d]


class Bank(NamedTuple):
    """Hypotheses as columns."""

    priors: tuple[Prior, ...]
    owner: np.ndarray  # [H] index into `priors`, -1: nothing
    minor: np.ndarray  # [H] within tolerance
    size: np.ndarray  # [H]
    onset: np.ndarray  # [H], [d], ascending; -inf: nothing ever begins
    until: np.ndarray  # [H], [d]; inf: it lasts. A jump stays.
    weight: np.ndarray  # [H] prior probability
    gains: np.ndarray  # [4, H] of what the read-backs say
    rates: np.ndarray  # [4, H] instead of what they say; NaN: as they say
    medium: np.ndarray  # [7, H] factors on the announced composition
    cell: np.ndarray  # [34, H] factors on kinetics that the filter does not learn
    jump: np.ndarray  # [n, H] of the coordinates at the onset


class Weighed(NamedTuple):
    """What the readings of a window say of every hypothesis."""

    score: Float[np.ndarray, " h"]  # log-likelihood, up to a common constant
    readings: int  # that were weighed
    channels: Mapping[str, np.ndarray]  # the score by channel, each [H]
    means: np.ndarray  # coordinates at the end under every hypothesis [n, H]
    cov: np.ndarray  # their common covariance [n, n]


def diagnose(batch: Batch, now: float, standing: Diagnosis | None = None, window: float = WINDOW) -> Diagnosis:
    """What explains the readings sampled until `now` [d] and known by then.

    `standing`, an earlier diagnosis that named a change, keeps its window's start: what the filter has learnt since from
    readings that a fault had spoilt is then not believed.
    """
    after = max(0.0, now - window)
    if standing is not None and standing.best.kind != "nothing":
        after = max(0.0, now - LONGEST, min(after, standing.best.since - 1.0))
    return weigh(batch, now, after)


def weigh(batch: Batch, now: float, after: float) -> Diagnosis:
    """`diagnose` over the window from `after` to `now` [d]. Raises ValueError for an empty window."""
    if not after < now:
        raise ValueError(f"the window from day {after!r} to day {now!r} is empty")
    bank = make_bank(batch, after, now)
    found = likelihoods(batch, bank, after, now, heeded(batch, after, now))
    return _ranked(bank, found.score - found.score[0], now, after, found.readings)


def onsets(after: float, now: float) -> np.ndarray:
    """Onsets that are tried [d]: a grid that stays put as `now` moves on."""
    first = np.ceil((after + LEAD) / STEP)
    return np.arange(first, np.floor((now - 1e-9) / STEP) + 1.0) * STEP


def make_bank(batch: Batch, after: float, now: float) -> Bank:
    """All hypotheses for a window; the first column is nothing wrong."""
    tried, priors = onsets(after, now), catalogue(batch.process)
    members: list[Member] = []
    for i, p in enumerate(priors):
        for sizes, hazard, minor in ((p.sizes, p.hazard, False), (p.tolerance, p.wobble, True)):
            total = sum(w for _, w in sizes)
            members += [Member(i, minor, s, float(t), hazard * STEP * w / total) for s, w in sizes for t in tried]
    return bank_of(batch, priors, members)


def bank_of(batch: Batch, priors: tuple[Prior, ...], members: Iterable[Member], raw_jumps: bool = False) -> Bank:
    """Hypotheses as columns, behind one of prior weight 1 under which nothing is wrong. Weights are normalised.

    With `raw_jumps` the size of a sensor's jump is in the unit of its error, not in multiples of its usual one.
    """
    layout = batch.layout
    columns = [Member(-1, False, 1.0, -np.inf, 1.0), *sorted(members, key=lambda m: m.onset)]  # begun ones come first
    table = np.array(columns, dtype=float)
    owner, minor, size = table[:, 0].astype(int), table[:, 1].astype(bool), table[:, 2]
    h = size.size
    gains, rates = np.ones((len(ACTUATORS), h)), np.full((len(ACTUATORS), h), np.nan)
    medium, cell, jump = (
        np.ones((len(Medium._fields), h)),
        np.ones((len(Kinetics._fields), h)),
        np.zeros((layout.size, h)),
    )
    for i, p in enumerate(priors):
        mine = owner == i
        match p.kind:
            case "delivery":
                gains[ACTUATORS.index(p.target), mine] = size[mine]
            case "stuck_on":
                rates[ACTUATORS.index(p.target), mine] = size[mine]
            case "bag":
                for name in BAGGED[p.target]:
                    medium[Medium._fields.index(name), mine] = size[mine]
            case "sensor":
                error = batch.process.sensors[p.target].error
                if error is not None:
                    scale = 1.0 if raw_jumps else error.sd if CHANNELS[p.target].scale == "linear" else 0.12
                    jump[layout.index(error.name), mine] = size[mine] * scale
            case _:
                for name in CELLS[p.kind]:
                    if name in layout.parameters:
                        jump[layout.index(name), mine] = np.log(size[mine])
                    else:
                        cell[Kinetics._fields.index(name), mine] = size[mine]
    weight = table[:, 4] / table[:, 4].sum()
    return Bank(priors, owner, minor, size, table[:, 3], table[:, 5], weight, gains, rates, medium, cell, jump)


# --- the likelihoods ---------------------------------------------------------------------------------------------------


def likelihoods(batch: Batch, bank: Bank, after: float, now: float, readings: Sequence[Measurement]) -> Weighed:
    """What `readings` of the window, in order of sampling, say of every hypothesis of a bank."""
    layout, n = batch.layout, batch.layout.size
    model, quiet = BioreactorModel(batch.process, layout), replace(batch, shadow=None)
    point = Checkpoint(0, believe_at(batch, after))
    means = point.belief.mean[:, None]  # of the hypotheses that have begun; the others are where the first one is
    heard = sorted({m.channel for m in readings})
    scores, at = np.zeros((len(heard), 1)), after
    for group in _groups(readings):
        when = group[-1].sampled_at
        point = carry(quiet, point, when)
        means, at = _moved(batch, model, bank, means, at, when), when
        scores = _widened(scores, means.shape[1])
        drive = batch.course.at(when)
        data = [datum_of(batch, m) for m in group]
        channels = tuple(dict.fromkeys(d.sensor.channel for d in data))
        mean, cov = batch.filter.look(point.belief, channels, drive)
        expected = model.observe(means, channels, drive)
        told = np.empty((len(data), means.shape[1]))  # clipped innovations over their standard deviations
        columns = np.empty((n, len(data)))
        for k, d in enumerate(data):
            row = channels.index(d.sensor.channel)
            root = float(np.sqrt(cov[n + row, n + row] + d.r))
            column = cov[:, n + row] / root
            z = (d.y - expected[row]) / root
            told[k], columns[:, k] = np.clip(z, -HUBER, HUBER), column[:n]
            scores[heard.index(d.sensor.channel)] -= told[k] * (z - 0.5 * told[k])
            expected += column[n:, None] * told[k]
            mean = mean + column * float(np.clip((d.y - mean[n + row]) / root, -HUBER, HUBER))
            cov = cov - np.outer(column, column)
        means = means + columns @ told
        belief = Belief(when, mean[:n], symmetric(cov[:n, :n]), point.belief.repairs)
        point = replace(point, belief=belief)
    scores, means = _widened(scores, bank.onset.size), _widened(means, bank.onset.size)
    by_channel = dict(zip(heard, scores, strict=True))
    return Weighed(scores.sum(axis=0), len(readings), by_channel, means, point.belief.cov)


def _widened(columns: np.ndarray, width: int) -> np.ndarray:
    """Columns of hypotheses that have not begun are the first one's."""
    return np.concatenate([columns, np.repeat(columns[:, :1], width - columns.shape[1], axis=1)], axis=1)


def heeded(
    batch: Batch, after: float, now: float, without: Sequence[str] = ("unit_slip", "quarantined")
) -> tuple[Measurement, ...]:
    """Readings of a window that may speak: known by now, moved by a mass balance, verdict of the screen not in `without`."""
    sensors, weighed = batch.process.sensors, set[tuple[str, int]]()
    found: list[Measurement] = []
    for m, i in zip((m for m in batch.evidence if m.channel in sensors), batch.innovations, strict=True):
        if not (after < m.sampled_at <= now and m.received_at <= now and m.channel in SPEAKING):
            continue
        if i.verdict in without:
            continue
        if sensors[m.channel].kind == "probe":
            place = (m.channel, int((m.sampled_at + 1e-3) / APART))
            if place in weighed:
                continue
            weighed.add(place)
        found.append(m)
    return tuple(found)


def _groups(readings: Iterable[Measurement]) -> list[list[Measurement]]:
    groups: list[list[Measurement]] = []
    for m in readings:
        if groups and m.sampled_at - groups[-1][0].sampled_at <= TOGETHER:
            groups[-1].append(m)
        else:
            groups.append([m])
    return groups


def _moved(
    batch: Batch, model: BioreactorModel, bank: Bank, means: np.ndarray, after: float, until: float
) -> np.ndarray:
    """Every column carried to `until` under its own inputs, and those that begin on the way set off from the first."""
    for end, drive, calibrated in _spans(batch, bank, after, until):
        begun = int(np.searchsorted(bank.onset, after + 1e-9))
        new = slice(means.shape[1], begun)
        means = np.concatenate([means, means[:, :1] + bank.jump[:, new]], axis=1)
        going = bank.until[:begun] > after + 1e-9
        control = np.array(drive.control, dtype=float)[:, None] * np.where(going, bank.gains[:, :begun], 1.0)
        control = np.where(going & np.isfinite(bank.rates[:, :begun]), bank.rates[:, :begun], control)
        theta = model.theta_columns(means, drive.medium)
        theta[-len(Medium._fields) :] *= np.where(going, bank.medium[:, :begun], 1.0)
        theta[: len(Kinetics._fields)] *= np.where(going, bank.cell[:, :begun], 1.0)
        states = np.array(from_coordinates(Coordinates(*np.exp(means[:N_STATE]))))
        carried = advance_many(PACE)(states, control, theta, end - after)
        means = np.concatenate([np.log(np.array(to_coordinates(State(*carried)))), means[N_STATE:]])
        for channel in calibrated:
            sensor = batch.process.sensors.get(channel)
            if sensor is not None and sensor.error is not None:
                means[batch.layout.index(sensor.error.name)] = 0.0
        after = end
    return means


def _spans(batch: Batch, bank: Bank, after: float, until: float) -> Iterator[tuple[float, Drive, tuple[str, ...]]]:
    """Stretches of (after, until] over which no input changes and no hypothesis begins or ends."""
    turns = [
        t for ends in (bank.onset, bank.until) for t in np.unique(ends[(ends > after + 1e-9) & (ends < until - 1e-9)])
    ]
    for stop in (*(float(t) for t in sorted({*turns})), until):
        yield from batch.course.spans(after, stop)
        after = stop


def _ranked(bank: Bank, ratio: np.ndarray, now: float, after: float, n: int) -> Diagnosis:
    log = ratio + np.log(bank.weight)
    p = np.exp(log - log.max())
    p /= p.sum()
    benign = (bank.owner < 0) | bank.minor
    explanations = [Explanation("nothing", "", float(p[benign].sum()), 1.0, now, 0.0)]
    for i, prior in enumerate(bank.priors):
        mine = (bank.owner == i) & ~bank.minor
        if not mine.any():
            continue
        total = float(p[mine].sum())
        factor = _median(bank.size[mine], p[mine]) if total > 0.0 else float("nan")
        since = _median(bank.onset[mine], p[mine]) if total > 0.0 else now
        explanations.append(Explanation(prior.kind, prior.target, total, factor, since, float(ratio[mine].max())))
    return Diagnosis(now, after, n, tuple(sorted(explanations, key=lambda e: -e.posterior)))


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(below, 0.5)), values.size - 1)])
