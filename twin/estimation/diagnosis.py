"""Which explanation of the last days is right: nothing, a pump, the medium bag, the cells, or a sensor?

Mass balances leave residuals when a pump does not deliver what it reports. The generalised likelihood ratio of Willsky
and Jones (IEEE Trans. Autom. Control 21, 108, 1976) compares what each explanation predicts for the same readings. Here:

1. One pass of the batch's own filter over the window, every reading taken in as it is, gives the gains and the innovation
   variances of every instant. Readings that the screen held back are left out.
2. A bank of means, one a hypothesis (kind, size, onset), runs through the *nonlinear* model under the hypothesised inputs
   and is corrected with those common gains. Innovations enter through Huber's function, alike for all.
3. The log-likelihoods, tempered because model errors are not white, and the priors below give posterior probabilities.

A fault's prior is hazard x time x a distribution of sizes; fitted onset and size are paid for by marginalising over them.
Departures that every healthy rig shows (`TOLERANCE`) count as nothing wrong. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from twin.batch import believe_at
from twin.bioreactor import Coordinates, Kinetics, Medium, State, from_coordinates, to_coordinates
from twin.estimation.belief import N_STATE, Layout
from twin.estimation.model import BioreactorModel
from twin.estimation.screen import Datum
from twin.evidence import ACTUATORS, Measurement
from twin.history import Batch, Checkpoint, carry, instants
from twin.inputs import Drive
from twin.process import Process
from twin.sensors import CHANNELS, compared
from twin.transition import advance_many

WINDOW = 4.0
"""How far back [d] a change is looked for; a standing diagnosis is followed further, `LONGEST` at most."""
LONGEST = 8.0
STEP = 0.25
"""Onsets are tried this far apart [d]; the newest is `FRESH` old."""
LEAD = 0.25
"""The window begins this long before the earliest onset [d]."""
HUBER = 3.0
"""Innovations beyond so many standard deviations count linearly, and correct no further."""
TEMPER = 0.5
"""Power of the likelihood: hourly innovations of a model that is not the plant repeat each other."""

Kind = Literal["nothing", "delivery", "stuck_on", "bag", "growth", "uptake", "death", "sensor"]


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
BAGGED: Mapping[str, tuple[str, ...]] = {
    "medium": ("glucose", "glutamine"), "glucose": ("glucose",), "glutamine": ("glutamine",),
}  # fmt: skip
"""What is not as announced in a medium bag."""
CELLS: Mapping[str, tuple[str, ...]] = {
    "growth": ("mu_max",), "uptake": ("a_G", "m_G", "a_Q", "m_Q"), "death": ("k_d0", "k_dS", "k_dC", "k_dL", "k_dA", "k_dP"),
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
        *(Prior("stuck_on", a, tuple((f * most[a], w) for f, w in jammed), 0.0025) for a in ("perfusion", "cytokine_dose")),
        *(Prior("bag", b, BAGS, 0.006 if b == "medium" else 0.002) for b in BAGGED),
        Prior("growth", "", SHIFTS, 0.01, WOBBLE, 0.2),
        Prior("uptake", "", ((0.6, 0.5), (0.7, 1.0), (1.4, 1.0), (1.7, 0.5)), 0.005, WOBBLE, 0.2),
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
    gain: float  # log-likelihood ratio of its best member to nothing wrong, tempered


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


class Bank(NamedTuple):
    """Hypotheses as columns."""

    priors: tuple[Prior, ...]
    owner: np.ndarray  # [H] index into `priors`, -1: nothing
    minor: np.ndarray  # [H] within tolerance
    size: np.ndarray  # [H]
    onset: np.ndarray  # [H], [d]; inf: never
    weight: np.ndarray  # [H] prior probability
    gains: np.ndarray  # [4, H] of what the read-backs say
    rates: np.ndarray  # [4, H] instead of what they say; NaN: as they say
    medium: np.ndarray  # [7, H] factors on the announced composition
    cell: np.ndarray  # [34, H] factors on kinetics that the filter does not learn
    jump: np.ndarray  # [n, H] of the coordinates at the onset


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
    score, n = _likelihoods(batch, bank, after, now)
    return _ranked(bank, TEMPER * (score - score[0]), now, after, n)


def onsets(after: float, now: float) -> np.ndarray:
    """Onsets that are tried [d]: a grid that stays put as `now` moves on."""
    first = np.ceil((after + LEAD) / STEP)
    return np.arange(first, np.floor((now - 1e-9) / STEP) + 1.0) * STEP


def make_bank(batch: Batch, after: float, now: float) -> Bank:
    """All hypotheses for a window; the first column is nothing wrong."""
    layout, tried = batch.layout, onsets(after, now)
    priors = catalogue(batch.process)
    columns: list[tuple[int, bool, float, float, float]] = [(-1, False, 1.0, np.inf, 1.0)]
    for i, p in enumerate(priors):
        for sizes, hazard, minor in ((p.sizes, p.hazard, False), (p.tolerance, p.wobble, True)):
            total = sum(w for _, w in sizes)
            columns += [(i, minor, s, float(t), hazard * STEP * w / total) for s, w in sizes for t in tried]
    table = np.array(columns, dtype=float)
    owner, minor, size = table[:, 0].astype(int), table[:, 1].astype(bool), table[:, 2]
    h = size.size
    gains, rates = np.ones((len(ACTUATORS), h)), np.full((len(ACTUATORS), h), np.nan)
    medium, cell, jump = np.ones((len(Medium._fields), h)), np.ones((len(Kinetics._fields), h)), np.zeros((layout.size, h))
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
                    scale = error.sd if CHANNELS[p.target].scale == "linear" else 0.12
                    jump[layout.index(error.name), mine] = size[mine] * scale
            case _:
                for name in CELLS[p.kind]:
                    if name in layout.parameters:
                        jump[layout.index(name), mine] = np.log(size[mine])
                    else:
                        cell[Kinetics._fields.index(name), mine] = size[mine]
    return Bank(priors, owner, minor, size, table[:, 3], table[:, 4], gains, rates, medium, cell, jump)


# --- the likelihoods ---------------------------------------------------------------------------------------------------


def _likelihoods(batch: Batch, bank: Bank, after: float, now: float) -> tuple[Float[np.ndarray, " h"], int]:
    """Log-likelihood of the window's readings under every hypothesis, and how many there were."""
    layout, n = batch.layout, batch.layout.size
    model, quiet = BioreactorModel(batch.process, layout), replace(batch, shadow=None)
    point = Checkpoint(0, believe_at(batch, after))
    means = np.repeat(point.belief.mean[:, None], bank.onset.size, axis=1)
    score, count, at = np.zeros(bank.onset.size), 0, after
    for group in instants(heeded(batch, after, now)):
        when = group[0].sampled_at
        point = carry(quiet, point, when)
        means, at = _moved(batch, model, bank, means, at, when), when
        drive = batch.course.at(when)
        data = [_datum(batch, m) for m in group]
        channels = tuple(dict.fromkeys(d.sensor.channel for d in data))
        mean, cov = batch.filter.look(point.belief, channels, drive)
        expected = np.concatenate([means, model.observe(means, channels, drive)])
        for d in data:
            row = n + channels.index(d.sensor.channel)
            s = float(cov[row, row]) + d.r
            column = cov[:, row]
            z = (d.y - expected[row]) / np.sqrt(s)
            far = np.abs(z)
            score -= np.where(far <= HUBER, 0.5 * z * z, HUBER * far - 0.5 * HUBER**2)
            expected += np.outer(column / np.sqrt(s), np.clip(z, -HUBER, HUBER))
            mean = mean + column / np.sqrt(s) * float(np.clip((d.y - mean[row]) / np.sqrt(s), -HUBER, HUBER))
            cov = cov - np.outer(column, column / s)
            count += 1
        means = expected[:n]
        belief = type(point.belief)(when, mean[:n], (cov[:n, :n] + cov[:n, :n].T) / 2.0, point.belief.repairs)
        point = replace(point, belief=belief)
    return score, count


