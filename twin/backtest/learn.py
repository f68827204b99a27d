"""A donor prior, an initial state and noise levels from a preset and the training batches: empirical Bayes with the filter.

Nothing of the left-out group enters here. The preset does enter, as the centre that few batches are pulled towards; where
its medians were chosen after looking at the very records, as those of `cho` were, only the learnt part is held out.

The parameters are static coordinates of the filter, so its final belief about them is their posterior for that batch; the
population mean and covariance then follow by expectation-maximisation (Dempster 1977) with a conjugate pull towards the
preset. Sensor noise is matched to the innovations (covariance matching, Mehra 1972) and the process noise of the cell
density is chosen by innovation likelihood. What the training batches share beyond the balances enters as a discrepancy by
day: `twin.backtest.calendar`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from twin.backtest.calendar import Calendar, Calendars, corrected, fitted
from twin.batch import Batch, apply, assimilate, start
from twin.bioreactor import Kinetics
from twin.donors.prior import DonorPrior, preset_prior
from twin.estimation.belief import N_STATE
from twin.estimation.screen import Innovation
from twin.evidence import Measurement
from twin.process import Process
from twin.records import RecordedBatch

GROWTH = ("mu_max", "tau_lag", "k_d0", "k_dP", "k_lys", "PD_max")
"""Learnt from any record with counts: growth, lag, death, growth stop."""

PRESET_WEIGHT = 1.0  # the preset's mean counts as so many batches
SPREAD_WEIGHT = 4.0  # the preset's donor spread counts as so many batches
LARGEST_SD = 0.6  # of ln: wider priors break the unscented transform
OVERSTEP = 1.5  # over-relaxed mean update; EM alone creeps
COUNTING = ((0.10, 0.0), (0.06, 0.06), (0.04, 0.12))  # candidates for the noise of a count: see `Counting`
NOISE_LEVELS = (0.06, 0.10, 0.15, 0.22, 0.30)  # candidates for the process noise of ln viable density [1/sqrt(d)]
ITERATIONS = 7  # the calendar is fitted after every one but the first
FEED_NOISE = 0.2  # process noise of ln glucose, lactate, glutamine [1/sqrt(d)]: nobody recorded what the feeds held
COUNTED = frozenset({"viable_density", "total_density"})  # noise known from replicates and Poisson counts: not matched
CLIP_NIS = 36.0  # one wild reading does not decide a likelihood

NEGLIGIBLE, HUGE = 1e-9, 1e6


class Counting(NamedTuple):
    """Noise of a count of viable cells: cv^2 = floor^2 + poisson^2 / density; the second term is Poisson's law."""

    floor: float
    poisson: float  # cv at 1e6 cells/mL: 1/sqrt(cells seen there)

    def variance(self, density: float) -> float:
        """Variance of ln of a count at `density` [1e6 cells/mL]."""
        return self.floor**2 + self.poisson**2 / max(density, 1e-2)

    def applied(self, record: RecordedBatch) -> RecordedBatch:
        """The record with this noise on every count that states none."""
        return replace(record, measurements=tuple(self._noted(m) for m in record.measurements))

    def _noted(self, m: Measurement) -> Measurement:
        if m.channel != "viable_density" or m.sd is not None or m.value <= 0:
            return m
        return replace(m, sd=m.value * float(np.sqrt(self.variance(m.value))))


@dataclass(frozen=True, slots=True)
class Learnt:
    """What the training batches taught."""

    process: Process  # effective kinetics, initial state, sensor and process noise
    prior: DonorPrior
    counting: Counting
    log_likelihood: float  # of the training innovations, at the last iteration
    calendar: Calendars = field(default_factory=dict[str, Calendar])  # what the training groups share by day


