"""What one donor's batch is worth to know of the others: its log predictive density without him, however donors are pooled.

    partial    theta_d ~ the population that the other donors teach; left out by importance weights over its draws k
               p(y_d | y_-d) = 1 / E_k[1 / p(y_d | m_k, L_k)]   (the donor's own kinetics integrated out: PSIS-LOO by donor)
    complete   one set of kinetics for all, as well known as the other donors tell it (refitted without him)
    none       the preset's population, nothing learnt

In all three the state at inoculation is each batch's own. p(y_d | population) is the log-evidence of `twin.donors.update`.
How noise grows, q, is taken from the fit to all: 17 donors know it so well that one of them moves it little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp, ndtr

from twin.donors.data import COUNTS, STATIC_STAGES, FitData, prepare
from twin.donors.fit import Diagnostics, Settings, diagnose, population_draws
from twin.donors.model import FIT_PARAMETERS, build, drift_prior, preset_population
from twin.donors.sample import density, nuts
from twin.donors.target import COMPONENTS, Population, Target, mixture_of
from twin.donors.update import Update, smoothed_mean
from twin.process import Process
from twin.records import RecordedBatch
from twin.sensors import CHANNELS

if TYPE_CHECKING:
    import arviz

_AT_ONCE = 50  # components


class LeftOut(NamedTuple):
    """One donor left out of a fit by importance weights over its draws."""

    log_density: float  # ln p(y_d | y_-d), natural units
    khat: float
    weights: Float[np.ndarray, " k"]  # of the draws, as if he had not been there; sum to 1


def bioreactor_alone(records: Sequence[RecordedBatch]) -> tuple[RecordedBatch, ...]:
    """The bioreactor batches without the counts of the stages around: all that `Target` conditions a donor on."""
    return tuple(
        replace(b, metadata={k: v for k, v in b.metadata.items() if not k.startswith(("cells_in_", "cells_out_"))})
        for b in records
        if b.metadata.get("stage", "bioreactor") not in STATIC_STAGES
    )


def left_out(log_likelihood: Float[np.ndarray, " k"]) -> LeftOut:
    """Leave a donor out of draws of a posterior that knew him; `log_likelihood` is ln p(y_d | draw k)."""
    weights, khat, mean = smoothed_mean(-log_likelihood)
    return LeftOut(-mean, khat, weights)


def evidence_by_draw(target: Target, found: Update, components: Population) -> Float[np.ndarray, " k"]:
    """ln p(y_d | m_k, L_k) of every component from the one set of draws that `found` holds of the donor under `target`."""
    theta, weights = found.draws[:, : len(components.names)], found.weights
    log_mixture = np.asarray(logsumexp(densities(target.population, theta), axis=1)) - np.log(
        len(target.population.mean)
    )
    with np.errstate(divide="ignore"):
        base = np.log(weights) - log_mixture
    return found.log_evidence + np.asarray(logsumexp(densities(components, theta) + base[:, None], axis=0))


def densities(population: Population, theta: Float[np.ndarray, "m p"]) -> Float[np.ndarray, "m k"]:
    """Log-density of ln kinetics under every component by itself."""
    k, p = population.mean.shape
    out = np.empty((len(theta), k))
    for first in range(0, k, _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        inverse = np.linalg.inv(np.linalg.cholesky(population.cov[part]))
        z = (theta @ inverse.reshape(-1, p).T).reshape(len(theta), -1, p)
        z -= np.einsum("kij,kj->ki", inverse, population.mean[part])
        log = np.log(np.diagonal(inverse, axis1=1, axis2=2)).sum(axis=1) - p / 2.0 * np.log(2.0 * np.pi)
        out[:, part] = log - 0.5 * np.einsum("mki,mki->mk", z, z)
    return out


def without(
    population: Population, weights: Float[np.ndarray, " k"], components: int = COMPONENTS, seed: int = 0
) -> Population:
    """An even mixture of `components` draws of the weighted one (systematic resampling)."""
    places = (np.arange(components) + np.random.default_rng(seed).random()) / components
    chosen = np.minimum(np.searchsorted(np.cumsum(weights), places), len(weights) - 1)
    return replace(population, mean=population.mean[chosen], cov=population.cov[chosen])


def learnt(
    posterior: arviz.InferenceData, process: Process, names: tuple[str, ...], components: int = COMPONENTS
) -> Population:
    """The population of a hierarchical fit, at most `components` of its draws."""
    return mixture_of(names, process, population_draws(posterior), drift_of(posterior), components)


def unpooled(process: Process, names: tuple[str, ...], drift: Mapping[str, tuple[float, float]] | None = None) -> Population:  # fmt: skip
    """Nothing learnt: the preset's medians and donor spreads, and noise that grows as before any fit where `drift` is None."""
    median, spread = preset_population(process, names)
    return Population(names, median[None], np.diag(spread**2)[None], drift or {c: drift_prior(c) for c in CHANNELS})


