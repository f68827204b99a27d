"""A donor prior, an initial state and noise levels from a preset and the training batches: empirical Bayes with the filter.

Nothing of the left-out group enters here. The preset does enter, as the centre that few batches are pulled towards; where
its medians were chosen after looking at the very records, as those of `cho` were, only the learnt part is held out.

The parameters are static coordinates of the filter, so its final belief about them is their posterior for that batch; the
population mean and covariance then follow by expectation-maximisation (Dempster 1977) with a conjugate pull towards the
preset. Sensor noise is matched to the innovations (covariance matching, Mehra 1972) and the process noise of the cell
density is chosen by innovation likelihood. What the training batches share beyond the balances enters as a discrepancy by
day and level: `twin.backtest.discrepancy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from immutables import Map

from twin.backtest.discrepancy import SIZES, Discrepancies, Discrepancy, corrected, fitted
from twin.batch import Batch, apply, start
from twin.bioreactor import Kinetics
from twin.donors.prior import DonorPrior, preset_prior
from twin.estimation.belief import N_STATE
from twin.estimation.screen import Innovation
from twin.evidence import Measurement
from twin.history import replay
from twin.process import Process
from twin.records import RecordedBatch
from twin.sensors import CHANNELS

GROWTH = ("mu_max", "tau_lag", "k_d0", "k_dP", "k_lys", "PD_max")
"""Learnt from any record with counts: growth, lag, death, growth stop."""

PRESET_WEIGHT = 1.0  # the preset's mean counts as so many batches
SPREAD_WEIGHT = 4.0  # the preset's donor spread counts as so many batches
LARGEST_SD = 0.6  # of ln: wider priors break the unscented transform
OVERSTEP = 1.5  # over-relaxed mean update; EM alone creeps
COUNTING = ((0.10, 0.0), (0.06, 0.06), (0.04, 0.12))  # candidates for the noise of a count: see `Counting`
NOISE_LEVELS = (0.06, 0.10, 0.15, 0.22, 0.30)  # candidates for the process noise of ln viable density [1/sqrt(d)]
ITERATIONS = 7  # the discrepancy is fitted after every one but the first
FEED_NOISE = 0.2  # process noise of ln glucose, lactate, glutamine [1/sqrt(d)]: nobody recorded what the feeds held
COUNTED = frozenset({"viable_density", "total_density"})  # noise known from replicates and Poisson counts: not matched
CLIP_NIS = 36.0  # one wild reading does not decide a likelihood

NEGLIGIBLE, HUGE = 1e-9, 1e6

Pooling = Literal["partial", "complete", "none"]
"""How much the training groups have in common with a new one: a population, one set of kinetics, nothing."""


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
    discrepancy: Discrepancies = field(default_factory=dict[str, Discrepancy])  # what they share beyond the balances


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
    batch = replace(batch, filter=corrected(batch.filter, learnt.discrepancy))
    for action in record.actions:
        batch = apply(batch, action)
    return batch


def run(learnt: Learnt, record: RecordedBatch, filter_name: str = "ukf") -> Batch:
    """The twin's batch after everything in the record."""
    noted = learnt.counting.applied(record).final
    facts = tuple(sorted(noted, key=lambda m: (m.sampled_at, m.channel, m.id)))
    batch = replace(begun(learnt, record, filter_name), evidence=facts, valid=Map({m.id: m for m in facts}))
    return replay(batch, 0)  # what a batch believes depends on the set of facts: all at once, as one after the other