def effective(process: Process, channels: Iterable[str]) -> tuple[Process, tuple[str, ...]]:
    """The process with the growth limits that this record can teach, and the parameters to learn.

    Fed-batch records name neither feed composition nor by-products in full, so inhibition by lactate, ammonia and pH is
    switched off. The growth stop is carried by `PD_max` alone: a nutrient that nobody measured would be a second stop that
    counts cannot tell from the first. A metabolite that is measured follows the cells but does not limit them; glucose or
    glutamine that is not measured is not consumed.
    """
    measured = set(channels)
    cell: Kinetics = process.theta.cell._replace(K_L=HUGE, K_A=HUGE, K_DL=HUGE, K_DA=HUGE, w_pH=HUGE, k_dS=0.0)
    names = [*GROWTH]
    if measured & {"glucose", "lactate"}:
        names += ["a_G", "m_G", "Y_LG"] if "lactate" in measured else ["a_G", "m_G"]
    else:
        cell = cell._replace(a_G=NEGLIGIBLE, m_G=NEGLIGIBLE)
    if "glutamine" in measured:
        names += ["a_Q"]
        cell = cell._replace(K_Q=NEGLIGIBLE)
    else:
        cell = cell._replace(a_Q=NEGLIGIBLE, m_Q=NEGLIGIBLE, k_Q=NEGLIGIBLE, Y_AQ=NEGLIGIBLE)
    noise = process.noise._replace(glucose=FEED_NOISE, lactate=FEED_NOISE, glutamine=FEED_NOISE)
    return replace(process, theta=process.theta._replace(cell=cell), noise=noise), tuple(names)


def begun(learnt: Learnt, record: RecordedBatch, filter_name: str = "ukf") -> Batch:
    """The twin's batch before its first reading: what was learnt, and what the record says the pumps did."""
    batch = start(record.id, learnt.process, learnt.prior, filter_name)
    batch = replace(batch, filter=corrected(batch.filter, learnt.calendar))
    for action in record.actions:
        batch = apply(batch, action)
    return batch


def run(learnt: Learnt, record: RecordedBatch, filter_name: str = "ukf") -> Batch:
    """The twin's batch after everything in the record."""
    batch = begun(learnt, record, filter_name)
    for m in learnt.counting.applied(record).final:
        batch = assimilate(batch, m)
    return batch


def first_visits(process: Process, training: Sequence[RecordedBatch]) -> Process:
    """Initial state and its spread from the first reading of every channel in the training batches."""

    def readings(channel: str) -> np.ndarray:
        firsts = [next((m.value for m in b.final if m.channel == channel), None) for b in training]
        return np.array([v for v in firsts if v is not None], dtype=float)

    def spread(values: np.ndarray, channel: str, least: float) -> float:
        noise = process.sensors[channel].sd if channel in process.sensors else 0.0
        return max(
            float(np.sqrt(max(np.var(np.log(values), ddof=1) - noise**2, 0.0))) if values.size > 1 else 0.0, least
        )

    state, sd = process.initial, process.initial_sd
    density, viability = readings("viable_density"), np.clip(readings("viability"), 0.5, 0.995)
    if density.size:
        x = float(np.exp(np.log(density).mean()))
        scale = x / (state.car_positive + state.car_negative)
        state = state._replace(
            car_positive=state.car_positive * scale, car_negative=state.car_negative * scale, dead=state.dead * scale
        )
        sd = sd._replace(viable=spread(density, "viable_density", 0.08))
    if viability.size:
        state = state._replace(
            dead=(state.car_positive + state.car_negative) * float(np.exp(np.mean(np.log(1 / viability - 1))))
        )
        sd = sd._replace(dead=0.5)
    for channel in ("glucose", "lactate", "glutamine"):
        values = readings(channel)
        if values.size and (values > 0).all():
            state = state._replace(**{channel: float(np.exp(np.log(values).mean()))})
            sd = sd._replace(**{channel: spread(values, channel, 0.05)})
    return replace(process, initial=state, initial_sd=sd)