def common(
    records: Sequence[RecordedBatch], process: Process, names: tuple[str, ...] = FIT_PARAMETERS, settings: Settings = Settings()  # noqa: B008
) -> tuple[Population, Diagnostics]:  # fmt: skip
    """Complete pooling: one set of kinetics for all donors as a Gaussian of the posterior's moments, and how the fit went.

    Raises FitError as `prepare` does.
    """
    data = prepare(records, process)
    model = build(data, process, names, span=settings.span, spread_donors=False)
    posterior, _ = nuts(
        model, density(model), draws=settings.draws, tune=settings.tune, chains=settings.chains, seed=settings.seed, cores=settings.cores,
    )  # fmt: skip
    theta = np.asarray(posterior["posterior"]["theta"])[:, :, 0, :].reshape(-1, len(names))
    known = Population(names, theta.mean(axis=0)[None], np.cov(theta.T)[None], drift_of(posterior))
    return known, diagnose(posterior)


def drift_of(posterior: arviz.InferenceData) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of ln q by channel; of channels that the fit did not see, as before any fit."""
    q = posterior["posterior"]["q"]
    ln = np.log(np.asarray(q)).reshape(-1, q.shape[-1])
    seen = {str(c): (float(v.mean()), float(v.std())) for c, v in zip(q["channel"].to_numpy(), ln.T, strict=True)}
    return {c: seen.get(c, drift_prior(c)) for c in CHANNELS}


class Foretold(NamedTuple):
    """The last count of a batch among what was predicted of it."""

    day: float  # [d since inoculation]
    density: float  # viable [1e6 cells/mL]
    below: float  # predictive probability of a lower reading, the reading's own noise included

    def within(self, coverage: float) -> bool:
        """Whether the central interval of this probability holds it."""
        return abs(2.0 * self.below - 1.0) <= coverage


def last_count(target: Target, found: Update, n: int = 1024, seed: int = 0) -> Foretold:
    """The last count of the batch of `target` beside its prediction from an update that knew less of the batch.

    Controls are those that were applied. A channel that the update had not seen takes the population's noise.
    """
    samples, columns = target.data.samples[COUNTS], {name: k for k, name in enumerate(found.names)}
    rows = np.random.default_rng(seed).choice(len(found.draws), size=n, p=found.weights)
    centre = target.prior[0]
    u = np.stack(
        [found.draws[rows, columns[m]] if m in columns else np.full(n, centre[k]) for k, m in enumerate(target.names)],
        axis=1,
    )
    place = int(np.argmax(samples.time))
    z = target.scores(u)[0][place]  # counts come first, in the order of the samples
    return Foretold(float(samples.time[place]), float(samples.value[place]), float(np.mean(ndtr(z))))


def donor_moments(posterior: arviz.InferenceData, data: FitData) -> Float[np.ndarray, "donors p 3"]:
    """5, 50 and 95 % points of the ln kinetics of every donor of a hierarchical fit."""
    theta = np.asarray(posterior["posterior"]["theta"])
    flat = theta.reshape(-1, len(data.donors), theta.shape[-1])
    return np.moveaxis(np.quantile(flat, (0.05, 0.5, 0.95), axis=0), 0, -1)