def first_visits(process: Process, training: Sequence[RecordedBatch]) -> Process:
    """Initial state and its spread from the first reading of every channel in the training batches."""
    groups = sorted({b.group for b in training})

    def readings(channel: str) -> list[np.ndarray]:
        """By group, where it has any."""
        firsts = [(b.group, next((m.value for m in b.final if m.channel == channel), None)) for b in training]
        found = [np.array([v for g, v in firsts if g == group and v is not None], dtype=float) for group in groups]
        return [values for values in found if values.size]

    def centre(values: list[np.ndarray]) -> float:
        return float(np.mean([v.mean() for v in values]))

    def spread(values: list[np.ndarray], channel: str, least: float) -> float:
        """Of ln, for a batch of a group not seen: replicates are not groups, and few groups know their mean poorly."""
        if len(values) < 2:
            return least
        noise = process.sensors[channel].sd if channel in process.sensors else 0.0
        batches = sum(v.size for v in values)
        within = sum(float(np.sum(np.square(v - v.mean()))) for v in values) / max(batches - len(values), 1)
        between = float(np.var([v.mean() for v in values], ddof=1))
        total = between * (1 + 1 / len(values)) + within * (1 - len(values) / batches)
        return max(float(np.sqrt(max(total - noise**2, 0.0))), least)

    state, sd = process.initial, process.initial_sd
    density = [np.log(np.maximum(v, CHANNELS["viable_density"].limit)) for v in readings("viable_density")]
    if density:
        scale = float(np.exp(centre(density))) / (state.car_positive + state.car_negative)
        state = state._replace(
            car_positive=state.car_positive * scale, car_negative=state.car_negative * scale, dead=state.dead * scale
        )
        sd = sd._replace(viable=spread(density, "viable_density", 0.08))
    odds = [np.log(1 / np.clip(v, 0.5, 0.995) - 1) for v in readings("viability")]
    if odds:
        state = state._replace(dead=(state.car_positive + state.car_negative) * float(np.exp(centre(odds))))
        sd = sd._replace(dead=0.5)
    for channel in ("glucose", "lactate", "glutamine"):
        values = readings(channel)
        if values and all((v > 0).all() for v in values):
            logs = [np.log(v) for v in values]
            state = state._replace(**{channel: float(np.exp(centre(logs)))})
            sd = sd._replace(**{channel: spread(logs, channel, 0.05)})
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
    pooling: Pooling = "partial",
) -> Learnt:
    """Prior, initial state, noise and discrepancy from `training`. `tick` is called after every pass over the batches.

    Pooled completely, all batches have one set of kinetics: what is believed of it passes from batch to batch, a new batch
    starts from what the last one leaves, and no group drifts by itself. Not pooled, nothing is learnt: the preset as it is.
    """
    default, centre = process, preset_prior(process, names)
    if pooling == "none":
        return Learnt(process, centre, Counting(process.sensors["viable_density"].sd, 0.0), float("nan"))
    process = first_visits(process, training)
    mean, cov, likelihood = centre.mean.copy(), centre.cov.copy(), -np.inf
    where = slice(N_STATE, N_STATE + len(names))
    discrepancy: Discrepancies = {}
    groups = [r.group for r in training]

    def passed(trial: Process, noise: Counting) -> tuple[list[Batch], list[Innovation]]:
        prior, batches = DonorPrior(names, mean, cov), list[Batch]()
        if pooling == "complete":
            prior = centre
        for record in training:
            batches.append(run(Learnt(trial, prior, noise, likelihood, discrepancy), record, filter_name))
            if pooling == "complete":
                belief = batches[-1].belief
                prior = replace(prior, mean=belief.mean[where], cov=belief.cov[where, where])
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
            discrepancy = fitted(batches, groups, discrepancy, (0.0,) if pooling == "complete" else SIZES)
        if pooling == "complete":
            mean, cov = batches[-1].belief.mean[where], limited(batches[-1].belief.cov[where, where])
            continue
        means = np.array([b.belief.mean[where] for b in batches])
        within = np.sum([b.belief.cov[where, where] for b in batches], axis=0)
        centred = (PRESET_WEIGHT * centre.mean + means.sum(axis=0)) / (PRESET_WEIGHT + len(means))
        between = (means - centred).T @ (means - centred)
        cov = limited((SPREAD_WEIGHT * centre.cov + within + between) / (SPREAD_WEIGHT + len(means)))
        mean = mean + OVERSTEP * (centred - mean)
    if pooling == "partial":  # the population's mean is not known either
        cov = limited(cov * (1 + 1 / (PRESET_WEIGHT + len(set(groups)))))
    provenance: Mapping[str, str] = {
        "basis": f"empirical Bayes over {len(training)} batches: {', '.join(b.id for b in training)}",
        "pooling": pooling,
    }
    return Learnt(process, DonorPrior(names, mean, cov, provenance), counting, likelihood, discrepancy)


def limited(cov: np.ndarray) -> np.ndarray:
    """The covariance with no standard deviation above `LARGEST_SD`; correlations stay."""
    shrink = np.minimum(1.0, LARGEST_SD / np.sqrt(np.diag(cov)))
    return cov * np.outer(shrink, shrink)


def choosing() -> frozenset[int]:
    """Iterations at which the noise is chosen: half-way, and again when prior and discrepancy have settled."""
    return frozenset({ITERATIONS // 2, max(ITERATIONS - 2, 0)})


def passes() -> int:
    """How often `learn` goes over the training batches."""
    return ITERATIONS + len(choosing()) * (len(COUNTING) + len(NOISE_LEVELS))