def log_likelihood(innovations: Iterable[Innovation]) -> float:
    """Gaussian log-likelihood of innovations, up to a constant, wild ones clipped."""
    return float(sum(-0.5 * (np.log(i.s) + min(i.nis, CLIP_NIS)) for i in innovations))


def matched(process: Process, default: Process, innovations: Sequence[Innovation]) -> Process:
    """Sensor noise widened until the innovations are as large as they should be: between one and six times the default.

    Never narrowed: a channel that the model happens to follow closely must not take over.
    """
    sensors = dict(process.sensors)
    for channel, sensor in process.sensors.items():
        mine = [i for i in innovations if i.channel == channel and i.nis < CLIP_NIS]
        if channel in COUNTED or len(mine) < 10:
            continue
        excess = float(np.mean([i.residual**2 - i.s for i in mine]))
        variance = np.clip(sensor.sd**2 + excess, 0.25 * sensor.sd**2, 4.0 * sensor.sd**2)
        sd = float(np.clip(np.sqrt(variance), default.sensors[channel].sd, default.sensors[channel].sd * 6.0))
        sensors[channel] = replace(sensor, sd=sd)
    return replace(process, sensors=sensors)


def learn(
    process: Process,
    training: Sequence[RecordedBatch],
    names: tuple[str, ...],
    tick: Callable[[], None] = lambda: None,
    filter_name: str = "ukf",
) -> Learnt:
    """Prior, initial state and noise from `training`. `tick` is called after every pass over the batches."""
    default = process
    process = first_visits(process, training)
    centre = preset_prior(process, names)
    mean, cov, likelihood = centre.mean.copy(), centre.cov.copy(), -np.inf
    where = slice(N_STATE, N_STATE + len(names))
    calendar: Calendars = {}
    groups = [r.group for r in training]

    def passed(trial: Process, noise: Counting) -> tuple[list[Batch], list[Innovation]]:
        now = Learnt(trial, DonorPrior(names, mean, cov), noise, likelihood, calendar)
        batches = [run(now, record, filter_name) for record in training]
        tick()
        return batches, [i for b in batches for i in b.innovations]

    counting = Counting(*COUNTING[0])
    for iteration in range(ITERATIONS):
        if iteration in choosing():
            counting = max((Counting(*c) for c in COUNTING), key=lambda c: log_likelihood(passed(process, c)[1]))
            trials = [replace(process, noise=process.noise._replace(viable=q)) for q in NOISE_LEVELS]
            process = max(trials, key=lambda trial: log_likelihood(passed(trial, counting)[1]))
        batches, innovations = passed(process, counting)
        likelihood = log_likelihood(innovations)
        process = matched(process, default, innovations)
        if iteration:
            calendar = fitted(batches, groups, calendar)
        means = np.array([b.belief.mean[where] for b in batches])
        within = np.sum([b.belief.cov[where, where] for b in batches], axis=0)
        centred = (PRESET_WEIGHT * centre.mean + means.sum(axis=0)) / (PRESET_WEIGHT + len(means))
        between = (means - centred).T @ (means - centred)
        cov = (SPREAD_WEIGHT * centre.cov + within + between) / (SPREAD_WEIGHT + len(means))
        shrink = np.minimum(1.0, LARGEST_SD / np.sqrt(np.diag(cov)))
        cov = cov * np.outer(shrink, shrink)
        mean = mean + OVERSTEP * (centred - mean)
    provenance: Mapping[str, str] = {
        "basis": f"empirical Bayes over {len(training)} batches: {', '.join(b.id for b in training)}"
    }
    return Learnt(process, DonorPrior(names, mean, cov, provenance), counting, likelihood, calendar)


def choosing() -> frozenset[int]:
    """Iterations at which the noise is chosen: half-way, and again when prior and calendar have settled."""
    return frozenset({ITERATIONS // 2, max(ITERATIONS - 2, 0)})


def passes() -> int:
    """How often `learn` goes over the training batches."""
    return ITERATIONS + len(choosing()) * (len(COUNTING) + len(NOISE_LEVELS))