def heeded(batch: Batch, after: float, now: float) -> tuple[Measurement, ...]:
    """Readings of a window that may speak: known by now, informing the state, and not held back by the screen."""
    informing = [m for m in batch.evidence if m.channel in batch.process.sensors]
    return tuple(
        m
        for m, i in zip(informing, batch.innovations, strict=True)
        if after < m.sampled_at <= now and m.received_at <= now and i.verdict not in ("unit_slip", "quarantined")
    )


def _datum(batch: Batch, m: Measurement) -> Datum:
    sensor, channel = batch.process.sensors[m.channel], CHANNELS[m.channel]
    sd = sensor.sd
    if m.sd is not None:
        sd = m.sd / (m.value + channel.limit) if channel.scale == "log" else m.sd
    return Datum(sensor, m.value, float(compared(m.channel, m.value)), sd * sd, m.confirmed)


def _moved(batch: Batch, model: BioreactorModel, bank: Bank, means: np.ndarray, after: float, until: float) -> np.ndarray:
    """Every column carried to `until` under its own inputs."""
    for end, drive, calibrated in _spans(batch, bank, after, until):
        begun = (bank.onset >= after - 1e-9) & (bank.onset < end - 1e-9) & (bank.onset <= after + 1e-9)
        if begun.any():
            means = means + np.where(begun, bank.jump, 0.0)
        active = bank.onset <= after + 1e-9
        control = np.array(drive.control, dtype=float)[:, None] * np.where(active, bank.gains, 1.0)
        control = np.where(active & np.isfinite(bank.rates), bank.rates, control)
        theta = model.theta_columns(means, drive.medium)
        theta[-len(Medium._fields) :] *= np.where(active, bank.medium, 1.0)
        theta[: len(Kinetics._fields)] *= np.where(active, bank.cell, 1.0)
        states = np.array(from_coordinates(Coordinates(*np.exp(means[:N_STATE]))))
        carried = advance_many()(states, np.ascontiguousarray(control), theta, end - after)
        means = np.concatenate([np.log(np.array(to_coordinates(State(*carried)))), means[N_STATE:]])
        for channel in calibrated:
            sensor = batch.process.sensors.get(channel)
            if sensor is not None and sensor.error is not None:
                means[batch.layout.index(sensor.error.name)] = 0.0
        after = end
    return means


def _spans(batch: Batch, bank: Bank, after: float, until: float) -> Iterator[tuple[float, Drive, tuple[str, ...]]]:
    """Stretches of (after, until] over which neither an input changes nor a hypothesis begins."""
    begins = np.unique(bank.onset[(bank.onset > after + 1e-9) & (bank.onset < until - 1e-9)])
    for stop in (*(float(b) for b in begins), until):
        yield from batch.course.spans(after, stop)
        after = stop


def _ranked(bank: Bank, ratio: np.ndarray, now: float, after: float, n: int) -> Diagnosis:
    weight = bank.weight.copy()
    weight[0] = max(0.05, 1.0 - float(weight[1:].sum()))
    log = ratio + np.log(weight)
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
